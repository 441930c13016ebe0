/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Empty address spaces as file descriptors (asfd).
 *
 * See address_space_create(2), address_space_mmap(2), address_space_munmap(2)
 * and Documentation/userspace-api/address_space.rst.
 */
#ifndef _UAPI_LINUX_ADDRESS_SPACE_H
#define _UAPI_LINUX_ADDRESS_SPACE_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* address_space_create() */
#define ADDRESS_SPACE_CLOEXEC		(1U << 0)	/* also for views */

/**
 * struct address_space_mmap_args - what address_space_mmap() maps, and where
 * @addr: byte offset in the space; a hint unless MAP_FIXED*
 * @len: bytes, rounded up to whole pages
 * @offset: byte offset in @fd, page aligned
 * @fd: the file to map, -1 with MAP_ANONYMOUS
 * @prot: PROT_READ | PROT_WRITE | PROT_NONE
 * @flags: MAP_SHARED, MAP_PRIVATE or MAP_SHARED_VALIDATE, with MAP_ANONYMOUS,
 *	MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_POPULATE, MAP_NORESERVE,
 *	MAP_HUGETLB and its size bits
 * @__reserved: must be 0
 */
struct address_space_mmap_args {
	__u64 addr;
	__u64 len;
	__u64 offset;
	__s32 fd;
	__u32 prot;
	__u32 flags;
	__u32 __reserved;
};

#define ADDRESS_SPACE_MMAP_ARGS_SIZE_VER0	40	/* first version */

/* What an asfd may be used for. */
#define ADDRESS_SPACE_RIGHT_MAP		(1U << 0)	/* address_space_mmap */
#define ADDRESS_SPACE_RIGHT_UNMAP	(1U << 1)	/* address_space_munmap, and MAP_FIXED over a mapping */
#define ADDRESS_SPACE_RIGHT_CHANGE	(1U << 2)	/* protect, advise */
#define ADDRESS_SPACE_RIGHT_SEAL	(1U << 3)
#define ADDRESS_SPACE_RIGHT_VIEW	(1U << 4)	/* make further views */
#define ADDRESS_SPACE_RIGHT_QUERY	(1U << 5)	/* PROCMAP_QUERY, SEEK_DATA/HOLE, mappings in fdinfo */
#define ADDRESS_SPACE_RIGHT_KVM		(1U << 6)	/* KVM_MAP_ADDRESS_SPACE */

/* What can no longer be done to a space, through any fd. */
#define ADDRESS_SPACE_SEAL_MAP		(1U << 0)
#define ADDRESS_SPACE_SEAL_UNMAP	(1U << 1)
#define ADDRESS_SPACE_SEAL_CHANGE	(1U << 2)
#define ADDRESS_SPACE_SEAL_SEAL		(1U << 3)

/**
 * struct address_space_info - answer of ADDRESS_SPACE_IOC_INFO
 * @id: unique while the machine is up; fdinfo shows the same
 * @addr: start of this fd's window on the space
 * @len: its length in bytes
 * @mappings: number of mappings in that window
 * @mapped_bytes: their size
 * @resident_bytes: pages of that window present in the space's page tables
 * @mirrors: mirrors of the whole space, through any fd
 * @windows: KVM windows on the whole space
 * @rights: ADDRESS_SPACE_RIGHT_* of this fd
 * @prot: PROT_* ceiling of this fd
 * @seals: of the space
 * @__reserved: 0
 */
struct address_space_info {
	__u64 id;
	__u64 addr;
	__u64 len;
	__u64 mappings;
	__u64 mapped_bytes;
	__u64 resident_bytes;
	__u64 mirrors;
	__u64 windows;
	__u32 rights;
	__u32 prot;
	__u32 seals;
	__u32 __reserved;
};

/**
 * struct address_space_protect - argument of ADDRESS_SPACE_IOC_PROTECT
 * @addr: first byte, page aligned
 * @len: bytes, rounded up to whole pages
 * @prot: PROT_READ | PROT_WRITE | PROT_NONE
 * @__reserved: must be 0
 */
struct address_space_protect {
	__u64 addr;
	__u64 len;
	__u32 prot;
	__u32 __reserved;
};

/**
 * struct address_space_advise - argument of ADDRESS_SPACE_IOC_ADVISE
 * @addr: first byte, page aligned
 * @len: bytes, rounded up to whole pages
 * @advice: MADV_*
 * @__reserved: must be 0
 */
struct address_space_advise {
	__u64 addr;
	__u64 len;
	__u32 advice;
	__u32 __reserved;
};

/**
 * struct address_space_view - argument of ADDRESS_SPACE_IOC_VIEW
 * @addr: start of the view's window, page aligned, in that of the fd
 * @len: bytes, page aligned
 * @prot: PROT_READ | PROT_WRITE, the ceiling of the view
 * @rights: ADDRESS_SPACE_RIGHT_*
 * @flags: ADDRESS_SPACE_CLOEXEC
 * @__reserved: must be 0
 */
struct address_space_view {
	__u64 addr;
	__u64 len;
	__u32 prot;
	__u32 rights;
	__u32 flags;
	__u32 __reserved;
};

#define ADDRESS_SPACE_IOC_MAGIC		0xB9
#define ADDRESS_SPACE_IOC_INFO		_IOR(ADDRESS_SPACE_IOC_MAGIC, 0x00, struct address_space_info)
#define ADDRESS_SPACE_IOC_PROTECT	_IOW(ADDRESS_SPACE_IOC_MAGIC, 0x01, struct address_space_protect)
#define ADDRESS_SPACE_IOC_ADVISE	_IOW(ADDRESS_SPACE_IOC_MAGIC, 0x02, struct address_space_advise)
#define ADDRESS_SPACE_IOC_SEAL		_IOW(ADDRESS_SPACE_IOC_MAGIC, 0x03, __u32)
#define ADDRESS_SPACE_IOC_VIEW		_IOW(ADDRESS_SPACE_IOC_MAGIC, 0x04, struct address_space_view)	/* returns an fd */

#endif /* _UAPI_LINUX_ADDRESS_SPACE_H */

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Empty address spaces: what the rest of the kernel may ask of an asfd.
 *
 * A space is an mm_struct that no task uses, owned by a file. See
 * Documentation/mm/address_space.rst for lifetimes and lock order.
 */
#ifndef _LINUX_ADDRESS_SPACE_FD_H
#define _LINUX_ADDRESS_SPACE_FD_H

#include <linux/mm.h>
#include <linux/mm_types.h>
#include <linux/sched/mm.h>
#include <linux/sizes.h>

struct file;

/*
 * Byte 0 of a space is this address of its mm. Parts of mm take address 0 for
 * "none", so it stays out of play; 1 GiB keeps huge pages congruent.
 */
#define ASFD_MM_BASE	((unsigned long)SZ_1G)

/**
 * struct asfd_client - one who uses a space's mm and must be told of its end
 * @mm: the space's mm. Its mm_count is held from asfd_client_register() to
 *	asfd_client_unregister(); pages need mmget_not_zero() each time.
 * @release: called once in process context, with no lock held, when the space
 *	has lost its last file and before its mm is torn down. When it returns
 *	the client must hold none of the space's pages. May call
 *	asfd_client_unregister() on this client.
 * @space: private to the space.
 */
struct asfd_client {
	struct mm_struct *mm;
	void (*release)(struct asfd_client *client);
	void *space;
};

#ifdef CONFIG_ADDRESS_SPACE_FD
bool asfd_is_mirror(const struct vm_area_struct *vma);

/**
 * asfd_mirror_mm() - what a mirror shows
 * @vma: a mirror, locked by the caller
 * @addr: an address in it
 * @nr_pages: how many pages from there, all of them in it
 * @mm_addr: where that lies in the space's mm
 *
 * Return: the space's mm, valid as long as @vma is. NULL while these pages of the
 * space are being invalidated, of which the mirror's mm was already notified.
 */
struct mm_struct *asfd_mirror_mm(struct vm_area_struct *vma, unsigned long addr,
				 unsigned long nr_pages, unsigned long *mm_addr);

/* Is this an asfd mapped into a process? The caller has locked @vma. */
static inline bool vma_is_asfd_mirror(const struct vm_area_struct *vma)
{
	return (vma->vm_flags & VM_PFNMAP) && asfd_is_mirror(vma);
}
#else
static inline bool vma_is_asfd_mirror(const struct vm_area_struct *vma)
{
	return false;
}

#endif /* CONFIG_ADDRESS_SPACE_FD */

#ifdef CONFIG_ADDRESS_SPACE_FD

/**
 * asfd_mm() - the mm of the space behind a file
 * @file: any file; the result is valid while the caller holds it
 *
 * Return: the mm (no reference is taken), NULL when @file is not an asfd.
 */
struct mm_struct *asfd_mm(struct file *file);

/**
 * asfd_window_check() - may this asfd show these bytes to a virtual machine?
 * @file: any file
 * @offset: first byte, counted from the start of the fd's window
 * @len: number of bytes
 * @write: whether the machine may write
 * @addr: where the first byte lies in asfd_mm(@file)
 *
 * Return: 0; -EINVAL when @file is not an asfd, -EPERM without the right,
 * -EACCES beyond the fd's prot, -ERANGE outside its window, -ENOMEM past the
 * end of the space.
 */
int asfd_window_check(struct file *file, u64 offset, u64 len, bool write,
		      unsigned long *addr);

/**
 * asfd_client_register() - be told when the space ends
 * @file: an asfd, held by the caller
 * @client: with @release set; the other members are filled in
 *
 * May be called with locks held under which memory may be allocated.
 *
 * Return: 0, -EINVAL when @file is not an asfd, -ENOMEM.
 */
int asfd_client_register(struct file *file, struct asfd_client *client);

/**
 * asfd_client_unregister() - end a registration
 * @client: a registered client, whether or not it has been released
 *
 * Waits for a @release that runs elsewhere, so the caller must not hold a lock
 * that @release takes. To be called exactly once for each registration.
 */
void asfd_client_unregister(struct asfd_client *client);

/**
 * asfd_client_windows() - count the windows that a client shows
 * @client: a registered client
 * @delta: how many came (or, negative, went)
 */
void asfd_client_windows(struct asfd_client *client, long delta);

#endif /* CONFIG_ADDRESS_SPACE_FD */
#endif /* _LINUX_ADDRESS_SPACE_FD_H */

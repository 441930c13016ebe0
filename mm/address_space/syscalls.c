// SPDX-License-Identifier: GPL-2.0
/* SYSCALL_DEFINE is a macro of C; what the calls do is in Rust. */
#include <linux/syscalls.h>

#include "asfd.h"

SYSCALL_DEFINE1(address_space_create, unsigned int, flags)
{
	return asfd_create(flags);
}

SYSCALL_DEFINE3(address_space_mmap, int, asfd,
		struct address_space_mmap_args __user *, args, size_t, size)
{
	return asfd_mmap(asfd, args, size);
}

SYSCALL_DEFINE3(address_space_munmap, int, asfd, unsigned long, addr,
		size_t, len)
{
	return asfd_munmap(asfd, addr, len);
}

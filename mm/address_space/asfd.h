/* SPDX-License-Identifier: GPL-2.0 */
/* What the C and the Rust halves of mm/address_space/ call of each other. */
#ifndef _MM_ADDRESS_SPACE_ASFD_H
#define _MM_ADDRESS_SPACE_ASFD_H

#include <linux/address_space_fd.h>
#include <linux/types.h>

struct address_space_mmap_args;

/* Rust: behind the system calls */
long asfd_create(unsigned int flags);
long asfd_mmap(int asfd, struct address_space_mmap_args __user *args,
	       size_t size);
int asfd_munmap(int asfd, unsigned long addr, size_t len);

/* C: what needs page-table or VMA-iterator macros */
unsigned long asfd_resident_bytes(struct mm_struct *mm, unsigned long start,
				  unsigned long end);
unsigned long asfd_free_range(struct mm_struct *mm, unsigned long low,
			      unsigned long high, unsigned long len,
			      unsigned long align);

#endif /* _MM_ADDRESS_SPACE_ASFD_H */

/* SPDX-License-Identifier: GPL-2.0 */
/* What the C and the Rust halves of mm/address_space/ call of each other. */
#ifndef _MM_ADDRESS_SPACE_ASFD_H
#define _MM_ADDRESS_SPACE_ASFD_H

#include <linux/address_space_fd.h>
#include <linux/types.h>

struct address_space_mmap_args;
struct vm_area_struct;
struct vm_fault;

/* How many pages a mirror's fault serves, as much as fault_around_bytes. */
#define ASFD_AROUND	16
/*
 * How many more it serves, or how many huge pages, if it is a step of a pass: what
 * lies before its own is mapped, and what follows is not.
 */
#define ASFD_AHEAD	240
#define ASFD_AHEAD_HUGE	63
/* The most that are looked at together. */
#define ASFD_LOOK	64

/**
 * struct asfd_page - a page that a space has present, or none
 * @entry: its PFN, shifted by ASFD_PAGE_SHIFT, and ASFD_PAGE_*; 0 for none
 */
struct asfd_page {
	unsigned long entry;
};

#define ASFD_PAGE_SHIFT		2
#define ASFD_PAGE_PRESENT	1
/* The space's page table permits writing to it. */
#define ASFD_PAGE_WRITABLE	2

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

/* C: page tables of a space that are filled from the page cache */
bool asfd_map_cached(struct vm_area_struct *vma, unsigned long addr,
		     unsigned long start, unsigned int nr, bool write,
		     unsigned int order);

/* C: page tables of a space, and of who mirrors it */
bool asfd_look_around(struct vm_area_struct *vma, unsigned long addr,
		      unsigned long start, unsigned int nr,
		      struct asfd_page *pages);
bool asfd_look_huge(struct vm_area_struct *vma, unsigned long addr,
		    struct asfd_page *page);
bool asfd_is_mapped(struct vm_fault *vmf, unsigned long addr);
bool asfd_is_mapped_huge(struct vm_fault *vmf, unsigned long addr);
bool asfd_install_pages(struct vm_fault *vmf, unsigned long addr,
			unsigned int nr, const struct asfd_page *pages);
bool asfd_install_huge(struct vm_fault *vmf, unsigned long addr,
		       const struct asfd_page *page);
void asfd_zap_delay(void);

#endif /* _MM_ADDRESS_SPACE_ASFD_H */

// SPDX-License-Identifier: GPL-2.0
/* What the files of a space have in the page cache is mapped many pages at a time. */
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/userfaultfd_k.h>

#include <asm/pgalloc.h>

#include "asfd.h"

/* Is the page at @addr in the cache, in a folio of that order at least? */
static bool cached(struct vm_area_struct *vma, unsigned long addr,
		   unsigned int order)
{
	struct address_space *mapping = vma->vm_file->f_mapping;
	pgoff_t pgoff = linear_page_index(vma, addr);
	struct folio *folio;
	bool found;

	if (!order) {
		void *entry = xa_load(&mapping->i_pages, pgoff);

		return entry && !xa_is_value(entry);
	}
	/* To look into a folio takes a reference. */
	folio = filemap_get_folio(mapping, pgoff);
	if (IS_ERR(folio))
		return false;
	found = folio_order(folio) >= order;
	folio_put(folio);
	return found;
}

/* As fault-around does it, in an address space that need not be the current one. */
static bool map_pages(struct vm_area_struct *vma, unsigned long addr,
		      unsigned long start, unsigned int nr, bool write)
{
	struct mm_struct *mm = vma->vm_mm;
	pgoff_t first = linear_page_index(vma, start);
	struct vm_fault vmf = {
		.vma = vma,
		.address = addr,
		.real_address = addr,
		.pgoff = linear_page_index(vma, addr),
	};
	vm_fault_t ret;
	p4d_t *p4d;

	p4d = p4d_alloc(mm, pgd_offset(mm, addr), addr);
	vmf.pud = p4d ? pud_alloc(mm, p4d, addr) : NULL;
	if (!vmf.pud || pud_leaf(pudp_get(vmf.pud)))
		return false;
	vmf.pmd = pmd_alloc(mm, vmf.pud, addr);
	if (!vmf.pmd)
		return false;
	if (pmd_none(pmdp_get_lockless(vmf.pmd))) {
		vmf.prealloc_pte = pte_alloc_one(mm);
		if (!vmf.prealloc_pte)
			return false;
	}

	rcu_read_lock();
	ret = vma->vm_ops->map_pages(&vmf, first, first + nr - 1);
	rcu_read_unlock();

	if (vmf.prealloc_pte)
		pte_free(mm, vmf.prealloc_pte);
	/* As fault_dirty_shared_page(): there is no ->page_mkwrite() to do so. */
	if (write && (ret & VM_FAULT_NOPAGE))
		file_update_time(vma->vm_file);
	return ret & VM_FAULT_NOPAGE;
}

/*
 * Map those of the @nr pages from @start, among them the one at @addr, that the
 * file of @vma has in the page cache. They lie in @vma and in one page table. No
 * page is allocated or read for it. @write says that the page at @addr is
 * to be written to, @order how large its folio has to be at least. The caller
 * holds the mmap lock for reading, and may sleep.
 *
 * Return: whether the page at @addr is mapped now.
 */
bool asfd_map_cached(struct vm_area_struct *vma, unsigned long addr,
		     unsigned long start, unsigned int nr, bool write,
		     unsigned int order)
{
	/* What is only to be written is there when it was written, and not before. */
	if (!(vma->vm_flags & VM_READ))
		return false;
	/* What has to know of the first write gets a fault for it. */
	if (write && !pte_write(pfn_pte(0, vma->vm_page_prot)))
		return false;

	if (!vma->vm_file || uffd_disable_fault_around(vma))
		return false;
	if (vma->vm_ops->map_pages)
		return cached(vma, addr, order) &&
		       map_pages(vma, addr, start, nr, write);
	/* A fault for reading maps what is there for writing, too. */
	return is_vm_hugetlb_page(vma) && cached(vma, addr, 0) &&
	       !(handle_mm_fault(vma, addr, FAULT_FLAG_REMOTE |
				 FAULT_FLAG_ALLOW_RETRY |
				 FAULT_FLAG_RETRY_NOWAIT, NULL) &
		 (VM_FAULT_ERROR | VM_FAULT_RETRY));
}

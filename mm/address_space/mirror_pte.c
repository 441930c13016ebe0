// SPDX-License-Identifier: GPL-2.0
/*
 * What a mirror needs of page tables: to look up what a space has present, and
 * to install that in the mirror.
 *
 * Mirrors map by PFN: no reference, no rmap, no rss. An entry is installed under
 * the space's lock of struct Mirrors (mirrors.rs), after a check that nothing
 * was invalidated since the page was looked up, and zapped before the space's
 * own entry changes; so the page is there as long as the entry is.
 *
 * Whoever zaps a special entry discards its dirty bit. Hence an entry is made
 * writable only when its folio is dirty, or is made so first: a folio is not
 * cleaned before the space's entry for it is write-protected or gone, which
 * zaps mirrors.
 */
#include <linux/delay.h>
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/pagewalk.h>

#include "../internal.h"
#include "asfd.h"

/*
 * Look up the @nr pages from @start, all of them in @vma and in one page table,
 * if the one at @addr is present. The caller holds the mmap lock. Does not sleep
 * unless @vma is of hugetlb.
 *
 * Return: whether it is.
 */
bool asfd_look_around(struct vm_area_struct *vma, unsigned long addr,
		      unsigned long start, unsigned int nr,
		      struct asfd_page *pages)
{
	struct folio_walk fw;
	unsigned int i;

	if (!folio_walk_start(&fw, vma, addr, FW_ZEROPAGE))
		return false;

	for (i = 0; i < nr; i++, start += PAGE_SIZE) {
		long offset = ((long)start - (long)addr) / (long)PAGE_SIZE;
		struct asfd_page *page = &pages[i];
		pte_t pte;

		page->present = true;
		switch (fw.level) {
		case FW_LEVEL_PTE:
			pte = ptep_get(fw.ptep + offset);
			page->present = pte_present(pte) &&
				(vm_normal_page(vma, start, pte) ||
				 is_zero_pfn(pte_pfn(pte)));
			page->pfn = pte_pfn(pte);
			page->writable = pte_write(pte);
			break;
		case FW_LEVEL_PMD:
			page->pfn = pmd_pfn(fw.pmd) +
				((start & ~PMD_MASK) >> PAGE_SHIFT);
			page->writable = pmd_write(fw.pmd);
			break;
		case FW_LEVEL_PUD:
			page->pfn = pud_pfn(fw.pud) +
				((start & ~PUD_MASK) >> PAGE_SHIFT);
			page->writable = pud_write(fw.pud);
			break;
		}
	}
	folio_walk_end(&fw, vma);
	return true;
}

/*
 * Look up the PMD_SIZE around @addr, if that is mapped by an entry of this or a
 * larger size. The caller holds the mmap lock. The huge zero folio is left to
 * small entries: as a PMD, whoever zaps it expects a page table deposited.
 *
 * Return: whether anything is present at @addr; @page tells if it is huge.
 */
bool asfd_look_huge(struct vm_area_struct *vma, unsigned long addr,
		    struct asfd_page *page)
{
	struct folio_walk fw;

	if (!folio_walk_start(&fw, vma, addr, FW_ZEROPAGE))
		return false;

	page->present = fw.level != FW_LEVEL_PTE;
	if (fw.level == FW_LEVEL_PMD) {
		page->present = !is_huge_zero_pmd(fw.pmd);
		page->pfn = pmd_pfn(fw.pmd);
		page->writable = pmd_write(fw.pmd);
	} else if (fw.level == FW_LEVEL_PUD) {
		page->pfn = pud_pfn(fw.pud) +
			((addr & PMD_MASK & ~PUD_MASK) >> PAGE_SHIFT);
		page->writable = pud_write(fw.pud);
	}
	folio_walk_end(&fw, vma);
	return true;
}

/* May the mirror write to the page without a further fault? See above. */
static bool mirror_writable(struct vm_fault *vmf, const struct asfd_page *page,
			    bool wanted)
{
	struct folio *folio = pfn_folio(page->pfn);

	if (!page->writable || !(vmf->vma->vm_flags & VM_WRITE))
		return false;
	if (wanted)
		folio_mark_dirty(folio);
	/* Pages of hugetlb are never written back. */
	return folio_test_dirty(folio) || folio_test_hugetlb(folio);
}

static void install_pte(struct vm_fault *vmf, unsigned long addr, pte_t *ptep,
			const struct asfd_page *page)
{
	bool target = addr == vmf->address;
	bool wanted = target && (vmf->flags & FAULT_FLAG_WRITE);
	struct vm_area_struct *vma = vmf->vma;
	pte_t pte = ptep_get(ptep);

	if (pte_none(pte)) {
		pte = pte_mkspecial(pfn_pte(page->pfn, vma->vm_page_prot));
		if (target)
			pte = pte_mkyoung(pte);
		if (mirror_writable(vmf, page, wanted))
			pte = pte_mkwrite(pte_mkdirty(pte), vma);
		set_pte_at(vma->vm_mm, addr, ptep, pte);
		update_mmu_cache_range(vmf, vma, addr, ptep, 1);
	} else if (target) {
		/* What is there was not invalidated, so it is this page. */
		if (WARN_ON_ONCE(!pte_present(pte) || pte_pfn(pte) != page->pfn))
			return;
		pte = pte_mkyoung(pte);
		if (wanted && mirror_writable(vmf, page, true))
			pte = pte_mkwrite(pte_mkdirty(pte), vma);
		if (ptep_set_access_flags(vma, addr, ptep, pte, wanted))
			update_mmu_cache_range(vmf, vma, addr, ptep, 1);
	}
}

/*
 * Install those of the @nr pages that are present, at and after @addr of the
 * mirror. They are in one page table, one of them is the one that faulted, and
 * the space's lock is held.
 *
 * Return: false if there is no page table to put them in, for now.
 */
bool asfd_install_pages(struct vm_fault *vmf, unsigned long addr,
			unsigned int nr, const struct asfd_page *pages)
{
	struct mm_struct *mm = vmf->vma->vm_mm;
	spinlock_t *ptl;
	pte_t *pte;
	unsigned int i;

	if (pmd_none(pmdp_get_lockless(vmf->pmd))) {
		if (!vmf->prealloc_pte)
			return false;
		pmd_install(mm, vmf->pmd, &vmf->prealloc_pte);
	}

	pte = pte_offset_map_lock(mm, vmf->pmd, addr, &ptl);
	if (!pte)
		return false;
	for (i = 0; i < nr; i++, addr += PAGE_SIZE) {
		if (pages[i].present)
			install_pte(vmf, addr, pte + i, &pages[i]);
	}
	pte_unmap_unlock(pte, ptl);
	return true;
}

/*
 * Install PMD_SIZE around the address that faulted, which all lie in the mirror.
 * The space's lock is held.
 *
 * Return: false if a page table has come in between.
 */
bool asfd_install_huge(struct vm_fault *vmf, const struct asfd_page *page)
{
	bool wanted = vmf->flags & FAULT_FLAG_WRITE;
	unsigned long addr = vmf->address & PMD_MASK;
	struct vm_area_struct *vma = vmf->vma;
	struct mm_struct *mm = vma->vm_mm;
	bool done = true;
	spinlock_t *ptl;
	pmd_t pmd;

	ptl = pmd_lock(mm, vmf->pmd);
	pmd = pmdp_get(vmf->pmd);
	if (pmd_none(pmd)) {
		pmd = pmd_mkhuge(pfn_pmd(page->pfn, vma->vm_page_prot));
		pmd = pmd_mkyoung(pmd_mkspecial(pmd));
		if (mirror_writable(vmf, page, wanted))
			pmd = pmd_mkwrite(pmd_mkdirty(pmd), vma);
		set_pmd_at(mm, addr, vmf->pmd, pmd);
		update_mmu_cache_pmd(vma, addr, vmf->pmd);
	} else if (!pmd_trans_huge(pmd)) {
		done = false;
	} else if (!WARN_ON_ONCE(pmd_pfn(pmd) != page->pfn)) {
		pmd = pmd_mkyoung(pmd);
		if (wanted && mirror_writable(vmf, page, true))
			pmd = pmd_mkwrite(pmd_mkdirty(pmd), vma);
		if (pmdp_set_access_flags(vma, addr, vmf->pmd, pmd, wanted))
			update_mmu_cache_pmd(vma, addr, vmf->pmd);
	}
	spin_unlock(ptl);
	return done;
}

#ifdef CONFIG_ADDRESS_SPACE_FD_DEBUG
#undef MODULE_PARAM_PREFIX
#define MODULE_PARAM_PREFIX "asfd."
static unsigned int zap_delay_us;
module_param(zap_delay_us, uint, 0600);
MODULE_PARM_DESC(zap_delay_us,
		 "Wait this long when mirrors are zapped and the space is not yet");

/* Make the time long in which a race has to be won. */
void asfd_zap_delay(void)
{
	unsigned int delay = READ_ONCE(zap_delay_us);

	if (delay)
		fsleep(delay);
}
#endif

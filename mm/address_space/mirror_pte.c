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
 *
 * A mirror is no shadow stack: new entries are made writable without the area.
 * In entries that exist x86 may have to move the dirty bit back (SavedDirty),
 * which pte_mkwrite() does and pte_mkwrite_novma() does not.
 */
#include <linux/delay.h>
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/pagewalk.h>

#include "../internal.h"
#include "asfd.h"

static struct asfd_page page_of(unsigned long pfn, bool writable)
{
	unsigned long flags = ASFD_PAGE_PRESENT;

	if (writable)
		flags |= ASFD_PAGE_WRITABLE;
	return (struct asfd_page){ pfn << ASFD_PAGE_SHIFT | flags };
}

static struct asfd_page page_of_pte(pte_t pte)
{
	/* What is special has no page, but for the one of zeros. */
	if (!pte_present(pte) || (pte_special(pte) && !is_zero_pfn(pte_pfn(pte))))
		return (struct asfd_page){};
	return page_of(pte_pfn(pte), pte_write(pte));
}

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
	struct asfd_page first;
	unsigned int i;

	if (!folio_walk_start(&fw, vma, addr, FW_ZEROPAGE))
		return false;

	switch (fw.level) {
	case FW_LEVEL_PTE:
		fw.ptep -= (addr - start) >> PAGE_SHIFT;
		for (i = 0; i < nr; i++)
			pages[i] = page_of_pte(ptep_get(fw.ptep + i));
		folio_walk_end(&fw, vma);
		return true;
	case FW_LEVEL_PMD:
		first = page_of(pmd_pfn(fw.pmd) + pte_index(start),
				pmd_write(fw.pmd));
		break;
	case FW_LEVEL_PUD:
		first = page_of(pud_pfn(fw.pud) +
				((start & ~PUD_MASK) >> PAGE_SHIFT),
				pud_write(fw.pud));
		break;
	}
	folio_walk_end(&fw, vma);

	for (i = 0; i < nr; i++)
		pages[i].entry = first.entry + ((unsigned long)i << ASFD_PAGE_SHIFT);
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

	page->entry = 0;
	if (fw.level == FW_LEVEL_PMD && !is_huge_zero_pmd(fw.pmd))
		*page = page_of(pmd_pfn(fw.pmd), pmd_write(fw.pmd));
	else if (fw.level == FW_LEVEL_PUD)
		*page = page_of(pud_pfn(fw.pud) +
				((addr & PMD_MASK & ~PUD_MASK) >> PAGE_SHIFT),
				pud_write(fw.pud));
	folio_walk_end(&fw, vma);
	return true;
}

/*
 * May the mirror, of which a page permits writing, write to it without a further
 * fault? See above. If this is the fault for it, it may from now on.
 */
static bool mirror_writable(const struct asfd_page *page, bool wanted)
{
	struct folio *folio = pfn_folio(page->entry >> ASFD_PAGE_SHIFT);

	if (!(page->entry & ASFD_PAGE_WRITABLE))
		return false;
	if (wanted)
		folio_mark_dirty(folio);
	/* Pages of hugetlb are never written back. */
	return folio_test_dirty(folio) || folio_test_hugetlb(folio);
}

/*
 * Is @addr mapped in the mirror? It is in the page table of the address that
 * faulted. Nothing is locked: the answer is good for guesses only.
 */
bool asfd_is_mapped(struct vm_fault *vmf, unsigned long addr)
{
	bool mapped = false;
	pte_t *pte;

	pte = pte_offset_map(vmf->pmd, addr);
	if (pte) {
		mapped = pte_present(ptep_get_lockless(pte));
		pte_unmap(pte);
	}
	return mapped;
}

static pmd_t *pmd_of(struct vm_fault *vmf, unsigned long addr)
{
	return vmf->pmd + pmd_index(addr) - pmd_index(vmf->address);
}

/* As above, of huge pages. */
bool asfd_is_mapped_huge(struct vm_fault *vmf, unsigned long addr)
{
	return pmd_trans_huge(pmdp_get_lockless(pmd_of(vmf, addr)));
}

/* The page of the fault: what is there already may get more access. */
static void install_target(struct vm_fault *vmf, pte_t *ptep,
			   const struct asfd_page *page)
{
	bool wanted = vmf->flags & FAULT_FLAG_WRITE;
	unsigned long pfn = page->entry >> ASFD_PAGE_SHIFT;
	unsigned long addr = vmf->address;
	struct vm_area_struct *vma = vmf->vma;
	pte_t pte = ptep_get(ptep);
	bool none = pte_none(pte);

	if (none)
		pte = pte_mkspecial(pfn_pte(pfn, vma->vm_page_prot));
	/* What is there was not invalidated, so it is this page. */
	else if (WARN_ON_ONCE(!pte_present(pte) || pte_pfn(pte) != pfn))
		return;

	pte = pte_mkyoung(pte);
	if ((none || wanted) && (vma->vm_flags & VM_WRITE) &&
	    mirror_writable(page, wanted))
		pte = pte_mkdirty(pte_mkwrite(pte, vma));

	if (none)
		set_pte_at(vma->vm_mm, addr, ptep, pte);
	else if (!ptep_set_access_flags(vma, addr, ptep, pte, wanted))
		return;
	update_mmu_cache_range(vmf, vma, addr, ptep, 1);
}

/*
 * Install those of the @nr pages that are present, at and after @addr of the
 * mirror. They are in the page table of the one that faulted, and the space's
 * lock is held.
 *
 * Return: false if there is no page table to put them in, for now.
 */
bool asfd_install_pages(struct vm_fault *vmf, unsigned long addr,
			unsigned int nr, const struct asfd_page *pages)
{
	struct vm_area_struct *vma = vmf->vma;
	bool may_write = vma->vm_flags & VM_WRITE;
	pgprot_t prot = vma->vm_page_prot;
	struct mm_struct *mm = vma->vm_mm;
	spinlock_t *ptl;
	pte_t *ptep;
	unsigned int i;

	if (pmd_none(pmdp_get_lockless(vmf->pmd))) {
		if (!vmf->prealloc_pte)
			return false;
		pmd_install(mm, vmf->pmd, &vmf->prealloc_pte);
	}

	ptep = pte_offset_map_lock(mm, vmf->pmd, addr, &ptl);
	if (!ptep)
		return false;
	for (i = 0; i < nr; i++, addr += PAGE_SIZE) {
		pte_t pte;

		if (!pages[i].entry)
			continue;
		if (addr == vmf->address) {
			install_target(vmf, ptep + i, &pages[i]);
			continue;
		}
		if (!pte_none(ptep_get(ptep + i)))
			continue;
		pte = pte_mkspecial(pfn_pte(pages[i].entry >> ASFD_PAGE_SHIFT,
					    prot));
		if (may_write && mirror_writable(&pages[i], false))
			pte = pte_mkdirty(pte_mkwrite_novma(pte));
		set_pte_at(mm, addr, ptep + i, pte);
		update_mmu_cache_range(vmf, vma, addr, ptep + i, 1);
	}
	pte_unmap_unlock(ptep, ptl);
	return true;
}

/*
 * Install PMD_SIZE at @addr, which all lie in the mirror, and in one table with
 * the address that faulted. The space's lock is held.
 *
 * Return: false if there is a page table.
 */
bool asfd_install_huge(struct vm_fault *vmf, unsigned long addr,
		       const struct asfd_page *page)
{
	bool target = addr == (vmf->address & PMD_MASK);
	bool wanted = target && (vmf->flags & FAULT_FLAG_WRITE);
	unsigned long pfn = page->entry >> ASFD_PAGE_SHIFT;
	struct vm_area_struct *vma = vmf->vma;
	bool may_write = vma->vm_flags & VM_WRITE;
	pmd_t *pmdp = pmd_of(vmf, addr);
	struct mm_struct *mm = vma->vm_mm;
	bool done = true;
	spinlock_t *ptl;
	pmd_t pmd;

	ptl = pmd_lock(mm, pmdp);
	pmd = pmdp_get(pmdp);
	if (pmd_none(pmd)) {
		pmd = pmd_mkspecial(pmd_mkhuge(pfn_pmd(pfn, vma->vm_page_prot)));
		if (target)
			pmd = pmd_mkyoung(pmd);
		if (may_write && mirror_writable(page, wanted))
			pmd = pmd_mkdirty(pmd_mkwrite_novma(pmd));
		set_pmd_at(mm, addr, pmdp, pmd);
		update_mmu_cache_pmd(vma, addr, pmdp);
	} else if (!pmd_trans_huge(pmd)) {
		done = false;
	} else if (target && !WARN_ON_ONCE(pmd_pfn(pmd) != pfn)) {
		pmd = pmd_mkyoung(pmd);
		if (wanted && may_write && mirror_writable(page, true))
			pmd = pmd_mkdirty(pmd_mkwrite(pmd, vma));
		if (pmdp_set_access_flags(vma, addr, pmdp, pmd, wanted))
			update_mmu_cache_pmd(vma, addr, pmdp);
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

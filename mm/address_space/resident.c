// SPDX-License-Identifier: GPL-2.0
/* How much of a space is present in its page tables. */
#include <linux/hugetlb.h>
#include <linux/pagewalk.h>
#include <linux/sched/signal.h>

#include "asfd.h"

static int resident_pmd(pmd_t *pmd, unsigned long addr, unsigned long end,
			struct mm_walk *walk)
{
	unsigned long *bytes = walk->private;
	spinlock_t *ptl;
	pte_t *start_pte, *pte;

	ptl = pmd_trans_huge_lock(pmd, walk->vma);
	if (ptl) {
		if (pmd_present(*pmd))
			*bytes += end - addr;
		spin_unlock(ptl);
		return 0;
	}

	start_pte = pte = pte_offset_map_lock(walk->mm, pmd, addr, &ptl);
	if (!pte) {
		walk->action = ACTION_AGAIN;
		return 0;
	}
	for (; addr < end; pte++, addr += PAGE_SIZE) {
		if (pte_present(ptep_get(pte)))
			*bytes += PAGE_SIZE;
	}
	pte_unmap_unlock(start_pte, ptl);
	cond_resched();
	return fatal_signal_pending(current) ? -EINTR : 0;
}

static int resident_hugetlb(pte_t *pte, unsigned long hmask, unsigned long addr,
			    unsigned long end, struct mm_walk *walk)
{
	unsigned long *bytes = walk->private;

	if (pte_present(huge_ptep_get(walk->mm, addr, pte)))
		*bytes += end - addr;
	return 0;
}

static const struct mm_walk_ops resident_ops = {
	.pmd_entry = resident_pmd,
	.hugetlb_entry = resident_hugetlb,
	.walk_lock = PGWALK_RDLOCK,
};

/*
 * Bytes of [@start, @end) that are present; too few if current is killed. The
 * caller holds the mmap lock.
 */
unsigned long asfd_resident_bytes(struct mm_struct *mm, unsigned long start,
				  unsigned long end)
{
	unsigned long bytes = 0;

	walk_page_range(mm, start, end, &resident_ops, &bytes);
	return bytes;
}

// SPDX-License-Identifier: GPL-2.0
/* The search for a free range: the maple tree's gaps are not there in Rust. */
#include <linux/maple_tree.h>
#include <linux/mm.h>

#include "asfd.h"

/*
 * Find the lowest free range of @len bytes at or above @low that is aligned to
 * @align (a power of two) and ends at or below @high. Takes the log of the
 * number of mappings, but for gaps that fit only when not aligned.
 *
 * Return: its address, 0 when there is none (a space maps nothing there).
 */
unsigned long asfd_free_range(struct mm_struct *mm, unsigned long low,
			      unsigned long high, unsigned long len,
			      unsigned long align)
{
	mmap_assert_locked(mm);

	for (;;) {
		MA_STATE(mas, &mm->mm_mt, 0, 0);
		struct vm_area_struct *next;
		unsigned long addr;

		if (low >= high || high - low < len ||
		    mas_empty_area(&mas, low, high - 1, len))
			return 0;

		addr = ALIGN(mas.index, align);
		if (addr < mas.index || addr > high - len)
			return 0;

		next = find_vma(mm, mas.index);
		if (!next || next->vm_start >= addr + len)
			return addr;
		low = next->vm_end;
	}
}

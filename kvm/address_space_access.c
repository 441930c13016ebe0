// SPDX-License-Identifier: GPL-2.0-only
/*
 * How KVM itself reads and writes guest memory in windows (see address_space.c)
 *
 * Any page, and any length within it: under mmap_lock, which munmap() waits for,
 * with a reference to the page or a pin (struct kvm_window_page).
 *
 * Reads without a lock
 *
 * kvm_window_read() reads a few words without a lock, and forgets what it has
 * read if there was an invalidation meanwhile: munmap() may have returned before.
 *
 * Each vCPU keeps where it found its last pages, without a reference to them.
 * That is good as long as an SPTE would be: no invalidation is in progress, none
 * has ended since (mmu_invalidate_seq), and the slot is still that one (the
 * slots' generation).  Without a lock a page may be freed between that check and
 * the read.  What is then read of somebody else's memory is forgotten, too, and
 * it may have left the direct map, hence the nofault accessors.
 *
 * Exchanges
 *
 * A store could not be forgotten: kvm_window_cmpxchg() makes it under mmu_lock,
 * which holds off invalidations.
 */
#include <linux/hash.h>
#include <linux/highmem.h>
#include <linux/jiffies.h>
#include <linux/kvm_host.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/unaligned.h>

#include "address_space.h"

/**
 * struct kvm_window_page - a page of a window, mapped for the kernel
 * @mm: the space's mm, with its mmap_lock and mm_users held
 * @page: the page
 * @write: whether it is pinned for writing
 * @kaddr: where it is
 *
 * mmap_lock is held for as long as the page is mapped: when munmap() of the
 * range returns, no access through the window is under way.
 */
struct kvm_window_page {
	struct mm_struct *mm;
	struct page *page;
	bool write;
	void *kaddr;
};

/* Fails with -ENOENT for a hole, and where a write is to be taken for MMIO. */
static int kvm_window_get_page(const struct kvm_memory_slot *slot, gfn_t gfn,
			       bool write, struct kvm_window_page *wp)
{
	unsigned int flags = write ? FOLL_WRITE : 0;
	struct mem_cgroup *memcg;
	struct mm_struct *mm;
	unsigned long addr;
	int r, locked, tries = 0;
	kvm_pfn_t pfn;
	long n;

	/* Between two looks at the memslots, a window may have gone. */
	if (!kvm_slot_space(slot) || slot->flags & KVM_MEMSLOT_INVALID)
		return -ENOENT;

	mm = slot->space->client.mm;
	addr = __gfn_to_hva_memslot(slot, gfn);
	if (write && (slot->flags & KVM_MEM_READONLY))
		return -ENOENT;
	/* As an ordinary slot fails, by the page fault that it would take. */
	if (faulthandler_disabled())
		return -EFAULT;
	if (READ_ONCE(slot->space->dead) || !mmget_not_zero(mm))
		return -ENOENT;

	memcg = mm_charge_begin(mm);
	r = -EFAULT;
	if (mmap_read_lock_killable(mm))
		goto out_mm;

	/*
	 * Where this would have to wait, let a fault give up the lock while it
	 * does.  The page may then be taken out of the space in between: look
	 * again, keeping the lock, and hence not waiting.
	 */
	for (;;) {
		if (write)
			n = pin_user_pages_remote(mm, addr, 1, flags | FOLL_NOWAIT,
						  &wp->page, NULL);
		else
			n = get_user_pages_remote(mm, addr, 1, flags | FOLL_NOWAIT,
						  &wp->page, NULL);
		if (n || tries++ > 3)
			break;

		locked = 1;
		get_user_pages_remote(mm, addr, 1, flags, NULL, &locked);
		if (!locked && mmap_read_lock_killable(mm))
			goto out_mm;
	}

	if (n != 1) {
		pfn = kvm_window_why(mm, addr, flags);
		if (pfn == KVM_PFN_ERR_HOLE || pfn == KVM_PFN_ERR_RO_FAULT)
			r = -ENOENT;
		goto out_unlock;
	}

	mm_charge_end(memcg);
	wp->mm = mm;
	wp->write = write;
	wp->kaddr = kmap_local_page(wp->page);
	return 0;

out_unlock:
	mmap_read_unlock(mm);
out_mm:
	mm_charge_end(memcg);
	mmput_async(mm);
	return r;
}

static void kvm_window_put_page(struct kvm_window_page *wp)
{
	kunmap_local(wp->kaddr);
	mmap_read_unlock(wp->mm);
	/* This may wait for the folio's lock; the pin keeps it from being clean. */
	if (wp->write)
		unpin_user_pages_dirty_lock(&wp->page, 1, true);
	else
		put_page(wp->page);
	mmput_async(wp->mm);
}

/*
 * Aligned words are copied in one piece, vCPUs may use them meanwhile: page
 * table entries for one.
 */
static void kvm_window_load(void *data, const void *guest, int len)
{
	if (len == sizeof(u64) && IS_ALIGNED((unsigned long)guest, len))
		put_unaligned(READ_ONCE(*(const u64 *)guest), (u64 *)data);
	else if (len == sizeof(u32) && IS_ALIGNED((unsigned long)guest, len))
		put_unaligned(READ_ONCE(*(const u32 *)guest), (u32 *)data);
	else
		memcpy(data, guest, len);
}

static void kvm_window_store(void *guest, const void *data, int len)
{
	if (len == sizeof(u64) && IS_ALIGNED((unsigned long)guest, len))
		WRITE_ONCE(*(u64 *)guest, get_unaligned((const u64 *)data));
	else if (len == sizeof(u32) && IS_ALIGNED((unsigned long)guest, len))
		WRITE_ONCE(*(u32 *)guest, get_unaligned((const u32 *)data));
	else
		memcpy(guest, data, len);
}

/*
 * Read what is present in the space's page tables.
 *
 * Return: where the page is, without a reference to it; NULL if there is none.
 */
static const void *kvm_window_read_present(const struct kvm_memory_slot *slot,
					   gfn_t gfn, void *data, int offset,
					   int len)
{
	unsigned long addr = __gfn_to_hva_memslot(slot, gfn);
	struct page *page;
	const void *kaddr;

	if (slot->flags & KVM_MEMSLOT_INVALID || READ_ONCE(slot->space->dead))
		return NULL;
	if (!get_user_page_remote_fast_only(slot->space->client.mm, addr, 0, &page))
		return NULL;

	/* Not kmap_local_page(): callers keep it.  Spaces are for 64 bits only. */
	kaddr = page_address(page);
	kvm_window_load(data, kaddr + offset, len);
	put_page(page);
	return kaddr;
}

/* The running vCPU's entry for @gfn.  Only its thread uses it. */
static struct kvm_window_cached *kvm_window_cache_entry(const struct kvm *kvm,
							gfn_t gfn)
{
	struct kvm_vcpu *vcpu = kvm_get_running_vcpu();

	if (!vcpu || vcpu->kvm != kvm)
		return NULL;
	return &vcpu->window_cache[hash_64(gfn, KVM_WINDOW_CACHE_BITS)];
}

/*
 * Most of what is read is an entry of a page table.  That is a load that may
 * fault, but never for a page of the user's.
 */
static bool kvm_window_load_nofault(void *data, const void *kaddr, int len)
{
	if (likely(len == sizeof(u64) && IS_ALIGNED((unsigned long)kaddr, len))) {
		__get_kernel_nofault(data, kaddr, u64, fault);
		return true;
	}
	return !copy_from_kernel_nofault(data, kaddr, len);

fault:
	return false;
}

/*
 * Read what is present, at best where it was found before.  @seq was read before
 * mmu_invalidate_in_progress, and that was 0.
 */
static bool kvm_window_read_cached(const struct kvm_memory_slot *slot, gfn_t gfn,
				   void *data, int offset, int len,
				   unsigned long seq)
{
	struct kvm *kvm = slot->space->kvm;
	u64 gen = __kvm_memslots(kvm, slot->as_id)->generation;
	struct kvm_window_cached *cached = kvm_window_cache_entry(kvm, gfn);
	const void *kaddr;

	if (cached && cached->gfn == gfn && cached->slot == slot &&
	    cached->slots_generation == gen && cached->mmu_invalidate_seq == seq &&
	    time_before(jiffies, cached->expires) &&
	    kvm_window_load_nofault(data, cached->kaddr + offset, len))
		return true;

	kaddr = kvm_window_read_present(slot, gfn, data, offset, len);
	/*
	 * Should an invalidation have begun, nobody looks here until it ends, and
	 * that with another count.  Should the slots be changing, @slot may be of
	 * those before.
	 */
	if (kaddr && cached && !(gen & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS))
		*cached = (struct kvm_window_cached) {
			.slot = slot,
			.slots_generation = gen,
			.mmu_invalidate_seq = seq,
			.gfn = gfn,
			.kaddr = kaddr,
			/* To find it again makes the page young. */
			.expires = jiffies + HZ,
		};
	return kaddr;
}

/*
 * Read a few words that are present without taking a lock, as get_user() does:
 * KVM's page table walks live on that, and with them the emulation of MMIO.
 */
static bool kvm_window_read_lockless(const struct kvm_memory_slot *slot,
				     gfn_t gfn, void *data, int offset, int len)
{
	unsigned long seq;
	struct kvm *kvm;
	u64 words[2];

	if (len > sizeof(words) || !kvm_slot_space(slot))
		return false;

	kvm = slot->space->kvm;
	seq = READ_ONCE(kvm->mmu_invalidate_seq);
	/* Pairs with kvm_mmu_invalidate_end(). */
	smp_rmb();
	if (READ_ONCE(kvm->mmu_invalidate_in_progress) ||
	    !kvm_window_read_cached(slot, gfn, words, offset, len, seq))
		return false;
	/* What was read of a page is older than what these say of it. */
	smp_rmb();
	if (READ_ONCE(kvm->mmu_invalidate_in_progress))
		return false;
	/* Pairs with kvm_mmu_invalidate_end(). */
	smp_rmb();
	if (READ_ONCE(kvm->mmu_invalidate_seq) != seq)
		return false;

	if (likely(len == sizeof(u64)))
		put_unaligned(words[0], (u64 *)data);
	else
		memcpy(data, words, len);
	return true;
}

/*
 * Read without sleeping.  Callers hold mmu_lock, so that an invalidation, and
 * with it munmap(), waits for them: also what is being invalidated may be read.
 */
int kvm_window_read_atomic(const struct kvm_memory_slot *slot, gfn_t gfn,
			   void *data, int offset, int len)
{
	struct kvm *kvm = slot->space->kvm;
	bool done;

	lockdep_assert_held(&kvm->mmu_lock);

	if (kvm->mmu_invalidate_in_progress)
		done = kvm_window_read_present(slot, gfn, data, offset, len);
	else
		done = kvm_window_read_cached(slot, gfn, data, offset, len,
					      kvm->mmu_invalidate_seq);
	return done ? 0 : -EFAULT;
}

static noinline int kvm_window_read_locked(const struct kvm_memory_slot *slot,
					   gfn_t gfn, void *data, int offset,
					   int len)
{
	struct kvm_window_page wp;
	int r;

	r = kvm_window_get_page(slot, gfn, false, &wp);
	if (r)
		return r;
	kvm_window_load(data, wp.kaddr + offset, len);
	kvm_window_put_page(&wp);
	return 0;
}

int kvm_window_read(const struct kvm_memory_slot *slot, gfn_t gfn, void *data,
		    int offset, int len)
{
	if (kvm_window_read_lockless(slot, gfn, data, offset, len))
		return 0;
	return kvm_window_read_locked(slot, gfn, data, offset, len);
}

int kvm_window_write(const struct kvm_memory_slot *slot, gfn_t gfn,
		     const void *data, int offset, int len)
{
	struct kvm_window_page wp;
	int r;

	r = kvm_window_get_page(slot, gfn, true, &wp);
	if (r)
		return r;
	kvm_window_store(wp.kaddr + offset, data, len);
	kvm_window_put_page(&wp);
	return 0;
}

static bool kvm_window_try_cmpxchg(void *p, void *old, const void *new, int len)
{
	switch (len) {
	case 1:
		return try_cmpxchg((u8 *)p, (u8 *)old, *(const u8 *)new);
	case 2:
		return try_cmpxchg((u16 *)p, (u16 *)old, *(const u16 *)new);
	case 4:
		return try_cmpxchg((u32 *)p, (u32 *)old, *(const u32 *)new);
	default:
		return try_cmpxchg((u64 *)p, (u64 *)old, *(const u64 *)new);
	}
}

/*
 * Exchange a word in a page that is present and writable.  An invalidation that
 * would take the page away, or clean it, has to wait for mmu_lock.
 *
 * Return: as kvm_window_cmpxchg(), or -EAGAIN.
 */
static int kvm_window_cmpxchg_present(const struct kvm_memory_slot *slot,
				      gfn_t gfn, int offset, void *old,
				      const void *new, int len)
{
	struct kvm *kvm = slot->space->kvm;
	struct page *page;
	int r = -EAGAIN;
	void *kaddr;

	read_lock(&kvm->mmu_lock);
	if (kvm->mmu_invalidate_in_progress ||
	    slot->flags & (KVM_MEMSLOT_INVALID | KVM_MEM_READONLY) ||
	    READ_ONCE(slot->space->dead) ||
	    !get_user_page_remote_fast_only(slot->space->client.mm,
					    __gfn_to_hva_memslot(slot, gfn),
					    FOLL_WRITE, &page))
		goto out;

	kaddr = kmap_local_page(page);
	r = !kvm_window_try_cmpxchg(kaddr + offset, old, new, len);
	kunmap_local(kaddr);
	/* Not SetPageDirty(): what may be the first store has to be written back. */
	folio_mark_dirty(page_folio(page));
	put_page(page);
out:
	read_unlock(&kvm->mmu_lock);
	return r;
}

/**
 * kvm_window_cmpxchg() - __try_cmpxchg_user() for guest memory in a window
 * @slot: a window
 * @gfn: a frame in it
 * @offset: in the frame, aligned to @len
 * @old: what is expected; what was found, if it was another value
 * @new: what to write
 * @len: 1, 2, 4 or 8
 *
 * The caller marks the page dirty in the slot.
 *
 * Return: 0 if the value was exchanged, 1 if not; -ENOENT where the access is to
 * be taken for MMIO, -EFAULT.
 */
int kvm_window_cmpxchg(const struct kvm_memory_slot *slot, gfn_t gfn, int offset,
		       void *old, const void *new, int len)
{
	struct kvm_window_page wp;
	int r;

	if (WARN_ON_ONCE(len > sizeof(u64) || !is_power_of_2(len)))
		return -EFAULT;

	if (kvm_slot_space(slot)) {
		r = kvm_window_cmpxchg_present(slot, gfn, offset, old, new, len);
		if (r != -EAGAIN)
			return r;
	}

	r = kvm_window_get_page(slot, gfn, true, &wp);
	if (r)
		return r;
	r = !kvm_window_try_cmpxchg(wp.kaddr + offset, old, new, len);
	kvm_window_put_page(&wp);
	return r;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Windows: memslots that show part of an empty address space
 *
 * A space is an mm that no task uses, owned by a file (an asfd, see
 * Documentation/mm/address_space.rst).  A window is a memslot whose
 * userspace_addr is an address in the space's mm: guest faults are resolved
 * there, and the VMM process needs no mapping of the memory.
 *
 * A window has no hva.  gfn_to_hva() and its like fail for it, so a place in
 * KVM that has not learned of windows gets an error and never reads or writes
 * the VMM's own memory at what is an address in somebody else's mm.
 *
 * Invalidation
 *
 * Each (VM, space) pair has a binding, struct kvm_space, with a notifier on the
 * space's mm.  The callbacks are those of the notifier on kvm->mm; each handles
 * the slots of its own binding only.  Both raise the same per-VM counters, so a
 * fault is retried whichever of them started after its sequence count was read.
 *
 * Life
 *
 * The space's file alone keeps the space alive.  A binding holds mm_count, and
 * takes mm_users only for the time of one access, giving it back with
 * mmput_async(): the last mm_users must not be torn down under kvm->srcu.
 * When the last file is gone, and before the mm is torn down,
 * kvm_space_release() runs.  The order in it carries the argument that no page
 * of the space can be reached by a vCPU afterwards:
 *
 *  1. @dead is set: from here on a fault resolves to a hole.
 *  2. An invalidation of the whole mm is started and ended.  It drops the SPTEs
 *     and flushes TLBs, as the vCPUs may be running; kvm_flush_shadow_all()
 *     would not do, it does not flush.  A fault that did not see @dead
 *     read mmu_invalidate_seq before the end of this invalidation, so it is
 *     retried and sees it then (see kvm_space_kill()).
 *  3. The notifier is unregistered.  Another thread may just then be between
 *     invalidate_range_start() and invalidate_range_end(), e.g. an rmap walk on
 *     behalf of a truncated file; its end is lost.
 *  4. Hence what starts without an end have added to the VM's counters is taken
 *     off (kvm_space_settle()), under the locks of these counters.  Otherwise
 *     kvm_swap_active_memslots() would wait for ever.  That the walk goes on
 *     is harmless: because of 1 and 2 there is nothing left for it to zap.
 *
 * kvm_space_release() takes no reference on the VM and no lock that is held
 * across asfd_client_unregister().  A VM being destroyed waits in there until a
 * release under way has returned, so the VM is there as long as release runs.
 *
 * Should the mm be torn down while the VM is destroyed (after the binding
 * has left the space's list of clients, before its notifier is unregistered),
 * the notifier's own release callback does 1 and 2.
 *
 * Walks without a lock
 *
 * kvm_slot_mm()'s page tables are walked with interrupts off and without
 * mm_users, by host_pfn_mapping_level() and by GUP-fast.  The pgd is there as
 * long as mm_count; the tables below are freed by tlb_remove_table(), which
 * waits for such a walk on any CPU (RCU, or an IPI to all CPUs), also in
 * exit_mmap(), and also for an mm that runs on no CPU.
 *
 * A store made so could not be taken back: kvm_window_cmpxchg() makes it under
 * mmu_lock, which holds off invalidations.
 *
 * Reads without a lock
 *
 * kvm_window_read() reads a few words so, and forgets what it has read if there
 * was an invalidation meanwhile: munmap() may have returned before.
 *
 * Each vCPU keeps where it found its last pages, without a reference to them.
 * That is good as long as an SPTE would be: no invalidation is in progress, none
 * has ended since (mmu_invalidate_seq), and the slot is still that one (the
 * slots' generation).  Without a lock a page may be freed between that check and
 * the read.  What is then read of somebody else's memory is forgotten, too, and
 * it may have left the direct map, hence the nofault accessors.
 *
 * Lock order
 *
 *  slots_lock
 *    mmap_lock of the space's mm (mmu_notifier_register(): write; accesses: read)
 *      i_mmap_rwsem, anon_vma, page table locks of the mm
 *        mn_invalidate_lock / gpc_lock / mmu_lock
 *
 * kvm->srcu is held around mmap_lock.  Nothing takes slots_lock, or waits for
 * kvm->srcu, under mmap_lock.
 */
#include <linux/file.h>
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
#include "kvm_mm.h"

struct mm_struct *kvm_slot_mm(struct kvm *kvm, const struct kvm_memory_slot *slot)
{
	return slot->space ? slot->space->client.mm : kvm->mm;
}

/* Make all windows of @space holes: steps 1 and 2 above. */
static void kvm_space_kill(struct kvm_space *space)
{
	struct mmu_notifier_range range = {
		.mm = space->mn.mm,
		.start = 0,
		.end = ULONG_MAX,
		.flags = MMU_NOTIFIER_RANGE_BLOCKABLE,
		.event = MMU_NOTIFY_RELEASE,
	};

	WRITE_ONCE(space->dead, true);
	/*
	 * Order @dead before the increments of mmu_invalidate_seq and
	 * gpc_invalidate_seq at the end of the invalidation: who reads the new
	 * count, and then (after an smp_rmb()) @dead, finds it set.  Who reads
	 * the old count retries.
	 */
	smp_wmb();
	space->mn.ops->invalidate_range_start(&space->mn, &range);
	space->mn.ops->invalidate_range_end(&space->mn, &range);
}

/* The mm is torn down under a VM that is being destroyed. */
void kvm_space_mn_release(struct mmu_notifier *mn, struct mm_struct *mm)
{
	struct kvm_space *space = kvm_mn_to_space(mn);

	/* mmu_notifier_unregister() calls this as well, after the kill. */
	if (!READ_ONCE(space->dead))
		kvm_space_kill(space);
}

/*
 * Take off the VM's counters what lost ends would have taken off.  To be called
 * when the notifier is unregistered: no callback runs, the counts are stable.
 */
static void kvm_space_settle(struct kvm_space *space)
{
	struct kvm *kvm = space->kvm;
	bool wake;

	KVM_MMU_LOCK(kvm);
	kvm->mmu_invalidate_seq++;
	/* As in kvm_mmu_invalidate_end(). */
	smp_wmb();
	kvm->mmu_invalidate_in_progress -= atomic_read(&space->found);
	KVM_BUG_ON(kvm->mmu_invalidate_in_progress < 0, kvm);
	KVM_MMU_UNLOCK(kvm);

	spin_lock(&kvm->mn_invalidate_lock);
	kvm->gpc_invalidate_seq++;
	/* As in kvm_mmu_notifier_invalidate_range_end(). */
	smp_wmb();
	kvm->mn_active_invalidate_count -= atomic_read(&space->starts);
	wake = !kvm->mn_active_invalidate_count;
	spin_unlock(&kvm->mn_invalidate_lock);

	if (wake)
		rcuwait_wake_up(&kvm->mn_memslots_update_rcuwait);

	atomic_set(&space->found, 0);
	atomic_set(&space->starts, 0);
}

static void kvm_space_unbind(struct kvm_space *space)
{
	kvm_space_kill(space);
	mmu_notifier_unregister(&space->mn, space->mn.mm);
	kvm_space_settle(space);
	space->bound = false;
}

/* The space has lost its last file. */
static void kvm_space_release(struct asfd_client *client)
{
	kvm_space_unbind(container_of(client, struct kvm_space, client));
}

/* Afterwards @space is but a mark that its windows are holes. */
static void kvm_space_end(struct kvm_space *space)
{
	/* Waits for a release under way; there will be none after this. */
	asfd_client_unregister(&space->client);
	if (space->bound)
		kvm_space_unbind(space);
}

static void kvm_space_free(struct kvm_space *space)
{
	list_del(&space->link);
	kfree(space);
}

/* The VM is being destroyed, no vCPU runs any more. */
void kvm_spaces_end(struct kvm *kvm)
{
	struct kvm_space *space;

	list_for_each_entry(space, &kvm->spaces, link) {
		asfd_client_windows(&space->client, -(long)space->windows);
		kvm_space_end(space);
	}
}

/* Only with the memslots: what destroys vCPUs may still write to guest memory. */
void kvm_spaces_free(struct kvm *kvm)
{
	struct kvm_space *space, *tmp;

	list_for_each_entry_safe(space, tmp, &kvm->spaces, link)
		kvm_space_free(space);
}

/* Others may keep the lock of the space: do not make the caller unkillable. */
static int kvm_space_register_mn(struct kvm_space *space)
{
	struct mm_struct *mm = space->client.mm;
	int r = mmap_write_lock_killable(mm);

	if (!r) {
		r = __mmu_notifier_register(&space->mn, mm);
		mmap_write_unlock(mm);
	}
	/* mm_take_all_locks() gives up for any signal. */
	return r == -EINTR ? -ERESTARTNOINTR : r;
}

/* Find or make the VM's binding to the space behind @file, an asfd. */
static struct kvm_space *kvm_space_bind(struct kvm *kvm, struct file *file)
{
	struct kvm_space *space;
	int r;

	lockdep_assert_held(&kvm->slots_lock);

	list_for_each_entry(space, &kvm->spaces, link) {
		/* @file keeps its space alive, and mm_count the others' mm. */
		if (space->client.mm == asfd_mm(file))
			return space;
	}

	space = kzalloc_obj(*space, GFP_KERNEL_ACCOUNT);
	if (!space)
		return ERR_PTR(-ENOMEM);

	space->kvm = kvm;
	space->mn.ops = &kvm_space_mn_ops;
	space->client.release = kvm_space_release;
	r = asfd_client_register(file, &space->client);
	if (r)
		goto err_free;

	/* @file holds mm_users for as long as this takes. */
	r = kvm_space_register_mn(space);
	if (r)
		goto err_unregister;

	space->bound = true;
	list_add(&space->link, &kvm->spaces);
	return space;

err_unregister:
	asfd_client_unregister(&space->client);
err_free:
	kfree(space);
	return ERR_PTR(r);
}

/*
 * Without a window there is nothing to be notified of, and invalidations by others
 * had better not delay the VM.  No slot that a reader can have points here.
 */
static void kvm_space_drop_unused(struct kvm_space *space)
{
	if (space->windows)
		return;

	kvm_space_end(space);
	kvm_space_free(space);
}

void kvm_space_commit_memslot(struct kvm_memory_slot *old,
			      const struct kvm_memory_slot *new,
			      enum kvm_mr_change change)
{
	struct kvm_space *space;
	int delta;

	if (change == KVM_MR_CREATE) {
		space = new->space;
		delta = 1;
	} else if (change == KVM_MR_DELETE) {
		space = old->space;
		delta = -1;
	} else {
		return;
	}

	if (space) {
		space->windows += delta;
		asfd_client_windows(&space->client, delta);
		kvm_space_drop_unused(space);
	}
}

/**
 * kvm_forbid_windows() - say that a VM's memory will be encrypted
 * @kvm: the VM
 *
 * Pages of a space may be replaced at any time, encrypted memory may not.
 *
 * Return: 0, and the VM will have no windows; -EINVAL if it has one.
 */
int kvm_forbid_windows(struct kvm *kvm)
{
	struct kvm_space *space;

	guard(mutex)(&kvm->slots_lock);

	list_for_each_entry(space, &kvm->spaces, link) {
		if (space->windows)
			return -EINVAL;
	}
	kvm->no_windows = true;
	return 0;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_forbid_windows);

int kvm_vm_ioctl_map_address_space(struct kvm *kvm,
				   const struct kvm_map_address_space *args)
{
	struct kvm_userspace_memory_region2 mem = {
		.slot = args->slot,
		.flags = args->flags,
		.guest_phys_addr = args->guest_phys_addr,
		.memory_size = args->memory_size,
	};
	struct kvm_space *space;
	unsigned long addr;
	int r;

	if ((u16)args->slot >= KVM_USER_MEM_SLOTS || args->pad1 ||
	    memchr_inv(args->pad2, 0, sizeof(args->pad2)))
		return -EINVAL;
	if (args->flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY |
			    KVM_MEM_HOLE_EXIT))
		return -EINVAL;

	guard(mutex)(&kvm->slots_lock);

	if (!args->memory_size) {
		mem.flags = 0;
		return kvm_set_memory_region(kvm, &mem, NULL);
	}

	if (!PAGE_ALIGNED(args->memory_size | args->offset |
			  args->guest_phys_addr))
		return -EINVAL;

	CLASS(fd, f)(args->asfd);
	if (fd_empty(f))
		return -EBADF;

	r = asfd_window_check(fd_file(f), args->offset, args->memory_size,
			      !(args->flags & KVM_MEM_READONLY), &addr);
	if (r)
		return r;

	/* Whose private memory it is, KVM could not tell. */
	if (kvm->no_windows || kvm_arch_has_private_mem(kvm))
		return -EINVAL;

	space = kvm_space_bind(kvm, fd_file(f));
	if (IS_ERR(space))
		return PTR_ERR(space);

	mem.userspace_addr = addr;
	r = kvm_set_memory_region(kvm, &mem, space);
	if (r)
		kvm_space_drop_unused(space);
	return r;
}

/* What an access gets that GUP could not serve; under mmap_lock. */
static kvm_pfn_t kvm_window_why(struct mm_struct *mm, unsigned long addr,
				unsigned int flags)
{
	struct vm_area_struct *vma = vma_lookup(mm, addr);

	if (!vma)
		return KVM_PFN_ERR_HOLE;
	if (!(vma->vm_flags & VM_READ))
		return KVM_PFN_ERR_FAULT;
	if ((flags & FOLL_WRITE) && !(vma->vm_flags & VM_WRITE))
		return KVM_PFN_ERR_RO_FAULT;
	return KVM_PFN_ERR_FAULT;
}

static kvm_pfn_t kvm_window_resolve(struct kvm_follow_pfn *kfp,
				    struct page *page, bool writable)
{
	if (kfp->map_writable)
		*kfp->map_writable = writable;
	*kfp->refcounted_page = page;
	return page_to_pfn(page);
}

static kvm_pfn_t __kvm_window_to_pfn(struct kvm_follow_pfn *kfp,
				     struct mm_struct *mm)
{
	unsigned int flags = FOLL_HWPOISON | FOLL_HONOR_NUMA_FAULT | kfp->flags;
	unsigned long addr = kfp->hva;
	struct page *page, *wpage;
	int locked, tries = 0;
	kvm_pfn_t pfn;
	long r;

retry:
	if (mmap_read_lock_killable(mm))
		return KVM_PFN_ERR_SIGPENDING;

	locked = 1;
	if (kfp->pin)
		r = pin_user_pages_remote(mm, addr, 1, flags, &page, &locked);
	else
		r = get_user_pages_remote(mm, addr, 1, flags, &page, &locked);

	if (r == 1) {
		if (locked)
			mmap_read_unlock(mm);

		/* Map a read fault as writable if possible. */
		if (!(flags & FOLL_WRITE) && kfp->map_writable &&
		    get_user_page_remote_fast_only(mm, addr, FOLL_WRITE, &wpage)) {
			put_page(page);
			page = wpage;
			flags |= FOLL_WRITE;
		}
		return kvm_window_resolve(kfp, page, flags & FOLL_WRITE);
	}

	if (r == -EINTR || r == -EAGAIN) {
		pfn = KVM_PFN_ERR_SIGPENDING;
	} else if (r == -EHWPOISON) {
		pfn = KVM_PFN_ERR_HWPOISON;
	} else if (!r && (flags & FOLL_NOWAIT)) {
		/* It would have to wait, whereas a failure is an error. */
		pfn = KVM_PFN_ERR_NEEDS_IO;
	} else if (locked) {
		pfn = kvm_window_why(mm, addr, flags);
	} else if (tries++ < 3) {
		/*
		 * GUP has given up the lock in between: what is mapped now need
		 * not be what failed.  Try again until both are seen under one
		 * lock, but do not let a mapping that keeps changing, or a file
		 * that keeps failing, hold the vCPU for ever.
		 */
		goto retry;
	} else {
		pfn = KVM_PFN_ERR_FAULT;
	}

	if (locked)
		mmap_read_unlock(mm);
	return pfn;
}

/**
 * kvm_window_to_pfn() - hva_to_pfn() for a window
 * @kfp: with @slot a window and @hva an address in its space's mm
 *
 * Return: as hva_to_pfn(); KVM_PFN_ERR_HOLE where nothing is mapped or the
 * space has ended, KVM_PFN_ERR_RO_FAULT for a write to a read-only mapping.
 */
kvm_pfn_t kvm_window_to_pfn(struct kvm_follow_pfn *kfp)
{
	struct kvm_space *space = kfp->slot->space;
	struct mm_struct *mm = space->client.mm;
	struct mem_cgroup *memcg;
	struct page *page;
	kvm_pfn_t pfn;

	/* Pairs with kvm_space_kill(); the caller has read the seqcount. */
	if (READ_ONCE(space->dead))
		return KVM_PFN_ERR_HOLE;

	/* As in hva_to_pfn_fast(), but GUP-fast takes no pins in another mm. */
	if (!kfp->pin && ((kfp->flags & FOLL_WRITE) || kfp->map_writable) &&
	    get_user_page_remote_fast_only(mm, kfp->hva, FOLL_WRITE, &page))
		return kvm_window_resolve(kfp, page, true);

	if (!mmget_not_zero(mm))
		return KVM_PFN_ERR_HOLE;
	memcg = mm_charge_begin(mm);
	pfn = __kvm_window_to_pfn(kfp, mm);
	mm_charge_end(memcg);
	mmput_async(mm);
	return pfn;
}

/* The pages from @gfn on that are present and writable; under mmu_lock. */
int kvm_window_prefetch_pages(const struct kvm_memory_slot *slot, gfn_t gfn,
			      struct page **pages, int nr_pages)
{
	unsigned long addr = kvm_window_addr(slot, gfn);
	int n;

	if (kvm_is_error_hva(addr) || READ_ONCE(slot->space->dead))
		return -1;
	if (slot->base_gfn + slot->npages - gfn < nr_pages)
		return 0;

	for (n = 0; n < nr_pages; n++) {
		if (!get_user_page_remote_fast_only(slot->space->client.mm,
						    addr + n * PAGE_SIZE,
						    FOLL_WRITE, &pages[n]))
			break;
	}
	return n;
}

#ifdef CONFIG_KVM_ASYNC_PF
/* What async_pf_execute() does for an ordinary slot; who waits will try again. */
void kvm_window_fault_in(const struct kvm_async_pf *apf)
{
	struct mm_struct *mm = apf->window_mm;
	struct mem_cgroup *memcg;
	int locked = 1;

	if (!mmget_not_zero(mm))
		return;

	memcg = mm_charge_begin(mm);
	mmap_read_lock(mm);
	get_user_pages_remote(mm, apf->addr, 1,
			      apf->window_write ? FOLL_WRITE : 0, NULL, &locked);
	if (locked)
		mmap_read_unlock(mm);
	mm_charge_end(memcg);
	mmput_async(mm);
}
#endif

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

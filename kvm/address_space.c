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
 * A store made so could not be taken back, and what was read may be gone: how
 * KVM itself reads and writes is in address_space_access.c.
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
#include <linux/kvm_host.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>

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
kvm_pfn_t kvm_window_why(struct mm_struct *mm, unsigned long addr,
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

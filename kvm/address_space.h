/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_ADDRESS_SPACE_H__
#define __KVM_ADDRESS_SPACE_H__ 1

#include <linux/address_space_fd.h>
#include <linux/kvm_host.h>
#include <linux/mmu_notifier.h>

struct kvm_follow_pfn;

/**
 * struct kvm_space - a VM's binding to an empty address space
 * @client: the registration with the space; holds mm_count of its mm
 * @mn: KVM's notifier on that mm
 * @kvm: the VM
 * @link: in kvm->spaces, protected by slots_lock
 * @windows: slots that show the space, protected by slots_lock
 * @starts: invalidations started and not yet ended
 * @found: how many of @starts raised mmu_invalidate_in_progress
 * @dead: the space has ended, all its windows are holes; never cleared
 * @bound: @mn is registered
 *
 * Made by the first window of a VM on a space, freed with the last one or when
 * the VM is destroyed, in any case after the memslots that point to it.
 */
struct kvm_space {
	struct asfd_client client;
	struct mmu_notifier mn;
	struct kvm *kvm;
	struct list_head link;
	unsigned long windows;
	atomic_t starts;
	atomic_t found;
	bool dead;
	bool bound;
};

#ifdef CONFIG_KVM_ADDRESS_SPACE
extern const struct mmu_notifier_ops kvm_space_mn_ops;

/* The binding behind one of KVM's notifiers, NULL for the one on kvm->mm. */
static inline struct kvm_space *kvm_mn_to_space(struct mmu_notifier *mn)
{
	if (mn->ops != &kvm_space_mn_ops)
		return NULL;
	return container_of(mn, struct kvm_space, mn);
}

static inline void kvm_space_count_start(struct kvm_space *space, bool found)
{
	if (space) {
		atomic_inc(&space->starts);
		atomic_add(found, &space->found);
	}
}

static inline void kvm_space_count_end(struct kvm_space *space, bool found)
{
	if (space) {
		atomic_dec(&space->starts);
		atomic_sub(found, &space->found);
	}
}

static inline void kvm_slot_set_space(struct kvm_memory_slot *slot,
				      struct kvm_space *space)
{
	slot->space = space;
}

/* The address of @gfn in the mm of a window's space, as if for a write. */
static inline unsigned long kvm_window_addr(const struct kvm_memory_slot *slot,
					    gfn_t gfn)
{
	if (slot->flags & (KVM_MEMSLOT_INVALID | KVM_MEM_READONLY))
		return KVM_HVA_ERR_BAD;
	return __gfn_to_hva_memslot(slot, gfn);
}

static inline bool kvm_gpc_in_space(struct gfn_to_pfn_cache *gpc,
				    struct kvm_space *space)
{
	return gpc->space == space;
}

/* Returns true if the cache was in another space before. */
static inline bool kvm_gpc_set_space(struct gfn_to_pfn_cache *gpc,
				     struct kvm_space *space)
{
	bool changed = gpc->space != space;

	gpc->space = space;
	return changed;
}

static inline void kvm_spaces_init(struct kvm *kvm)
{
	INIT_LIST_HEAD(&kvm->spaces);
}

#ifdef CONFIG_KVM_ASYNC_PF
/* A binding may end before the work does: hold the mm itself. */
static inline void kvm_async_pf_get_window(struct kvm_async_pf *apf,
					   const struct kvm_memory_slot *slot,
					   bool write)
{
	apf->window_write = write;
	apf->window_mm = slot ? slot->space->client.mm : NULL;
	if (apf->window_mm)
		mmgrab(apf->window_mm);
}

static inline void kvm_async_pf_put_window(struct kvm_async_pf *apf)
{
	if (apf->window_mm)
		mmdrop(apf->window_mm);
}

static inline bool kvm_async_pf_in_window(const struct kvm_async_pf *apf)
{
	return apf->window_mm;
}

void kvm_window_fault_in(const struct kvm_async_pf *apf);
#endif

void kvm_spaces_end(struct kvm *kvm);
void kvm_spaces_free(struct kvm *kvm);
void kvm_space_mn_release(struct mmu_notifier *mn, struct mm_struct *mm);
void kvm_space_commit_memslot(struct kvm_memory_slot *old,
			      const struct kvm_memory_slot *new,
			      enum kvm_mr_change change);
kvm_pfn_t kvm_window_why(struct mm_struct *mm, unsigned long addr,
			 unsigned int flags);
kvm_pfn_t kvm_window_to_pfn(struct kvm_follow_pfn *kfp);
int kvm_window_prefetch_pages(const struct kvm_memory_slot *slot, gfn_t gfn,
			      struct page **pages, int nr_pages);
int kvm_window_read(const struct kvm_memory_slot *slot, gfn_t gfn, void *data,
		    int offset, int len);
int kvm_window_read_atomic(const struct kvm_memory_slot *slot, gfn_t gfn,
			   void *data, int offset, int len);
int kvm_window_write(const struct kvm_memory_slot *slot, gfn_t gfn,
		     const void *data, int offset, int len);
int kvm_vm_ioctl_map_address_space(struct kvm *kvm,
				   const struct kvm_map_address_space *args);
#else
static inline struct kvm_space *kvm_mn_to_space(struct mmu_notifier *mn)
{
	return NULL;
}

static inline void kvm_space_count_start(struct kvm_space *space, bool found) {}
static inline void kvm_space_count_end(struct kvm_space *space, bool found) {}
static inline void kvm_slot_set_space(struct kvm_memory_slot *slot,
				      struct kvm_space *space) {}

static inline unsigned long kvm_window_addr(const struct kvm_memory_slot *slot,
					    gfn_t gfn)
{
	return KVM_HVA_ERR_BAD;
}

static inline bool kvm_gpc_in_space(struct gfn_to_pfn_cache *gpc,
				    struct kvm_space *space)
{
	return true;
}

static inline bool kvm_gpc_set_space(struct gfn_to_pfn_cache *gpc,
				     struct kvm_space *space)
{
	return false;
}

#ifdef CONFIG_KVM_ASYNC_PF
static inline void kvm_async_pf_get_window(struct kvm_async_pf *apf,
					   const struct kvm_memory_slot *slot,
					   bool write) {}
static inline void kvm_async_pf_put_window(struct kvm_async_pf *apf) {}

static inline bool kvm_async_pf_in_window(const struct kvm_async_pf *apf)
{
	return false;
}

static inline void kvm_window_fault_in(const struct kvm_async_pf *apf) {}
#endif

static inline void kvm_spaces_init(struct kvm *kvm) {}
static inline void kvm_spaces_end(struct kvm *kvm) {}
static inline void kvm_spaces_free(struct kvm *kvm) {}
static inline void kvm_space_commit_memslot(struct kvm_memory_slot *old,
					    const struct kvm_memory_slot *new,
					    enum kvm_mr_change change) {}

static inline kvm_pfn_t kvm_window_to_pfn(struct kvm_follow_pfn *kfp)
{
	return KVM_PFN_ERR_FAULT;
}

static inline int kvm_window_prefetch_pages(const struct kvm_memory_slot *slot,
					    gfn_t gfn, struct page **pages,
					    int nr_pages)
{
	return -1;
}

static inline int kvm_window_read(const struct kvm_memory_slot *slot, gfn_t gfn,
				  void *data, int offset, int len)
{
	return -EFAULT;
}

static inline int kvm_window_read_atomic(const struct kvm_memory_slot *slot,
					 gfn_t gfn, void *data, int offset,
					 int len)
{
	return -EFAULT;
}

static inline int kvm_window_write(const struct kvm_memory_slot *slot,
				   gfn_t gfn, const void *data, int offset,
				   int len)
{
	return -EFAULT;
}
#endif /* CONFIG_KVM_ADDRESS_SPACE */

/* In kvm_main.c; @space is NULL for an ordinary slot. */
int kvm_set_memory_region(struct kvm *kvm,
			  const struct kvm_userspace_memory_region2 *mem,
			  struct kvm_space *space);

#endif /* __KVM_ADDRESS_SPACE_H__ */

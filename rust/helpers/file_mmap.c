// SPDX-License-Identifier: GPL-2.0

#include <linux/backing-dev.h>
#include <linux/fs.h>
#include <linux/fsnotify.h>
#include <linux/hugetlb.h>
#include <linux/magic.h>
#include <linux/security.h>
#include <linux/shmem_fs.h>

/* Size in bytes of the huge pages of a hugetlbfs file, 0 for others. */
__rust_helper unsigned long rust_helper_file_hugetlb_page_size(struct file *file)
{
	return is_file_hugepages(file) ? huge_page_size(hstate_file(file)) : 0;
}

/*
 * Are faults on a mapping of this file served from the page cache alone? That
 * a file is regular does not tell: those of procfs and sysfs are, too. They have
 * nothing to write back to, whereas what a disk or a network holds has, and
 * tmpfs and ramfs are known. Files on flash may be mapped without page cache.
 */
__rust_helper bool rust_helper_file_in_page_cache(struct file *file)
{
	const struct inode *inode = d_real_inode(file_dentry(file));

	if (!inode || !S_ISREG(inode->i_mode) || IS_DAX(inode) ||
	    IS_ANON_FILE(inode))
		return false;
	if (shmem_mapping(inode->i_mapping) ||
	    inode->i_sb->s_magic == RAMFS_MAGIC)
		return true;
	return inode->i_sb->s_bdi != &noop_backing_dev_info &&
	       !inode->i_sb->s_mtd &&
	       inode->i_mapping->a_ops->read_folio;
}

/* Has the kind of file opted in to be mapped where no task runs? */
__rust_helper bool rust_helper_file_mmap_ownerless(struct file *file)
{
	return file->f_op->fop_flags & FOP_MMAP_OWNERLESS;
}

/* What opening by path does for a file with a position: lock it, allow pread(). */
__rust_helper void rust_helper_file_has_position(struct file *file)
{
	file->f_mode |= FMODE_ATOMIC_POS | FMODE_PREAD | FMODE_PWRITE;
}

__rust_helper int rust_helper_file_may_mmap(struct file *file, unsigned long prot,
					    unsigned long flags, loff_t offset,
					    size_t len)
{
	int err = security_mmap_file(file, prot, flags);

	return err ?: fsnotify_mmap_perm(file, prot, offset, len);
}

/* Size in bytes of the huge pages of 1 << @log bytes, 0 if there are none. */
__rust_helper unsigned long rust_helper_hugetlb_page_size(int log)
{
	struct hstate *h = hstate_sizelog(log);

	return h ? huge_page_size(h) : 0;
}

__rust_helper struct file *rust_helper_hugetlb_anon_file(size_t len, int log)
{
	return hugetlb_file_setup(HUGETLB_ANON_FILE, len,
				  mk_vma_flags(VMA_NORESERVE_BIT),
				  HUGETLB_ANONHUGE_INODE, log);
}

/* In how many areas the files of this inode are mapped. */
__rust_helper unsigned long rust_helper_mapping_count_vmas(struct address_space *mapping)
{
	struct vm_area_struct *vma;
	unsigned long count = 0;

	i_mmap_lock_read(mapping);
	mapping_rmap_tree_foreach(vma, mapping, 0, ULONG_MAX)
		count++;
	i_mmap_unlock_read(mapping);
	return count;
}

__rust_helper int rust_helper_mapping_mapped(const struct address_space *mapping)
{
	return mapping_mapped(mapping);
}

__rust_helper void rust_helper_mapping_set_lock_class(struct address_space *mapping,
						      struct lock_class_key *key)
{
	lockdep_set_class(&mapping->i_mmap_rwsem, key);
}

__rust_helper vm_flags_t rust_helper_vma_desc_flags(const struct vm_area_desc *desc)
{
	return vma_flags_to_legacy(desc->vma_flags);
}

__rust_helper void rust_helper_vma_desc_set_flags(struct vm_area_desc *desc,
						  vm_flags_t flags)
{
	desc->vma_flags = legacy_to_vma_flags(flags);
}

__rust_helper unsigned long
rust_helper_file_huge_unmapped_area(struct file *file, unsigned long addr,
				    unsigned long len, unsigned long pgoff,
				    unsigned long flags)
{
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	return thp_get_unmapped_area(file, addr, len, pgoff, flags);
#else
	return mm_get_unmapped_area(file, addr, len, pgoff, flags);
#endif
}

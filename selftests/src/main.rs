// SPDX-License-Identifier: GPL-2.0

//! Tests of the promises of the address space interface.
//!
//! Runs as root on a kernel with `CONFIG_ADDRESS_SPACE_FD` and prints KTAP. Each test is a
//! process of its own: one that crashes or hangs fails alone.

mod advise;
mod bad_changes;
mod ceilings;
mod create;
mod doors;
mod fixed;
mod harness;
mod io;
mod kinds;
mod kvm;
mod kvm_accesses;
mod kvm_api;
mod kvm_async;
mod kvm_atomics;
mod kvm_clock_races;
mod kvm_close_races;
mod kvm_close_stress;
mod kvm_compose;
mod kvm_deputy;
mod kvm_dirty;
mod kvm_dirty_races;
mod kvm_doors;
mod kvm_holes;
mod kvm_huge;
mod kvm_hyperv;
mod kvm_interrupts;
mod kvm_life;
mod kvm_orders;
mod kvm_paravirt;
mod kvm_poison;
mod kvm_prefault;
mod kvm_races;
mod kvm_running;
mod kvm_smm;
mod kvm_strings;
mod kvm_walks;
mod kvm_xen;
mod life;
mod memcg;
mod mirror;
mod mirror_dirty;
mod mirror_faults;
mod mirror_fuse;
mod mirror_guest;
mod mirror_gup;
mod mirror_huge;
mod mirror_io;
mod mirror_kinds;
mod mirror_live;
mod mirror_locks;
mod mirror_losses;
mod mirror_memcg;
mod mirror_moves;
mod mirror_nesting;
mod mirror_pass_model;
mod mirror_pass_races;
mod mirror_passes;
mod mirror_races;
mod mirror_readonly;
mod mirror_remote;
mod mirror_use;
mod mmap_args;
mod model;
mod munmap;
mod protect;
mod query;
mod races;
mod seal_races;
mod shrink;
mod support;
mod travels;

fn main() -> std::process::ExitCode {
    harness::main(&[
        create::TESTS,
        mmap_args::TESTS,
        kinds::TESTS,
        fixed::TESTS,
        munmap::TESTS,
        io::TESTS,
        query::TESTS,
        life::TESTS,
        doors::TESTS,
        ceilings::TESTS,
        bad_changes::TESTS,
        shrink::TESTS,
        travels::TESTS,
        protect::TESTS,
        advise::TESTS,
        seal_races::TESTS,
        memcg::TESTS,
        kvm_api::TESTS,
        kvm_async::TESTS,
        kvm::TESTS,
        kvm_holes::TESTS,
        kvm_huge::TESTS,
        kvm_dirty::TESTS,
        kvm_dirty_races::TESTS,
        kvm_compose::TESTS,
        kvm_smm::TESTS,
        kvm_orders::TESTS,
        kvm_races::TESTS,
        kvm_close_races::TESTS,
        kvm_clock_races::TESTS,
        kvm_running::TESTS,
        kvm_life::TESTS,
        kvm_deputy::TESTS,
        kvm_doors::TESTS,
        kvm_accesses::TESTS,
        kvm_strings::TESTS,
        kvm_walks::TESTS,
        kvm_atomics::TESTS,
        kvm_prefault::TESTS,
        kvm_poison::TESTS,
        kvm_paravirt::TESTS,
        kvm_interrupts::TESTS,
        kvm_xen::TESTS,
        kvm_hyperv::TESTS,
        mirror::TESTS,
        mirror_live::TESTS,
        mirror_kinds::TESTS,
        mirror_dirty::TESTS,
        mirror_huge::TESTS,
        mirror_passes::TESTS,
        mirror_pass_model::TESTS,
        mirror_faults::TESTS,
        mirror_memcg::TESTS,
        mirror_io::TESTS,
        mirror_remote::TESTS,
        mirror_guest::TESTS,
        mirror_use::TESTS,
        mirror_readonly::TESTS,
        mirror_fuse::TESTS,
        races::TESTS,
        mirror_races::TESTS,
        mirror_pass_races::TESTS,
        mirror_moves::TESTS,
        mirror_losses::TESTS,
        mirror_gup::TESTS,
        mirror_locks::TESTS,
        mirror_nesting::TESTS,
        model::TESTS,
        kvm_close_stress::TESTS,
    ])
}

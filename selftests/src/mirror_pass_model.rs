// SPDX-License-Identifier: GPL-2.0

//! Passes over mirrors of a space that is composed at random, and changed in between, held to a
//! model of what each page is: each access gives the right number or the right fault, and each
//! store lands in the right page of the right file, and nowhere else.

use std::fs::File;

use crate::harness::skip;
use crate::support::composed::{Eye, Model, LEN, PAGES, TABLE};
use crate::support::files::{self, Ext4, TempFile, Tmpfs};
use crate::support::system::{need_huge_pages, rounds};
use crate::support::HUGE;

crate::suite![
    memfds_and_anonymous_memory,
    files_of_huge_pages,
    hugetlb,
    files_on_a_disk,
];

fn follow(model: &mut Model, seed: u64, rounds: u64, on_disk: bool) {
    let mut eyes = Eye::all(&model.space);
    for round in 0..rounds {
        for _ in 0..model.random.u64(1..6) {
            model.edit();
        }
        let eye = model.random.usize(0..eyes.len());
        let case = format!("seed {seed}, round {round}, mirror {eye}");
        model.pass(&eyes[eye], &case);
        if on_disk && round % 4 == 0 {
            model.clean();
        }
        if round % 8 == 7 {
            model.check_files(&case);
        }
        if model.random.u8(0..8) == 0 {
            let new = Eye::all(&model.space).swap_remove(eye);
            eyes[eye] = new;
        }
    }
    drop(eyes);
    if on_disk {
        model.clean();
    }
    model.check_files("at the end");
}

fn seeds() -> std::ops::Range<u64> {
    0..rounds().div_ceil(250)
}

fn in_folder(folder: &str, len: u64) -> (File, File) {
    let temp = TempFile::new(folder, len);
    (temp.open(true, true), temp.open(true, false))
}

fn memfds_and_anonymous_memory() {
    for seed in seeds() {
        let mut model = Model::new(seed, |len| in_folder("/tmp", len));
        follow(&mut model, seed, 24, false);
    }
}

fn files_of_huge_pages() {
    let tmpfs = Tmpfs::mount("huge=always").unwrap_or_else(|why| skip(&why));
    for seed in seeds() {
        let mut model = Model::new(seed, |len| in_folder(tmpfs.path(), len));
        follow(&mut model, seed, 24, false);
    }
}

fn hugetlb() {
    let _pages = need_huge_pages(PAGES / TABLE);
    for seed in seeds() {
        let mut model = Model::new(seed, |len| in_folder("/tmp", len));
        let file = files::huge_memfd(LEN);
        let mapped = file.try_clone().expect("dup");
        model.add(file, mapped, true, HUGE, |_| true);
        model.has_huge = true;
        follow(&mut model, seed, 24, false);
    }
}

/// The file system wants to know of the first store to each clean page.
fn files_on_a_disk() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    for seed in seeds() {
        let mut model = Model::new(seed, |len| in_folder(ext4.path(), len));
        follow(&mut model, seed, 16, true);
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Random edits of a space against a page-by-page model of it, made and read back by every path
//! there is: by the descriptor and by views, through mirrors, by a guest.

mod advice;
mod checks;
mod doors;
mod edits;
mod eye;
mod mirrors;
mod scratch;
mod state;

use doors::{Door, WHOLE};
use eye::Eye;
use mirrors::Mirror;
use scratch::Scratch;
use state::{Model, PAGES, SIZE};

use crate::note;
use crate::support::rights::RW;
use crate::support::swap::Swap;
use crate::support::system::{scaled, Setting};
use crate::support::Space;

crate::suite![
    without_a_guest(600),
    with_a_guest(600),
    at_the_end_of_the_space(600),
    with_swap_and_ksm(600),
];

struct Test {
    model: Model,
    /// Where the model's first page lies in the space.
    base: u64,
    doors: Vec<Door>,
    mirrors: Vec<Mirror>,
    scratch: Scratch,
    eye: Option<Eye>,
    random: fastrand::Rng,
    checks: u64,
}

impl Test {
    fn new(seed: u64, from_end: bool, guest: bool) -> Test {
        let space = Space::new();
        let base = if from_end {
            space.end() - (PAGES * SIZE) as u64
        } else {
            0
        };
        let mut test = Test {
            model: Model::new(),
            base,
            doors: vec![Door::whole(space)],
            mirrors: Vec::new(),
            scratch: Scratch::new(),
            eye: None,
            random: fastrand::Rng::with_seed(seed),
            checks: 0,
        };
        if guest {
            // The guest's window is on the whole space or on a view.
            let door = test.eye_door();
            let offset = test.offset(door, 0);
            test.eye = Some(Eye::new(&test.doors[door].space, offset));
        }
        test
    }

    fn addr(&self, page: usize) -> u64 {
        self.base + (page * SIZE) as u64
    }

    fn step(&mut self, late: bool) {
        match self.random.u8(0..32) {
            0..=7 => self.map(),
            8..=10 => self.unmap(),
            11..=13 => self.write(),
            14 | 15 => self.write_file(),
            16 | 17 => self.cut_file(),
            18 | 19 => self.guest_store(),
            20..=22 => self.protect(),
            23..=25 => self.advise(),
            26 => self.make_view(),
            27 | 28 => self.change_mirrors(),
            29 if late && self.random.u8(0..8) == 0 => self.seal(),
            _ => {}
        }
        match self.random.u8(0..32) {
            0..=5 => self.check_read(),
            6..=8 => self.check_seek(),
            9..=11 => self.check_mappings(),
            12..=17 => self.check_guest(),
            18 if self.random.u8(0..4) == 0 => self.check_mirrors(),
            19 if self.random.u8(0..4) == 0 => self.fork(),
            _ => (0..3).for_each(|_| self.use_mirror()),
        }
    }
}

fn run(seeds: std::ops::Range<u64>, steps: u32, from_end: bool, guest: bool) {
    let mut checks = 0;
    let seeds = seeds.start..seeds.start + scaled(seeds.end - seeds.start);
    for seed in seeds {
        let mut test = Test::new(seed, from_end, guest);
        for step in 0..steps {
            let late = step > steps * 9 / 10;
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test.step(late)));
            assert!(result.is_ok(), "seed {seed}, step {step}: see above");
        }
        test.check_all();
        checks += test.checks;
    }
    note!("{checks} checks");
}

fn without_a_guest() {
    run(0..6, 600, false, false);
}

fn with_a_guest() {
    run(100..106, 600, false, true);
}

/// The same in the last pages of the space.
fn at_the_end_of_the_space() {
    run(200..203, 600, true, true);
}

/// Pages are swapped out, by advice, and merged with their likes, by what is also advice.
fn with_swap_and_ksm() {
    let swap = Swap::on(1);
    note!("swap: {}", swap.is_some());
    let ksm = "/sys/kernel/mm/ksm";
    let _settings = [
        ("pages_to_scan", "1000"),
        ("sleep_millisecs", "10"),
        ("run", "1"),
    ]
    .map(|(file, value)| Setting::set(&format!("{ksm}/{file}"), value));
    run(300..304, 600, false, true);
}

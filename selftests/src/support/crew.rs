// SPDX-License-Identifier: GPL-2.0

//! Threads and processes that look at the same pages of a space through mirrors of their own, and
//! write to them, while one thread changes the pages. `Phases` judges what they see.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use libc::{PROT_READ, PROT_WRITE};

use super::meeting::{add, repeat, run_out};
use super::mirror::Area;
use super::phases::{Began, Outcome, Phases, State};
use super::process::Child;
use super::rights::View;
use super::shared::Shared;
use super::system::{scaled, RaiseAtEnd};
use super::{files, Errno, Map, Space, PAGE};

/// Where the watched pages lie in the space, and how many they are.
pub const AT: u64 = 16 * PAGE;
pub const PAGES: u64 = 4;
pub const LEN: u64 = PAGES * PAGE;

/// The words of a page that are looked at are all the same. Those after them are stored to.
const WORDS: u64 = 256;

/// What a page is full of when nobody may reach it any more.
pub const POISON: u64 = 0xdead_dead_dead_dead;

/// What the pages of generation `n` are full of.
pub fn tag(n: u64) -> u64 {
    0x7461_6700_0000_0000 | n
}

/// How long threads and processes meet each other.
pub fn time() -> Duration {
    Duration::from_millis(scaled(2000))
}

pub struct Crew {
    pub phases: Phases,
    pub stop: AtomicBool,
    pub loads: AtomicU64,
    pub holes: AtomicU64,
    pub denied: AtomicU64,
    pub stores: AtomicU64,
    pub refused: AtomicU64,
    /// Accesses during which something changed.
    pub crossed: AtomicU64,
    /// Changes, and whatever else the test does meanwhile.
    pub changes: AtomicU64,
    pub others: AtomicU64,
}

/// A mirror that shows the watched pages.
pub struct Eyes {
    pub area: Area,
    /// Where in the area they are.
    pub at: u64,
    pub writable: bool,
    pipe: (OwnedFd, OwnedFd),
    zero: File,
}

impl Eyes {
    pub fn new(area: Area, at: u64, writable: bool) -> Eyes {
        Eyes {
            area,
            at,
            writable,
            pipe: nix::unistd::pipe().expect("pipe"),
            zero: File::open("/dev/zero").expect("/dev/zero"),
        }
    }

    /// A writable mirror that begins in front of the pages.
    pub fn wide(space: &Space) -> Eyes {
        let area = super::mirror::mirror(space, AT - 2 * PAGE, LEN + 4 * PAGE);
        Eyes::new(area, 2 * PAGE, true)
    }

    /// A mirror of a view that can only be read.
    pub fn by_view(space: &Space) -> Eyes {
        let view = space.must_view(View::of(AT - PAGE, LEN + PAGE).prot(PROT_READ));
        let area = super::mirror::mirror_with(&view, PAGE, LEN, PROT_READ);
        Eyes::new(area, 0, false)
    }

    /// The same mirror, as a child has it that got it by fork.
    pub fn inherited(&self) -> Eyes {
        let area = Area::adopt(self.area.addr(), self.area.len());
        Eyes::new(area, self.at, self.writable)
    }

    /// A load in the kernel, by write(2) from the mirror.
    fn load_by_call(&self, offset: u64) -> Result<u64, Errno> {
        self.area.write_to(offset, &self.pipe.1, 8)?;
        let mut word = [0; 8];
        assert_eq!(nix::unistd::read(&self.pipe.0, &mut word), Ok(8), "a pipe");
        Ok(u64::from_le_bytes(word))
    }

    /// A store in the kernel, by read(2) into the mirror.
    fn store_by_call(&self, offset: u64) -> Result<(), Errno> {
        self.area.read_from(offset, &self.zero, 8).map(drop)
    }
}

impl Crew {
    pub fn new(state: State) -> Shared<Crew> {
        Shared::new(Crew {
            phases: Phases::new(state),
            stop: AtomicBool::new(false),
            loads: AtomicU64::new(0),
            holes: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            stores: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            crossed: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            others: AtomicU64::new(0),
        })
    }

    fn spot(random: &mut fastrand::Rng) -> u64 {
        random.u64(0..PAGES) * PAGE + 8 * random.u64(0..WORDS)
    }

    /// One look, by a random way.
    pub fn look(&self, eyes: &Eyes, random: &mut fastrand::Rng) {
        let offset = eyes.at + Crew::spot(random);
        let way = random.u8(0..10);
        let began = self.phases.begin();
        let (outcome, crossed) = match way {
            0 => {
                let mut word = [0; 8];
                let answer = eyes.area.pinned_read(offset, &mut word);
                let answer = answer.map(|_| u64::from_le_bytes(word));
                let late = |outcome| self.phases.loaded_late(began, outcome);
                self.by_call(began, answer, late)
            }
            1 => {
                let answer = eyes.load_by_call(offset);
                self.by_call(began, answer, |outcome| self.phases.loaded(began, outcome))
            }
            _ => {
                let outcome = Outcome::of(eyes.area.load_word(offset), offset);
                (outcome, self.phases.loaded(began, outcome))
            }
        };
        add(&self.crossed, crossed);
        match outcome {
            Outcome::Word(_) => add(&self.loads, true),
            Outcome::Hole => add(&self.holes, true),
            Outcome::Denied => add(&self.denied, true),
        }
    }

    /// A system call tells no hole from what is not permitted.
    fn by_call(
        &self,
        began: Began,
        answer: Result<u64, Errno>,
        judge: impl Fn(Outcome) -> bool,
    ) -> (Outcome, bool) {
        match answer {
            Ok(word) => (Outcome::Word(word), judge(Outcome::Word(word))),
            Err(e) => {
                assert_eq!(e, Errno::EFAULT);
                (Outcome::Hole, self.phases.load_failed(began))
            }
        }
    }

    /// One store, outside the words that are looked at.
    pub fn poke(&self, eyes: &Eyes, random: &mut fastrand::Rng) {
        let offset = eyes.at + Crew::spot(random) + 8 * WORDS;
        let began = self.phases.begin();
        if random.u8(0..8) == 0 {
            add(&self.stores, eyes.store_by_call(offset).is_ok());
            return;
        }
        let answer = eyes.area.store_word(offset, random.u64(..));
        let outcome = Outcome::of(answer.map(|()| 0), offset);
        // Through what cannot be written it is refused whatever is there.
        if !eyes.writable {
            assert_eq!(
                outcome,
                Outcome::Denied,
                "a store through a read-only mirror"
            );
            return;
        }
        add(&self.crossed, self.phases.stored(began, outcome));
        add(&self.stores, outcome == Outcome::Word(0));
        add(&self.refused, outcome != Outcome::Word(0));
    }

    /// Looks and pokes until told to stop.
    pub fn work(&self, eyes: &Eyes, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        repeat(&self.stop, || {
            self.look(eyes, &mut random);
            self.look(eyes, &mut random);
            self.poke(eyes, &mut random);
        });
    }

    pub fn counters(&self) -> [(&'static str, &AtomicU64); 8] {
        [
            ("loads", &self.loads),
            ("holes", &self.holes),
            ("denied", &self.denied),
            ("stores", &self.stores),
            ("refused stores", &self.refused),
            ("crossed", &self.crossed),
            ("changes", &self.changes),
            ("others", &self.others),
        ]
    }
}

/// What a thread of the test repeats.
pub type Job<'a> = Box<dyn FnMut() + Send + 'a>;

/// Runs a crew of threads and processes on the space, and `change` against it. What the counters
/// have to reach is told by name.
pub fn run(
    space: &Space,
    crew: &Shared<Crew>,
    least: &[(&str, u64)],
    mut change: impl FnMut() + Send,
) {
    let job = || {
        change();
        add(&crew.changes, true);
    };
    run_with(space, crew, least, vec![Box::new(job)]);
}

/// The same with several jobs, which count for themselves.
pub fn run_with(space: &Space, crew: &Shared<Crew>, least: &[(&str, u64)], jobs: Vec<Job>) {
    let eyes = Eyes::wide(space);
    let children = [
        // A mirror that came by fork, and one of its own.
        Child::spawn(|| crew.work(&eyes.inherited(), 1)),
        Child::spawn(|| crew.work(&Eyes::wide(space), 2)),
    ];
    let by_view = Eyes::by_view(space);
    let least: Vec<(&str, &AtomicU64, u64)> = crew
        .counters()
        .into_iter()
        .map(|(name, counter)| {
            let wanted = least.iter().find(|(what, _)| *what == name);
            (name, counter, wanted.map_or(0, |(_, least)| *least))
        })
        .collect();
    // Processes are told, too, should this fail.
    let end = RaiseAtEnd(&crew.stop);
    std::thread::scope(|scope| {
        let _end = RaiseAtEnd(&crew.stop);
        scope.spawn(|| crew.work(&by_view, 3));
        scope.spawn(|| crew.work(&eyes, 4));
        for mut job in jobs {
            scope.spawn(move || repeat(&crew.stop, &mut job));
        }
        run_out(time(), &crew.stop, &least);
    });
    drop(end);
    children.iter().for_each(Child::succeed);
}

/// Generations of files that are put in the place of each other. What was taken out is poisoned,
/// and must stay so: nobody writes there any more.
pub struct Generations {
    number: u64,
    old: std::collections::VecDeque<File>,
}

impl Generations {
    pub fn new() -> Generations {
        Generations {
            number: 0,
            old: Default::default(),
        }
    }

    pub fn full_of(word: u64) -> File {
        let file = files::memfd(LEN);
        let bytes = word.to_le_bytes().repeat(LEN as usize / 8);
        file.write_all_at(&bytes, 0).expect("write");
        file
    }

    /// The next generation, and what its pages are full of.
    pub fn next(&mut self) -> (File, u64) {
        self.number += 1;
        (Generations::full_of(tag(self.number)), tag(self.number))
    }

    /// Takes a file that was there and is no more.
    pub fn retire(&mut self, file: File) {
        let poison = POISON.to_le_bytes().repeat(LEN as usize / 8);
        file.write_all_at(&poison, 0).expect("write");
        self.old.push_back(file);
        if self.old.len() > 3 {
            let oldest = self.old.pop_front().expect("more than three");
            let mut bytes = vec![0; LEN as usize];
            oldest.read_exact_at(&mut bytes, 0).expect("read");
            let at = bytes.iter().zip(&poison).position(|(a, b)| a != b);
            assert_eq!(
                at, None,
                "generation {}: written after it was taken away",
                self.number
            );
        }
    }
}

/// The watched pages as a mapping of this file.
pub fn mapping(file: &File) -> Map {
    Map::file(file, AT, LEN).prot(PROT_READ | PROT_WRITE)
}

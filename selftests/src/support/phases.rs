// SPDX-License-Identifier: GPL-2.0

//! An oracle for accesses that race with changes: which changes have been begun and which have
//! returned is counted, so that each access knows what it may have met. One that began after a
//! change had returned must not meet what was there before.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::mirror::Access;
use super::probe::Fault;

/// What an access gives. Words that are loaded stand for themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Word(u64),
    Hole,
    Denied,
}

impl Outcome {
    /// Of a load at `offset`. Anything else than a word or the right fault there is a failure.
    #[track_caller]
    pub fn of(answer: Access<u64>, offset: u64) -> Outcome {
        match answer {
            Ok(word) => Outcome::Word(word),
            Err(fault) if fault == Fault::hole(offset) => Outcome::Hole,
            Err(fault) if fault == Fault::denied(offset) => Outcome::Denied,
            Err(fault) => panic!("at {offset:#x}: {fault:x?}"),
        }
    }
}

/// What all pages that are watched show, and what they do to a store: `Word(0)` is that it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    pub load: Outcome,
    pub store: Outcome,
}

impl State {
    pub const HOLE: State = State::same(Outcome::Hole);
    pub const DENIED: State = State::same(Outcome::Denied);

    const fn same(outcome: Outcome) -> State {
        State {
            load: outcome,
            store: outcome,
        }
    }

    /// Pages that can be read and written.
    pub fn full_of(word: u64) -> State {
        State {
            load: Outcome::Word(word),
            store: Outcome::Word(0),
        }
    }

    /// Pages that can be read.
    pub fn read_only(word: u64) -> State {
        State {
            load: Outcome::Word(word),
            store: Outcome::Denied,
        }
    }

    /// In two words; those that stand for faults are nobody's contents.
    fn encode(self) -> [u64; 2] {
        [self.load, self.store].map(|outcome| match outcome {
            Outcome::Word(word) => word,
            Outcome::Hole => u64::MAX,
            Outcome::Denied => u64::MAX - 1,
        })
    }

    fn decode(words: [u64; 2]) -> State {
        let [load, store] = words.map(|word| match word {
            u64::MAX => Outcome::Hole,
            word if word == u64::MAX - 1 => Outcome::Denied,
            word => Outcome::Word(word),
        });
        State { load, store }
    }
}

/// How many states are remembered. An access that takes longer is not judged.
const MEMORY: u64 = 1024;

pub struct Phases {
    /// 2n in state n, 2n + 1 on the way from there to the next.
    now: AtomicU64,
    states: [[AtomicU64; 2]; MEMORY as usize],
}

/// When an access began.
#[derive(Clone, Copy)]
pub struct Began(u64);

impl Phases {
    pub fn new(state: State) -> Phases {
        let phases = Phases {
            now: AtomicU64::new(0),
            states: [const { [const { AtomicU64::new(0) }; 2] }; MEMORY as usize],
        };
        phases.remember(0, state);
        phases
    }

    fn remember(&self, number: u64, state: State) {
        let place = &self.states[(number % MEMORY) as usize];
        for (word, value) in place.iter().zip(state.encode()) {
            word.store(value, SeqCst);
        }
    }

    fn state(&self, number: u64) -> State {
        let [load, store] = &self.states[(number % MEMORY) as usize];
        State::decode([load.load(SeqCst), store.load(SeqCst)])
    }

    /// Makes a change, after which all is as `next` says. One thread does that.
    pub fn change<T>(&self, next: State, call: impl FnOnce() -> T) -> T {
        let now = self.now.load(SeqCst);
        assert_eq!(now % 2, 0, "two changes at once");
        self.remember(now / 2 + 1, next);
        self.now.store(now + 1, SeqCst);
        let result = call();
        self.now.store(now + 2, SeqCst);
        result
    }

    pub fn begin(&self) -> Began {
        Began(self.now.load(SeqCst))
    }

    /// The states that an access which is now over may have met; `None` when it took too long. And
    /// whether something changed meanwhile.
    fn met(&self, began: Began) -> Option<(impl Iterator<Item = State> + '_, bool)> {
        let ended = self.now.load(SeqCst);
        let (first, last) = (began.0 / 2, ended.div_ceil(2));
        let changed = began.0 != ended || ended % 2 == 1;
        (last - first < MEMORY / 2).then(|| ((first..=last).map(|n| self.state(n)), changed))
    }

    /// Holds the outcome of an access to what it may have met by `pick`, and says whether it met a
    /// change. `also` is allowed where it did.
    #[track_caller]
    fn judge(
        &self,
        began: Began,
        outcome: Outcome,
        pick: impl Fn(State) -> Outcome,
        also: impl Fn(Outcome) -> bool,
    ) -> bool {
        let Some((met, changed)) = self.met(began) else {
            return true;
        };
        let met: Vec<Outcome> = met.map(pick).collect();
        let right = met.contains(&outcome) || changed && also(outcome);
        // While this was being thought about, the states may have been forgotten.
        let forgotten = self.now.load(SeqCst) / 2 - began.0 / 2 > MEMORY / 2;
        assert!(
            right || forgotten,
            "{outcome:x?} is none of {met:x?} (change {})",
            began.0 / 2
        );
        changed
    }

    /// A load, by a single instruction.
    #[track_caller]
    pub fn loaded(&self, began: Began, outcome: Outcome) -> bool {
        self.judge(began, outcome, |state| state.load, |_| false)
    }

    /// A load by pages that were pinned first: they may be gone when they are read.
    #[track_caller]
    pub fn loaded_late(&self, began: Began, outcome: Outcome) -> bool {
        let word = |outcome| matches!(outcome, Outcome::Word(_));
        self.judge(began, outcome, |state| state.load, word)
    }

    /// A load that met a hole or something that is not permitted, and cannot tell which.
    #[track_caller]
    pub fn load_failed(&self, began: Began) -> bool {
        let pick = |state: State| match state.load {
            Outcome::Word(word) => Outcome::Word(word),
            Outcome::Hole | Outcome::Denied => Outcome::Hole,
        };
        self.judge(began, Outcome::Hole, pick, |_| false)
    }

    #[track_caller]
    pub fn stored(&self, began: Began, outcome: Outcome) -> bool {
        self.judge(began, outcome, |state| state.store, |_| false)
    }
}

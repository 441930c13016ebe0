// SPDX-License-Identifier: GPL-2.0

//! Random chains of views of views, and random calls through them, against a model: rights, prot
//! and window only ever shrink, and an address means the same page for every call.

use std::fs::File;
use std::os::unix::fs::FileExt;

use asfd::sys::*;
use libc::{MADV_NORMAL, MADV_REMOVE, MAP_HUGETLB, PROT_NONE, PROT_READ, PROT_WRITE};
use nix::unistd::Whence;

use crate::note;
use crate::support::files;
use crate::support::guest::{plain_code, window, Exit, OwnMemory, Vcpu, Vm};
use crate::support::mapped::Mapped;
use crate::support::rights::{
    lines_of, seen_through, spelled, spelled_prot, View, ALL_RIGHTS, RIGHTS, RW,
};
use crate::support::snapshot::unchanged;
use crate::support::space::Mapping;
use crate::support::system::need_huge_pages;
use crate::support::{Errno, Map, Result, Space, HUGE, PAGE};

crate::suite![
    chains_of_views(300),
    calls_through_views(300),
    calls_through_views_with_a_guest(300),
    huge_pages_stay_inside,
];

/// Pages that the outermost view shows, and where in the space they begin.
const PAGES: u64 = 96;
const BASE: u64 = 24;

/// A view, as it has to be. In pages of the model.
#[derive(Clone, Copy, Debug)]
struct Power {
    start: u64,
    pages: u64,
    prot: i32,
    rights: u32,
}

struct Holder {
    fd: Space,
    power: Power,
}

/// Which errors a call may give: one of these, or none.
#[derive(Debug, Default)]
struct Reasons(Vec<Errno>);

impl Reasons {
    fn unless(mut self, condition: bool, errno: Errno) -> Reasons {
        if !condition {
            self.0.push(errno);
        }
        self
    }

    /// Whether the call was to succeed.
    #[track_caller]
    fn hold<T: std::fmt::Debug>(&self, answer: &Result<T>, what: &dyn std::fmt::Debug) -> bool {
        match answer {
            Ok(_) => assert!(self.0.is_empty(), "{what:x?}: {answer:?}, not {self:?}"),
            Err(e) => assert!(self.0.contains(e), "{what:x?}: {answer:?}, not {self:?}"),
        }
        self.0.is_empty()
    }
}

impl Power {
    fn may(&self, rights: u32) -> Reasons {
        Reasons::default().unless(self.rights & rights == rights, Errno::EPERM)
    }

    /// For pages `at..at + len`, as this view counts.
    fn has(&self, at: u64, len: u64) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.pages)
    }

    fn reaches(&self, prot: i32) -> bool {
        prot & !self.prot == 0
    }
}

/// A page of the space: its prot and the page of the file that it shows.
type Page = Option<(i32, u64)>;

struct Model {
    owner: Space,
    file: File,
    /// What fills each page of the file; at first its own number in the space.
    words: Vec<u64>,
    pages: Vec<Page>,
    holders: Vec<Holder>,
    random: fastrand::Rng,
    eye: Option<Eye>,
    next_word: u64,
}

/// A guest that looks through views.
struct Eye {
    vm: Vm,
    vcpu: Vcpu,
    _code: OwnMemory,
}

const GPA: u64 = 1 << 24;

impl Eye {
    fn new() -> Eye {
        let vm = Vm::new();
        let code = plain_code(&vm);
        let vcpu = vm.vcpu(0);
        Eye {
            vm,
            vcpu,
            _code: code,
        }
    }
}

fn filled(word: u64) -> Vec<u8> {
    word.to_le_bytes().repeat(PAGE as usize / 8)
}

impl Model {
    fn new(seed: u64, guest: bool) -> Model {
        let owner = Space::new();
        let file = files::memfd(PAGES * PAGE);
        let words: Vec<u64> = (BASE..BASE + PAGES).collect();
        for (page, word) in (0..).zip(&words) {
            file.write_all_at(&filled(*word), page * PAGE)
                .expect("write");
        }
        owner.must_map(Map::file(&file, BASE * PAGE, PAGES * PAGE));
        // What no view shows. Whoever gets there sees these words.
        let around = files::memfd(BASE * PAGE);
        owner.must_map(Map::file(&around, 0, BASE * PAGE));
        let above = (BASE + PAGES) * PAGE;
        owner.must_map(Map::file(&around, above, BASE * PAGE));
        let power = Power {
            start: 0,
            pages: PAGES,
            prot: RW,
            rights: ALL_RIGHTS,
        };
        let fd = owner.must_view(View::of(BASE * PAGE, PAGES * PAGE));
        Model {
            owner,
            file,
            words,
            pages: (0..PAGES).map(|page| Some((RW, page))).collect(),
            holders: vec![Holder { fd, power }],
            random: fastrand::Rng::with_seed(seed),
            eye: guest.then(Eye::new),
            next_word: 1 << 32,
        }
    }

    fn page(&self, power: &Power, page: u64) -> Page {
        self.pages[(power.start + page) as usize]
    }

    fn pick(&mut self) -> usize {
        self.random.usize(0..self.holders.len())
    }

    /// A view of a random view, mostly narrower, sometimes not.
    fn grow(&mut self) {
        let from = self.pick();
        let parent = self.holders[from].power;
        let random = &mut self.random;
        let (mut addr, mut len) = (0, parent.pages);
        if random.u8(0..4) > 0 {
            addr = random.u64(0..parent.pages);
            len = random.u64(1..=parent.pages - addr);
        }
        match random.u8(0..16) {
            0 => len += random.u64(1..=PAGES),
            1 => addr = parent.pages - random.u64(0..=parent.pages.min(2)),
            2 => addr = random.u64(0..1 << 52),
            3 => addr = (1 << 52) - random.u64(1..=parent.start.max(1)),
            _ => {}
        }
        let mut prot = parent.prot;
        if random.bool() {
            prot = random.i32(0..4);
        }
        let mut rights = parent.rights;
        match random.u8(0..8) {
            0 => rights = random.u32(0..=ALL_RIGHTS),
            1 => rights |= 1 << random.u32(0..7),
            2..=4 => rights &= !(1 << random.u32(0..7)),
            _ => {}
        }
        // Chains get long only if the right to lengthen them is mostly kept.
        if parent.rights & ADDRESS_SPACE_RIGHT_VIEW != 0 && random.u8(0..4) > 0 {
            rights |= ADDRESS_SPACE_RIGHT_VIEW;
        }
        let reasons = parent
            .may(ADDRESS_SPACE_RIGHT_VIEW)
            .unless(rights & !parent.rights == 0, Errno::EPERM)
            .unless(parent.reaches(prot), Errno::EACCES)
            .unless(parent.has(addr, len), Errno::ERANGE);
        let asked = View::of(addr << 12, len << 12).prot(prot).rights(rights);
        let answer = self.holders[from].fd.view(asked);
        let what = (parent, asked);
        if !reasons.hold(&answer.as_ref().map(drop).map_err(|e| *e), &what) {
            return;
        }
        let holder = Holder {
            fd: answer.expect("it held"),
            power: Power {
                start: parent.start + addr,
                pages: len,
                prot,
                rights,
            },
        };
        self.check(&holder, &self.owner.mappings());
        if self.holders.len() < 24 {
            self.holders.push(holder);
        } else {
            // Whoever made it may be gone.
            let victim = self.random.usize(1..self.holders.len());
            self.holders[victim] = holder;
        }
    }

    /// INFO, fdinfo and PROCMAP_QUERY say what the model says.
    #[track_caller]
    fn check(&self, holder: &Holder, mappings: &[Mapping]) {
        let (fd, power) = (&holder.fd, holder.power);
        let (start, len) = ((BASE + power.start) * PAGE, power.pages * PAGE);
        let seen = seen_through(mappings, start, len);
        let bytes: u64 = seen.iter().map(|m| m.end - m.start).sum();
        let (info, whole) = (fd.info(), self.owner.info());
        let expected = address_space_info {
            id: whole.id,
            addr: start,
            len,
            mappings: seen.len() as u64,
            mapped_bytes: bytes,
            resident_bytes: info.resident_bytes,
            mirrors: whole.mirrors,
            windows: whole.windows,
            rights: power.rights,
            prot: power.prot as u32,
            seals: 0,
            __reserved: 0,
        };
        assert_eq!(info, expected, "{power:?}");
        assert!(info.resident_bytes <= bytes, "{power:?}");
        let text = fd.fdinfo();
        for (field, value) in [
            ("as_id", whole.id.to_string()),
            ("as_window", format!("{start:x}-{:x}", start + len)),
            ("as_rights", spelled(&RIGHTS, power.rights)),
            ("as_prot", spelled_prot(power.prot).into()),
            ("as_seals", "-".into()),
            ("as_mappings", seen.len().to_string()),
            ("as_mapped", format!("{bytes} B")),
        ] {
            let said: Vec<&str> = lines_of(&text, field).collect();
            assert_eq!(said, [value], "{field} of {power:?}");
        }
        let said: Vec<&str> = lines_of(&text, "as_map").collect();
        if power.rights & ADDRESS_SPACE_RIGHT_QUERY == 0 {
            assert!(said.is_empty(), "{power:?}: {said:?}");
            return;
        }
        let lines: Vec<String> = seen.iter().map(Mapping::line).collect();
        assert_eq!(said, lines, "{power:?}");
        assert_eq!(fd.mappings(), seen, "{power:?}");
    }

    /// A range of pages as a view counts, mostly within it.
    fn range(&mut self, power: &Power) -> (u64, u64) {
        let at = self.random.u64(0..power.pages + 1);
        let longest = [1, 4, power.pages][self.random.usize(0..3)];
        let mut len = self.random.u64(1..=longest);
        if self.random.u8(0..6) > 0 {
            len = len.min(power.pages - at).max(1);
        }
        if self.random.u8(0..24) == 0 {
            // As if it counted from the start of the space.
            return (at + BASE, len);
        }
        (at, len)
    }

    fn step(&mut self) {
        let who = self.pick();
        let power = self.holders[who].power;
        let (at, len) = self.range(&power);
        match self.random.u8(0..16) {
            0..=2 => self.read(who, at, len),
            3 | 4 => self.write(who, at, len.min(3)),
            5 => self.query(who, at),
            6 => self.seek(who, at),
            7 | 8 => self.map(who, at, len.min(8)),
            9 => self.map_by_hint(who, at, len.min(8)),
            10 => self.unmap(who, at, len.min(4)),
            11 | 12 => self.protect(who, at, len.min(6)),
            13 => self.advise(who, at, len.min(3)),
            14 => self.mirror(who, at, len.min(6)),
            _ => self.window(who, at, len.min(6)),
        }
        self.check(&self.holders[who], &self.owner.mappings());
    }

    /// What an access of `prot` gets page by page from `at` on: the pages it reaches, and what
    /// stops it.
    fn served(&self, power: &Power, at: u64, len: u64, prot: i32) -> (u64, Option<Errno>) {
        for page in at..at + len {
            if page >= power.pages {
                return (page - at, None);
            }
            match self.page(power, page) {
                None => return (page - at, Some(Errno::EIO)),
                Some((have, _)) if have & prot == 0 => return (page - at, Some(Errno::EACCES)),
                _ => {}
            }
        }
        (len, None)
    }

    fn content(&self, power: &Power, at: u64, len: u64) -> Vec<u8> {
        let word = |page| {
            let (_, index) = self.page(power, page).expect("a mapping");
            filled(self.words[index as usize])
        };
        (at..at + len).flat_map(word).collect()
    }

    fn read(&mut self, who: usize, at: u64, len: u64) {
        let Holder { fd, power } = &self.holders[who];
        let inside = self.random.u64(0..PAGE);
        let mut buffer = vec![0; (len * PAGE) as usize];
        let answer = fd.read_at(at * PAGE + inside, &mut buffer);
        let what = ("pread", power, at, len, inside);
        if !power.reaches(PROT_READ) {
            assert_eq!(answer, Err(Errno::EACCES), "{what:?}");
            return;
        }
        // One page more, as it begins inside of one.
        match self.served(power, at, len + 1, PROT_READ) {
            (0, Some(errno)) => assert_eq!(answer, Err(errno), "{what:?}"),
            (pages, _) => {
                let all = self.content(power, at, pages);
                let bytes = &all[all.len().min(inside as usize)..];
                let bytes = &bytes[..bytes.len().min(buffer.len())];
                assert_eq!(answer, Ok(bytes.len()), "{what:?}");
                assert!(buffer.starts_with(bytes), "{what:?}: other bytes");
            }
        }
    }

    fn write(&mut self, who: usize, at: u64, len: u64) {
        let Holder { fd, power } = &self.holders[who];
        let words: Vec<u64> = (self.next_word..self.next_word + len).collect();
        self.next_word += len;
        let bytes: Vec<u8> = words.iter().flat_map(|word| filled(*word)).collect();
        let what = ("pwrite", power, at, len);
        let call = || fd.write_at(at * PAGE, &bytes);
        if !power.reaches(PROT_WRITE) {
            assert_eq!(unchanged(&self.owner, call), Err(Errno::EACCES), "{what:?}");
            return;
        }
        if at >= power.pages {
            assert_eq!(unchanged(&self.owner, call), Err(Errno::ENOSPC), "{what:?}");
            return;
        }
        match self.served(power, at, len, PROT_WRITE) {
            (0, Some(errno)) => {
                assert_eq!(unchanged(&self.owner, call), Err(errno), "{what:?}");
            }
            (pages, _) => {
                assert_eq!(call(), Ok((pages * PAGE) as usize), "{what:?}");
                for (page, word) in (at..at + pages).zip(words) {
                    let (_, index) = self.page(power, page).expect("a mapping");
                    self.words[index as usize] = word;
                }
            }
        }
    }

    fn query(&mut self, who: usize, at: u64) {
        let Holder { fd, power } = &self.holders[who];
        let answer = fd.query(at * PAGE, 0);
        let mapped = at < power.pages && self.page(power, at).is_some();
        let reasons = power.may(ADDRESS_SPACE_RIGHT_QUERY);
        let denied = !reasons.0.is_empty();
        let reasons = reasons.unless(mapped || denied, Errno::ENOENT);
        if reasons.hold(&answer, &("query", power, at)) {
            let found = answer.expect("it held");
            assert!(found.start <= at * PAGE && at * PAGE < found.end);
            assert!(found.end <= power.pages * PAGE);
            let (prot, index) = self.page(power, at).expect("a mapping");
            assert_eq!(found.prot, prot);
            assert_eq!(found.offset + (at * PAGE - found.start), index * PAGE);
        }
    }

    fn seek(&mut self, who: usize, at: u64) {
        let Holder { fd, power } = &self.holders[who];
        let pages = at.min(power.pages)..power.pages;
        let mapped = |page: &u64| self.page(power, *page).is_some();
        let (data, hole) = (
            pages.clone().find(mapped),
            pages.clone().find(|page| !mapped(page)),
        );
        let hole = hole.or((at < power.pages).then_some(power.pages));
        for (whence, found) in [(Whence::SeekData, data), (Whence::SeekHole, hole)] {
            let answer = fd.seek(at * PAGE, whence);
            let expected = if power.rights & ADDRESS_SPACE_RIGHT_QUERY == 0 {
                Err(Errno::EPERM)
            } else {
                found.map(|page| page * PAGE).ok_or(Errno::ENXIO)
            };
            assert_eq!(answer, expected, "{whence:?} {power:?} at {at}");
        }
        assert_eq!(fd.seek(0, Whence::SeekEnd), Ok(power.pages * PAGE));
    }

    fn map(&mut self, who: usize, at: u64, len: u64) {
        let index = self.random.u64(0..=PAGES - len);
        let prot = [RW, RW, PROT_READ, PROT_NONE][self.random.usize(0..4)];
        let replace = self.random.bool();
        let Holder { fd, power } = &self.holders[who];
        let map = Map::file(&self.file, at * PAGE, len * PAGE)
            .offset(index * PAGE)
            .prot(prot);
        let map = if replace { map.replace() } else { map };
        let inside = power.has(at, len);
        let free = inside && (at..at + len).all(|page| self.page(power, page).is_none());
        let mut reasons = power
            .may(ADDRESS_SPACE_RIGHT_MAP)
            .unless(inside, Errno::ERANGE);
        if inside && !free {
            if replace {
                reasons.0.extend(power.may(ADDRESS_SPACE_RIGHT_UNMAP).0);
            } else {
                reasons.0.push(Errno::EEXIST);
            }
        }
        let answer = unchanged(&self.owner, || fd.map(map));
        if reasons.hold(&answer, &(power, map)) {
            assert_eq!(answer, Ok(at * PAGE));
            let first = power.start + at;
            for page in 0..len {
                self.pages[(first + page) as usize] = Some((prot, index + page));
            }
        }
    }

    /// The lowest free range of the window.
    fn map_by_hint(&mut self, who: usize, at: u64, len: u64) {
        let index = self.random.u64(0..=PAGES - len);
        let Holder { fd, power } = &self.holders[who];
        let free = |start: &u64| {
            let all = *start..start + len;
            start + len <= power.pages && all.clone().all(|p| self.page(power, p).is_none())
        };
        let found = (at..power.pages).find(free);
        let reasons = power
            .may(ADDRESS_SPACE_RIGHT_MAP)
            .unless(found.is_some(), Errno::ENOMEM)
            .unless(at < power.pages, Errno::ERANGE);
        let map = Map::file(&self.file, at * PAGE, len * PAGE)
            .offset(index * PAGE)
            .hint();
        let answer = unchanged(&self.owner, || fd.map(map));
        if reasons.hold(&answer, &(power, map)) {
            let found = found.expect("there is room");
            assert_eq!(answer, Ok(found * PAGE), "{power:?} {map:x?}");
            let first = power.start + found;
            for page in 0..len {
                self.pages[(first + page) as usize] = Some((RW, index + page));
            }
        }
    }

    fn unmap(&mut self, who: usize, at: u64, len: u64) {
        let Holder { fd, power } = &self.holders[who];
        let reasons = power
            .may(ADDRESS_SPACE_RIGHT_UNMAP)
            .unless(power.has(at, len), Errno::ERANGE);
        let answer = unchanged(&self.owner, || fd.unmap(at * PAGE, len * PAGE));
        if reasons.hold(&answer, &("munmap", power, at, len)) {
            let first = (power.start + at) as usize;
            self.pages[first..first + len as usize].fill(None);
        }
    }

    fn whole(&self, power: &Power, at: u64, len: u64) -> bool {
        !power.has(at, len) || (at..at + len).all(|page| self.page(power, page).is_some())
    }

    fn protect(&mut self, who: usize, at: u64, len: u64) {
        let prot = [RW, RW, PROT_READ, PROT_NONE][self.random.usize(0..4)];
        let Holder { fd, power } = &self.holders[who];
        let reasons = power
            .may(ADDRESS_SPACE_RIGHT_CHANGE)
            .unless(power.has(at, len), Errno::ERANGE)
            .unless(self.whole(power, at, len), Errno::ENOMEM);
        let answer = unchanged(&self.owner, || fd.protect(at * PAGE, len * PAGE, prot));
        if reasons.hold(&answer, &("PROTECT", power, at, len, prot)) {
            for page in &mut self.pages[(power.start + at) as usize..][..len as usize] {
                let (old, _) = page.as_mut().expect("no hole");
                *old = prot;
            }
        }
    }

    /// REMOVE makes zeros of the pages of the file, on both sides of a hole.
    fn advise(&mut self, who: usize, at: u64, len: u64) {
        let advice = [MADV_REMOVE, MADV_NORMAL][self.random.usize(0..2)];
        let Holder { fd, power } = &self.holders[who];
        let writes = advice == MADV_REMOVE;
        let reasons = power
            .may(ADDRESS_SPACE_RIGHT_CHANGE)
            .unless(!writes || power.reaches(PROT_WRITE), Errno::EACCES)
            .unless(power.has(at, len), Errno::ERANGE);
        let permitted = reasons.0.is_empty();
        let reasons = reasons.unless(self.whole(power, at, len), Errno::ENOMEM);
        let answer = fd.advise(at * PAGE, len * PAGE, advice);
        reasons.hold(&answer, &("ADVISE", power, at, len, advice));
        if permitted && writes {
            for page in at..at + len {
                if let Some((_, index)) = self.page(power, page) {
                    self.words[index as usize] = 0;
                }
            }
        }
    }

    fn mirror(&mut self, who: usize, at: u64, len: u64) {
        let Holder { fd, power } = &self.holders[who];
        let reasons = Reasons::default()
            .unless(power.reaches(PROT_READ), Errno::EACCES)
            .unless(power.has(at, len), Errno::ERANGE);
        let what = ("mmap", power, at, len);
        let answer = Mapped::new(fd, at * PAGE, len * PAGE, PROT_READ);
        if !reasons.hold(&answer.as_ref().map(drop).map_err(|e| *e), &what) {
            return;
        }
        let mirror = answer.expect("it held");
        for page in 0..len {
            let expected = match self.page(power, at + page) {
                Some((prot, _)) if prot & PROT_READ != 0 => Ok(self.content(power, at + page, 1)),
                _ => Err(Errno::EFAULT),
            };
            assert!(
                mirror.get(page * PAGE, PAGE) == expected,
                "{what:?}: page {page}"
            );
        }
    }

    fn window(&mut self, who: usize, at: u64, len: u64) {
        let Some(mut eye) = self.eye.take() else {
            return;
        };
        let Holder { fd, power } = &self.holders[who];
        let reading = self.random.bool();
        let needed = if reading { PROT_READ } else { RW };
        let reasons = power
            .may(ADDRESS_SPACE_RIGHT_KVM)
            .unless(power.reaches(needed), Errno::EACCES)
            .unless(power.has(at, len), Errno::ERANGE);
        let mut window = window(1, GPA, len * PAGE, fd, at * PAGE);
        if reading {
            window.flags = KVM_MEM_READONLY;
        }
        let answer = eye.vm.map(window);
        if reasons.hold(&answer, &(power, at, window)) {
            for page in 0..len {
                let gpa = GPA + page * PAGE;
                let exit = eye.vcpu.load(gpa);
                let what = format!("{power:?}, page {page} from {at}: {exit:?}");
                match self.page(power, at + page) {
                    None => assert_eq!(exit, Exit::load_of_hole(gpa), "{what}"),
                    Some((prot, index)) if prot & PROT_READ != 0 => {
                        let word = self.words[index as usize] as u32;
                        assert_eq!(exit, Exit::Done(word), "{what}");
                    }
                    Some(_) => assert!(exit.is_fault_at(gpa), "{what}"),
                }
            }
            eye.vm.unmap_slot(1).expect("delete");
        }
        self.eye = Some(eye);
    }

    /// What lies around the outermost view has not been touched.
    fn untouched_around(&self) {
        let mappings = self.owner.mappings();
        let (first, last) = (&mappings[0], &mappings[mappings.len() - 1]);
        let above = (BASE + PAGES) * PAGE;
        assert_eq!((first.start, first.end), (0, BASE * PAGE));
        assert_eq!((last.start, last.end), (above, above + BASE * PAGE));
        for start in [0, above] {
            let bytes = self.owner.get(start, BASE * PAGE);
            assert!(bytes.iter().all(|byte| *byte == 0), "at {start:#x}");
        }
    }
}

/// Many views and no edits: the whole tree is looked at in the end.
fn chains_of_views() {
    let mut deepest = 0;
    for seed in 0..4 {
        let mut model = Model::new(seed, false);
        // Some holes and several mappings to look at.
        for page in (3..PAGES).step_by(7) {
            model.unmap(0, page, 1);
            model.protect(0, page - 2, 1);
        }
        for _ in 0..100 {
            model.grow();
        }
        let mappings = model.owner.mappings();
        for holder in &model.holders {
            model.check(holder, &mappings);
            deepest = deepest.max(PAGES - holder.power.pages);
        }
        model.untouched_around();
    }
    assert!(deepest > PAGES / 2, "views did not get narrow");
}

fn calls(seeds: std::ops::Range<u64>, guest: bool) {
    for seed in seeds {
        let mut model = Model::new(seed, guest);
        for step in 0..300 {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                if step % 8 == 0 {
                    model.grow();
                }
                model.step();
            }));
            assert!(result.is_ok(), "seed {seed}, step {step}: see above");
        }
        let mappings = model.owner.mappings();
        for holder in &model.holders {
            model.check(holder, &mappings);
        }
        model.untouched_around();
        note!("seed {seed}: {} views", model.holders.len());
    }
}

fn calls_through_views() {
    calls(100..104, false);
}

fn calls_through_views_with_a_guest() {
    calls(200..202, true);
}

/// Lengths of huge pages are rounded up and down; never out of the window. They are aligned in
/// the space, whatever the window.
fn huge_pages_stay_inside() {
    let _pages = need_huge_pages(4);
    let owner = Space::new();
    owner.must_map(Map::anon(0, HUGE));
    owner.must_map(Map::anon(4 * HUGE, HUGE));
    owner.put(0, b"before");
    owner.put(4 * HUGE, b"behind");
    let huge = |addr, len| Map::anon(addr, len).with(MAP_HUGETLB);
    // Half a huge page, then one and a half, then half of one.
    for (start, len) in [
        (HUGE, HUGE / 2),
        (HUGE + HUGE / 2, HUGE / 2),
        (HUGE + PAGE, HUGE),
    ] {
        let view = owner.must_view(View::of(start, len));
        for map in [huge(0, PAGE), huge(0, PAGE).replace(), huge(0, HUGE)] {
            let answer = unchanged(&owner, || view.map(map));
            let refused = matches!(answer, Err(Errno::ERANGE | Errno::EINVAL));
            assert!(refused, "{map:x?} at {start:#x}: {answer:?}");
        }
        let by_hint = unchanged(&owner, || view.map(huge(0, PAGE).hint()));
        assert_eq!(by_hint, Err(Errno::ENOMEM), "at {start:#x}");
    }
    let start = HUGE + HUGE / 2;
    let view = owner.must_view(View::of(start, 2 * HUGE));
    assert_eq!(view.map(huge(0, PAGE).hint()), Ok(HUGE / 2));
    assert_eq!(owner.mappings()[1].start, 2 * HUGE);
    assert_eq!(view.map(huge(0, PAGE).hint()), Err(Errno::ENOMEM));
    // A view that ends within the huge page cannot cut it, nor drop it.
    owner.put(2 * HUGE, b"whole");
    for (start, len) in [(HUGE, HUGE + HUGE / 2), (2 * HUGE + PAGE, HUGE)] {
        let view = owner.must_view(View::of(start, len));
        for answer in [
            unchanged(&owner, || view.unmap(0, len)),
            unchanged(&owner, || {
                view.protect(0, len, PROT_READ).or(Err(Errno::EINVAL))
            }),
            unchanged(&owner, || view.map(Map::anon(0, len).replace()).map(drop)),
        ] {
            assert_eq!(answer, Err(Errno::EINVAL), "at {start:#x}");
        }
        let _ = view.advise(0, len, libc::MADV_DONTNEED);
        assert_eq!(owner.get(2 * HUGE, 5), b"whole", "at {start:#x}");
    }
    assert_eq!(owner.get(0, 6), b"before");
    assert_eq!(owner.get(4 * HUGE, 6), b"behind");
}

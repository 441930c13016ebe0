// SPDX-License-Identifier: GPL-2.0

//! What time it is, in instructions, and the medians of what was measured so.

use anyhow::{Context, Result};

/// Instructions executed by the machine so far, with `--icount`: the emulated TSC counts them.
pub fn instructions() -> u64 {
    // SAFETY: Every x86-64 CPU has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Ticks of that counter in a microsecond, without `--icount`. It is the clock to take there: the
/// kernel, which does not trust it on several CPUs, counts its own timer ticks instead.
pub fn ticks_per_microsecond() -> Result<f64> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let line = cpuinfo.lines().find(|line| line.starts_with("cpu MHz"));
    let number = line.and_then(|line| line.rsplit(' ').next());
    Ok(number.context("no cpu MHz in /proc/cpuinfo")?.parse()?)
}

/// How many instructions the machine executes until `work` is done.
pub fn count<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let before = instructions();
    work()?;
    Ok((instructions() - before) as f64)
}

/// Medians of `rounds` rounds, in each of which both sides are measured once.
///
/// A round may meet a timer interrupt, and the first ones cold caches of the kernel: the median is
/// that of the many which do not.
pub fn compare(
    rounds: usize,
    mut space: impl FnMut(usize) -> Result<f64>,
    mut alternative: impl FnMut(usize) -> Result<f64>,
) -> Result<(f64, f64)> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        ours.push(space(round)?);
        theirs.push(alternative(round)?);
    }
    Ok((median(ours), median(theirs)))
}

/// The value in the middle, or between the two there.
pub fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty());
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        for (values, expected) in [
            (vec![7.0], 7.0),
            (vec![9.0, 1.0], 5.0),
            (vec![100.0, 2.0, 1.0], 2.0),
            (vec![4.0, 1.0, 3.0, 2.0], 2.5),
        ] {
            assert_eq!(median(values), expected);
        }
    }

    #[test]
    fn both_sides_take_turns() {
        let order = std::cell::RefCell::new(Vec::new());
        let side = |name: &'static str, value: f64| {
            let order = &order;
            move |round| {
                order.borrow_mut().push((round, name));
                Ok(value)
            }
        };
        let medians = compare(2, side("space", 1.0), side("other", 2.0)).unwrap();
        assert_eq!(medians, (1.0, 2.0));
        assert_eq!(
            order.into_inner(),
            [(0, "space"), (0, "other"), (1, "space"), (1, "other")]
        );
    }
}

// SPDX-License-Identifier: GPL-2.0

//! What is measured: rows of the table, and points of the pictures.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What a measurement prints, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "lowercase")]
pub enum Record {
    /// What follows, up to the next of these, is of this measurement.
    Measurement {
        name: String,
    },
    Row(Measured),
    Point(Point),
}

/// What an operation costs through a space, and what the same work costs otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub name: String,
    pub unit: Unit,
    pub space: f64,
    pub alternative: f64,
    pub alternative_name: String,
    /// The highest ratio of the two that is good enough; [`None`] if it is only reported.
    pub bar: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    Instructions,
    Bytes,
    Exits,
    /// Interrupts from CPU to CPU.
    Ipis,
    /// Wall time, on several CPUs that share the host's.
    Microseconds,
}

/// A point of a curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub chart: Chart,
    /// Which of the chart's curves.
    pub curve: String,
    pub x: f64,
    pub y: f64,
}

/// Pictures with curves; what is on their axes is said in [`crate::report`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Chart {
    /// Instructions of a map and an unmap, by the bytes mapped.
    EditsBySize,
    /// Instructions of a map and an unmap, by the mappings present.
    EditsByMappings,
    /// Instructions of a revocation, by the processes that mirror the range.
    RevokeByProcesses,
    /// Pages a second that are touched first, by threads. Noisy.
    TouchByThreads,
    /// Maps and unmaps a second, by processes that make them. Noisy.
    EditsByProcesses,
    /// Guest memory accesses a second while 2M come and go, by vCPUs. Noisy.
    GuestByVcpus,
}

impl Measured {
    pub fn new(
        name: impl Into<String>,
        alternative_name: impl Into<String>,
        unit: Unit,
        (space, alternative): (f64, f64),
    ) -> Self {
        Measured {
            name: name.into(),
            unit,
            space,
            alternative,
            alternative_name: alternative_name.into(),
            bar: None,
        }
    }

    /// Good if it costs at most so many times what the alternative does.
    pub fn at_most(self, ratio: f64) -> Self {
        Measured {
            bar: Some(ratio),
            ..self
        }
    }

    /// Good if it is so many times cheaper than the alternative.
    pub fn cheaper(self, times: f64) -> Self {
        self.at_most(1.0 / times)
    }
}

//! The allocator's own counts, read at each scrape.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Opts};

use super::names::{MEMORY_ALLOCATED, MEMORY_RESIDENT};

#[derive(Debug)]
pub(super) struct Memory {
    allocated: IntGauge,
    resident: IntGauge,
}

impl Memory {
    pub(super) fn new() -> prometheus::Result<Self> {
        Ok(Memory {
            allocated: IntGauge::with_opts(Opts::new(MEMORY_ALLOCATED.name, MEMORY_ALLOCATED.help))?,
            resident: IntGauge::with_opts(Opts::new(MEMORY_RESIDENT.name, MEMORY_RESIDENT.help))?,
        })
    }
}

impl Collector for Memory {
    fn desc(&self) -> Vec<&Desc> {
        [&self.allocated, &self.resident].into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(usage) = usage() else { return Vec::new() };
        // Memory sizes are far below i64::MAX.
        self.allocated.set(usage.allocated as i64);
        self.resident.set(usage.resident as i64);
        [&self.allocated, &self.resident].into_iter().flat_map(Collector::collect).collect()
    }
}

/// What the allocator holds now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub allocated: usize,
    pub resident: usize,
}

/// `None` when the allocator keeps no statistics.
pub(crate) fn usage() -> Option<Usage> {
    // The counts are cached until the epoch moves.
    tikv_jemalloc_ctl::epoch::advance().ok()?;
    let allocated = tikv_jemalloc_ctl::stats::allocated::read().ok()?;
    let resident = tikv_jemalloc_ctl::stats::resident::read().ok()?;
    Some(Usage { allocated, resident })
}

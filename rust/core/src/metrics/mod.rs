//! Accounting: what adapters report to Prometheus, at no cost per token beyond a few additions.
//!
//! One [`Metrics`] holds every series; nothing is global. A [`ReplicaMetrics`] is one replica's
//! handle on it, a [`TaskMetrics`] one task's, which a [`StreamDecoder`](crate::StreamDecoder) is
//! given. Labels are looked up and written out when a handle is made, never per token: a decoder
//! counts in plain integers and adds them to atomics four times a second and at the end.
//!
//! A scrape copies a pointer per family under the lock and reads the atomics without it. Label
//! values are bounded in size and number; what is past a budget is counted as [`OTHER`].
//!
//! ```
//! use worker_adapters_core::metrics::{Format, Metrics, MetricsConfig};
//! use worker_adapters_core::time::Instant;
//!
//! let metrics = Metrics::new(MetricsConfig::default());
//! let replica = metrics.replica("llamacpp", "chat", "0");
//! replica.set_engine_version("b6500-abc", None);
//! let task = replica.task("interactive", None); // → StreamConfig::metrics
//! task.started();
//! let text = metrics.snapshot(Instant::default()).render(Format::OpenMetrics);
//! assert!(text.contains(
//!     "tasks_started_total{engine=\"llamacpp\",engine_version=\"b6500-abc\",\
//!      pool_id=\"chat\",replica_id=\"0\",priority=\"interactive\"} 1\n"
//! ));
//! ```

mod histogram;
mod labels;
mod names;
mod registry;
mod render;
mod replica;
mod series;
mod snapshot;
mod task;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use histogram::{Exemplar, HistogramValue, TraceId};
pub use labels::{LabelBudgets, LabelSet, MAX_VALUE_BYTES};
pub use names::{
    ALL_PRIORITIES, BreakerState, EngineGauge, Family, FamilyKind, Label, OTHER, Origin, Outcome,
    UNKNOWN,
};
pub use render::{Format, bound_labels, in_unit};
pub use replica::{GaugeReading, ReplicaMetrics};
pub use series::Value;
pub use snapshot::{FamilySnapshot, Sample, Snapshot};
pub use task::TaskMetrics;
pub(crate) use task::{Ending, Tallies, Tally};

use registry::Registry;
use series::{Part, Series};

use crate::time::Instant;

/// What a [`Metrics`] exports, and how much it keeps.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MetricsConfig {
    /// How many values each label may have.
    pub budgets: LabelBudgets,
    /// How many samples all series may make in an exposition; a histogram makes one per bucket.
    /// Past it a series is counted under labels that are [`OTHER`]. 20,000.
    pub max_series: usize,
    /// Whether the contract's latencies in milliseconds are exported.
    pub milliseconds: bool,
    /// Whether they are exported in seconds, too.
    pub seconds: bool,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            budgets: LabelBudgets::default(),
            max_series: 20_000,
            milliseconds: true,
            seconds: false,
        }
    }
}

/// Every series of a process, or of a part of it. A clone is another handle on the same ones.
#[derive(Clone)]
pub struct Metrics(Arc<Shared>);

struct Shared {
    milliseconds: bool,
    seconds: bool,
    registry: Mutex<Registry>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rejected(&self, engine: &str, reason: &str) {
        let mut registry = self.lock();
        let engine = registry.values.admit(Label::Engine, None, engine);
        let family = Family::TasksRejected;
        let reason = registry.values.admit(Label::Reason, Some(family), reason);
        let labels = LabelSet::new(vec![(Label::Engine, engine), (Label::Reason, reason)]);
        registry.series(family, &Arc::new(labels)).add(1);
    }
}

impl Metrics {
    /// No series yet.
    #[must_use]
    pub fn new(config: MetricsConfig) -> Self {
        let MetricsConfig { budgets, max_series, milliseconds, seconds } = config;
        let registry = Mutex::new(Registry::new(budgets, max_series));
        Self(Arc::new(Shared { milliseconds, seconds, registry }))
    }

    /// The series of one replica; for the same names, the same ones.
    #[must_use]
    pub fn replica(&self, engine: &str, pool_id: &str, replica_id: &str) -> ReplicaMetrics {
        ReplicaMetrics::open(&mut self.0.lock(), &self.0, (engine, pool_id, replica_id))
    }

    /// A task was refused before any replica was chosen.
    pub fn rejected(&self, engine: &str, reason: &str) {
        self.0.rejected(engine, reason);
    }

    /// A series of the orchestrator's own, exported from now on.
    ///
    /// # Errors
    ///
    /// The family is not one of the orchestrator's, or these are not its labels.
    pub fn orchestrator(
        &self,
        family: Family,
        labels: &[(Label, &str)],
    ) -> Result<OwnSeries, NotOwn> {
        let given = |label: &Label| labels.iter().find(|(own, _)| own == label);
        let is_own = family.origin() == Origin::Orchestrator;
        if !is_own || labels.len() != family.labels().len() {
            return Err(NotOwn(family));
        }
        let mut registry = self.0.lock();
        let mut pairs = Vec::with_capacity(labels.len());
        for label in family.labels() {
            let (_, value) = given(label).ok_or(NotOwn(family))?;
            pairs.push((*label, registry.values.admit(*label, Some(family), value)));
        }
        let series = registry.series(family, &Arc::new(LabelSet::new(pairs)));
        let part = (family.kind() == FamilyKind::Gauge).then(|| {
            let part = Part::new(None);
            series.attach(&part);
            part
        });
        Ok(OwnSeries { series, part })
    }

    /// Reads every series. `now` is what ages are counted to.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let (shelves, overflows) = {
            let registry = self.0.lock();
            let overflows: Vec<_> = registry.values.overflows().collect();
            (registry.shelves(), overflows)
        };
        let mut families = Vec::with_capacity(shelves.len() + 3);
        for (family, shelf) in &shelves {
            let read = |series: &Arc<Series>| {
                let value = series.read(now)?;
                Some(Sample { labels: Arc::clone(&series.labels), value })
            };
            let samples: Arc<[Sample]> = shelf.iter().filter_map(read).collect();
            let twin = family.twin();
            if let (Some(twin), true) = (twin, self.0.seconds) {
                families.push(FamilySnapshot { family: twin, samples: Arc::clone(&samples) });
            }
            if twin.is_none() || self.0.milliseconds {
                families.push(FamilySnapshot { family: *family, samples });
            }
        }
        let overflows = overflows.into_iter().map(|(label, count)| Sample {
            labels: Arc::new(LabelSet::new(vec![(Label::Label, label.into())])),
            value: Value::Counter(count),
        });
        families
            .push(FamilySnapshot { family: Family::LabelOverflow, samples: overflows.collect() });
        drop(shelves);
        // What is retired has been seen once more.
        self.0.lock().sweep();
        Snapshot { families }
    }

    /// How many samples the series make in an exposition.
    #[must_use]
    pub fn series(&self) -> usize {
        self.0.lock().size()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(MetricsConfig::default())
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("series", &self.series()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// A series that its owner writes by itself. A gauge is exported as long as this lives.
#[derive(Debug)]
pub struct OwnSeries {
    series: Arc<Series>,
    part: Option<Arc<Part>>,
}

impl OwnSeries {
    /// Adds to a counter.
    pub fn add(&self, more: u64) {
        self.series.add(more);
    }

    /// Sets a gauge; None says that it is not known.
    pub fn set(&self, value: Option<f64>) {
        if let Some(part) = &self.part {
            part.set(value);
        }
    }
}

/// Not a series of the orchestrator's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotOwn(pub Family);

impl fmt::Display for NotOwn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.origin() != Origin::Orchestrator {
            return write!(f, "{} is not the orchestrator's to write", self.0);
        }
        let labels: Vec<_> = self.0.labels().iter().map(|label| label.as_str()).collect();
        write!(f, "the labels of {} are {}", self.0, labels.join(", "))
    }
}

impl std::error::Error for NotOwn {}

#[cfg(test)]
mod tests;

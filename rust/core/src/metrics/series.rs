//! One series: its labels, and the atomics that hold its value.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::histogram::{Histogram, HistogramValue, TraceId};
use super::labels::LabelSet;
use super::names::{Combine, Family, FamilyKind};
use crate::time::Instant;

#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) labels: Arc<LabelSet>,
    pub(crate) family: Family,
    cell: Cell,
    /// Of an engine version that nobody serves any more: it goes when nobody writes to it.
    is_retired: AtomicBool,
}

#[derive(Debug)]
enum Cell {
    Counter(AtomicU64),
    /// What each of those says that have these labels.
    Gauge(Mutex<Vec<Weak<Part>>>),
    Histogram(Box<Histogram>),
}

/// What one of those says that share a gauge.
#[derive(Debug)]
pub(crate) struct Part(AtomicU64);

/// Not known: of all values that are no number, this one.
const ABSENT: u64 = u64::MAX;

impl Part {
    pub(crate) fn new(value: Option<f64>) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(bits(value))))
    }

    pub(crate) fn set(&self, value: Option<f64>) {
        self.0.store(bits(value), Ordering::Relaxed);
    }

    pub(crate) fn set_instant(&self, at: Instant) {
        self.set(Some(at.as_secs_f64()));
    }

    pub(crate) fn add(&self, more: f64) {
        let add = |old| Some(bits(Some(value_of(old).unwrap_or(0.0) + more)));
        // The closure never refuses.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    pub(crate) fn get(&self) -> Option<f64> {
        value_of(self.0.load(Ordering::Relaxed))
    }
}

fn bits(value: Option<f64>) -> u64 {
    value.filter(|value| value.is_finite()).map_or(ABSENT, f64::to_bits)
}

fn value_of(bits: u64) -> Option<f64> {
    (bits != ABSENT).then(|| f64::from_bits(bits))
}

/// What a series held at one moment.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter.
    Counter(u64),
    /// Of a gauge.
    Gauge(f64),
    /// Of a histogram.
    Histogram(HistogramValue),
}

impl Series {
    pub(crate) fn new(family: Family, labels: Arc<LabelSet>) -> Self {
        let cell = match family.kind() {
            FamilyKind::Counter => Cell::Counter(AtomicU64::new(0)),
            FamilyKind::Gauge => Cell::Gauge(Mutex::default()),
            FamilyKind::Histogram(bounds) => Cell::Histogram(Box::new(Histogram::new(bounds))),
        };
        Self { labels, family, cell, is_retired: AtomicBool::new(false) }
    }

    pub(crate) fn add(&self, more: u64) {
        if let Cell::Counter(counter) = &self.cell {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }

    pub(crate) fn observe(&self, value: Duration, trace_id: Option<TraceId>) {
        if let Cell::Histogram(histogram) = &self.cell {
            histogram.observe(value, trace_id);
        }
    }

    pub(crate) fn merge(&self, counts: &[u64], sum_micros: u64) {
        if let Cell::Histogram(histogram) = &self.cell {
            histogram.merge(counts, sum_micros);
        }
    }

    pub(crate) fn attach(&self, part: &Arc<Part>) {
        if let Cell::Gauge(parts) = &self.cell {
            let mut parts = lock(parts);
            parts.retain(|part| part.strong_count() > 0);
            parts.push(Arc::downgrade(part));
        }
    }

    pub(crate) fn detach(&self, part: &Arc<Part>) {
        if let Cell::Gauge(parts) = &self.cell {
            lock(parts).retain(|other| other.as_ptr() != Arc::as_ptr(part));
        }
    }

    /// None for a gauge that is not known.
    pub(crate) fn read(&self, now: Instant) -> Option<Value> {
        match &self.cell {
            Cell::Counter(counter) => Some(Value::Counter(counter.load(Ordering::Relaxed))),
            Cell::Histogram(histogram) => Some(Value::Histogram(histogram.read())),
            Cell::Gauge(parts) => {
                let parts = lock(parts);
                let known = parts.iter().filter_map(|part| part.upgrade()?.get());
                combined(self.family.combine(), known, now).map(Value::Gauge)
            }
        }
    }

    pub(crate) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    pub(crate) fn revive(&self) {
        self.is_retired.store(false, Ordering::Relaxed);
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    /// Whether nothing would be lost by forgetting it.
    pub(crate) fn is_empty(&self) -> bool {
        match &self.cell {
            Cell::Counter(counter) => counter.load(Ordering::Relaxed) == 0,
            Cell::Histogram(histogram) => histogram.read().counts.iter().all(|count| *count == 0),
            Cell::Gauge(parts) => lock(parts).iter().all(|part| part.strong_count() == 0),
        }
    }
}

fn combined(how: Combine, known: impl Iterator<Item = f64>, now: Instant) -> Option<f64> {
    match how {
        Combine::Sum => known.reduce(|sum, value| sum + value),
        Combine::Max => known.reduce(f64::max),
        Combine::Age => known.reduce(f64::min).map(|oldest| (now.as_secs_f64() - oldest).max(0.0)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

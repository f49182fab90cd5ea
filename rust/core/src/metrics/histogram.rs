//! Durations in buckets, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The trace a value was seen in, as its 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId([u8; 32]);

impl TraceId {
    /// Reads it out of a W3C `traceparent`; None for one that is not valid.
    #[must_use]
    pub fn from_traceparent(traceparent: &str) -> Option<Self> {
        let id: [u8; 32] = traceparent.split('-').nth(1)?.as_bytes().try_into().ok()?;
        let is_hex = id.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (is_hex && id != [b'0'; 32]).then_some(Self(id))
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// One value of a bucket, and where it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemplar {
    /// The trace.
    pub trace_id: TraceId,
    /// The value, in microseconds.
    pub micros: u64,
}

#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [u64],
    /// One more than there are bounds.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    /// The latest of each bucket; none until somebody traces.
    exemplars: Mutex<Box<[Option<Exemplar>]>>,
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [u64]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
            exemplars: Mutex::default(),
        }
    }

    /// Adds what was sorted into buckets elsewhere.
    pub(crate) fn merge(&self, counts: &[u64], sum_micros: u64) {
        for (own, more) in self.counts.iter().zip(counts).filter(|(_, more)| **more > 0) {
            own.fetch_add(*more, Ordering::Relaxed);
        }
        self.sum.fetch_add(sum_micros, Ordering::Relaxed);
    }

    pub(crate) fn observe(&self, value: Duration, trace_id: Option<TraceId>) {
        let micros = u64::try_from((value.as_nanos() + 500) / 1_000).unwrap_or(u64::MAX);
        let at = self.bounds.partition_point(|bound| *bound < micros);
        if let Some(count) = self.counts.get(at) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(micros, Ordering::Relaxed);
        if let Some(trace_id) = trace_id {
            let mut exemplars = self.exemplars.lock().unwrap_or_else(PoisonError::into_inner);
            if exemplars.is_empty() {
                *exemplars = vec![None; self.counts.len()].into();
            }
            if let Some(slot) = exemplars.get_mut(at) {
                *slot = Some(Exemplar { trace_id, micros });
            }
        }
    }

    pub(crate) fn read(&self) -> HistogramValue {
        HistogramValue {
            counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum_micros: self.sum.load(Ordering::Relaxed),
            exemplars: self.exemplars.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// What a histogram held at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramValue {
    /// How many values each bucket holds by itself; the last is of those past every bound.
    pub counts: Box<[u64]>,
    /// The sum of the values.
    pub sum_micros: u64,
    /// One of each bucket, or none at all.
    pub exemplars: Box<[Option<Exemplar>]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::new(&[10, 20]);
        for micros in [0, 10, 11, 20, 21] {
            histogram.observe(Duration::from_micros(micros), None);
        }
        let value = histogram.read();
        assert_eq!(&*value.counts, [2, 2, 1]);
        assert_eq!(value.sum_micros, 62);
        assert!(value.exemplars.is_empty());
    }

    #[test]
    fn a_traceparent_is_read_strictly() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let read = |text: &str| TraceId::from_traceparent(text).map(|id| id.as_str().to_owned());
        assert_eq!(read(&format!("00-{id}-00f067aa0ba902b7-01")).as_deref(), Some(id));
        for text in ["", "00", &format!("00-{}-1-01", "0".repeat(32)), "00-\"x\"-1-01"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn the_latest_exemplar_of_a_bucket_is_kept() {
        let id = TraceId([b'a'; 32]);
        let histogram = Histogram::new(&[10]);
        histogram.observe(Duration::from_micros(3), Some(id));
        histogram.observe(Duration::from_micros(4), Some(id));
        let value = histogram.read();
        assert_eq!(&*value.exemplars, [Some(Exemplar { trace_id: id, micros: 4 }), None]);
    }
}

//! What is told of one replica.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Shared;
use super::histogram::TraceId;
use super::labels::LabelSet;
use super::names::{
    ALL_PRIORITIES, BreakerState, EngineGauge, Family, Label, OTHER, Outcome, UNKNOWN,
};
use super::registry::{Registry, ReplicaKey};
use super::series::{Part, Series};
use super::task::TaskMetrics;
use crate::time::Instant;

/// One replica's series. A clone is another handle on the same ones.
#[derive(Clone)]
pub struct ReplicaMetrics(Arc<Replica>);

pub(super) struct Replica {
    shared: Arc<Shared>,
    key: ReplicaKey,
    in_flight: Arc<Part>,
    state: Mutex<State>,
}

struct State {
    series: Arc<VersionSeries>,
    streams: Vec<(Arc<str>, Arc<StreamSeries>)>,
    gauges: Vec<Gauge>,
    readings: BTreeMap<(EngineGauge, Arc<str>), Reading>,
}

/// What a replica says under the labels that it has now.
struct Gauge {
    family: Family,
    extra: Vec<(Label, Arc<str>)>,
    part: Arc<Part>,
    series: Arc<Series>,
}

struct Reading {
    part: Arc<Part>,
    read_at: Arc<Part>,
    source: Arc<str>,
    at: Instant,
}

/// A gauge of the engine's as it was read last.
#[derive(Clone, Debug, PartialEq)]
pub struct GaugeReading {
    /// Which one.
    pub gauge: EngineGauge,
    /// Of which priority's tasks; `all` where the engine does not tell them apart.
    pub priority: Arc<str>,
    /// The value; None while it is not known.
    pub value: Option<f64>,
    /// Which of the engine's answers it comes from.
    pub source: Arc<str>,
    /// When it was read.
    pub at: Instant,
}

/// The series of one replica in one engine version.
pub(super) struct VersionSeries {
    shared: Arc<Shared>,
    key: ReplicaKey,
    version: Arc<str>,
    trtllm_version: Option<Arc<str>>,
    is_retired: AtomicBool,
    pub(super) tokens_in: Arc<Series>,
    pub(super) tokens_out: Arc<Series>,
    pub(super) bytes: Arc<Series>,
    pub(super) replacements: Arc<Series>,
    pub(super) after_end: Arc<Series>,
    pub(super) frames_dropped: Arc<Series>,
    breaker_trips: Arc<Series>,
    outcomes: Vec<(Outcome, Arc<Series>)>,
}

/// Beside those, the series of one priority.
pub(super) struct StreamSeries {
    pub(super) version: Arc<VersionSeries>,
    pub(super) started: Arc<Series>,
    pub(super) first_token: Arc<Series>,
    pub(super) decode: Arc<Series>,
    pub(super) inter_token: Arc<Series>,
}

impl VersionSeries {
    fn open(
        registry: &mut Registry,
        shared: &Arc<Shared>,
        key: &ReplicaKey,
        version: &Arc<str>,
        trtllm_version: Option<&Arc<str>>,
    ) -> Self {
        let labels_of = |family: Family, extra: &[(Label, Arc<str>)]| {
            Arc::new(label_set(key, version, trtllm_version, family, extra))
        };
        let own = labels_of(Family::TokensOut, &[]);
        let mut of = |family| registry.series(family, &own);
        let series = Self {
            shared: Arc::clone(shared),
            key: key.clone(),
            version: Arc::clone(version),
            trtllm_version: trtllm_version.cloned(),
            is_retired: AtomicBool::new(false),
            tokens_in: of(Family::TokensIn),
            tokens_out: of(Family::TokensOut),
            bytes: of(Family::DecodeBytes),
            replacements: of(Family::SseReplacements),
            after_end: of(Family::FramesAfterEnd),
            frames_dropped: of(Family::MetricsFramesDropped),
            breaker_trips: of(Family::BreakerTrips),
            outcomes: Vec::new(),
        };
        let outcomes = Outcome::ALL.iter().map(|outcome| {
            let value = registry.values.admit(Label::Outcome, None, outcome.as_str());
            let labels = labels_of(Family::TasksFinished, &[(Label::Outcome, value)]);
            (*outcome, registry.series(Family::TasksFinished, &labels))
        });
        Self { outcomes: outcomes.collect(), ..series }
    }

    pub(super) fn labels(&self, family: Family, extra: &[(Label, Arc<str>)]) -> Arc<LabelSet> {
        let trtllm_version = self.trtllm_version.as_ref();
        Arc::new(label_set(&self.key, &self.version, trtllm_version, family, extra))
    }

    /// Counts what is too seldom to have a series of its own at hand.
    pub(super) fn count(&self, family: Family, extra: &[(Label, &str)]) {
        self.seldom(family, extra, |series| series.add(1));
    }

    fn seldom(&self, family: Family, extra: &[(Label, &str)], write: impl FnOnce(&Series)) {
        let mut registry = self.shared.lock();
        let extra: Vec<_> = extra
            .iter()
            .map(|(label, value)| (*label, registry.values.admit(*label, Some(family), value)))
            .collect();
        let series = registry.series(family, &self.labels(family, &extra));
        write(&series);
        if self.is_retired.load(Ordering::Relaxed) {
            registry.let_go(&series);
        }
    }

    pub(super) fn rejected(&self, code: &str) {
        self.shared.rejected(&self.key.0, code);
    }

    pub(super) fn stopped(&self, confirmed: Option<bool>, took: Duration) {
        let word = match confirmed {
            Some(true) => "yes",
            Some(false) => "no",
            None => UNKNOWN,
        };
        self.count(Family::TaskCancels, &[(Label::Confirmed, word)]);
        if confirmed == Some(true) {
            self.seldom(Family::CancelConfirmation, &[], |series| series.observe(took, None));
        }
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        if let Some((_, series)) = self.outcomes.iter().find(|(own, _)| *own == outcome) {
            series.add(1);
        }
    }
}

/// The labels of a family's series, in its order.
fn label_set(
    (engine, pool, replica): &ReplicaKey,
    version: &Arc<str>,
    trtllm_version: Option<&Arc<str>>,
    family: Family,
    extra: &[(Label, Arc<str>)],
) -> LabelSet {
    let mut pairs = Vec::with_capacity(family.labels().len() + 1);
    for label in family.labels() {
        let value = match label {
            Label::Engine => Some(engine),
            Label::EngineVersion => Some(version),
            Label::PoolId => Some(pool),
            Label::ReplicaId => Some(replica),
            _ => extra.iter().find_map(|(own, value)| (own == label).then_some(value)),
        };
        if let Some(value) = value {
            pairs.push((*label, Arc::clone(value)));
        }
        if *label == Label::EngineVersion
            && let Some(trtllm_version) = trtllm_version
        {
            pairs.push((Label::TrtllmVersion, Arc::clone(trtllm_version)));
        }
    }
    LabelSet::new(pairs)
}

impl Replica {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Has `part` say this gauge, under these labels beside the replica's own.
    fn show(
        &mut self,
        registry: &mut Registry,
        family: Family,
        extra: Vec<(Label, Arc<str>)>,
        part: &Arc<Part>,
    ) {
        let series = registry.series(family, &self.series.labels(family, &extra));
        series.attach(part);
        self.gauges.push(Gauge { family, extra, part: Arc::clone(part), series });
    }

    fn hide(&mut self, registry: &mut Registry, part: &Arc<Part>) {
        self.gauges.retain(|gauge| {
            let is_other = !Arc::ptr_eq(&gauge.part, part);
            if !is_other {
                gauge.series.detach(part);
                registry.let_go(&gauge.series);
            }
            is_other
        });
    }
}

impl ReplicaMetrics {
    pub(super) fn open(
        registry: &mut Registry,
        shared: &Arc<Shared>,
        (engine, pool, replica): (&str, &str, &str),
    ) -> Self {
        let key = (
            registry.values.admit(Label::Engine, None, engine),
            registry.values.admit(Label::PoolId, None, pool),
            registry.values.admit(Label::ReplicaId, None, replica),
        );
        let is_one = is_one(&key);
        if let Some(replica) = registry.replicas.get(&key).and_then(std::sync::Weak::upgrade)
            && is_one
        {
            return Self(replica);
        }
        let version = registry.values.admit(Label::EngineVersion, None, UNKNOWN);
        let series = VersionSeries::open(registry, shared, &key, &version, None);
        let mut state = State {
            series: Arc::new(series),
            streams: Vec::new(),
            gauges: Vec::new(),
            readings: BTreeMap::new(),
        };
        let in_flight = Part::new(Some(0.0));
        state.show(registry, Family::TasksInFlight, Vec::new(), &in_flight);
        let replica = Arc::new(Replica {
            shared: Arc::clone(shared),
            key: key.clone(),
            in_flight,
            state: Mutex::new(state),
        });
        if is_one {
            registry.replicas.retain(|_, replica| replica.strong_count() > 0);
            registry.replicas.insert(key, Arc::downgrade(&replica));
        }
        Self(replica)
    }

    /// The engine's name, as it is counted.
    #[must_use]
    pub fn engine(&self) -> &str {
        &self.0.key.0
    }

    /// The pool's id, as it is counted.
    #[must_use]
    pub fn pool_id(&self) -> &str {
        &self.0.key.1
    }

    /// The replica's id, as it is counted.
    #[must_use]
    pub fn replica_id(&self) -> &str {
        &self.0.key.2
    }

    /// The engine's version, `unknown` until it is set.
    #[must_use]
    pub fn engine_version(&self) -> Arc<str> {
        Arc::clone(&self.0.lock().series.version)
    }

    /// Says which build the engine is. Gauges move to it; counters of another one stay as long as
    /// a stream of it lives, and are seen by one scrape more.
    pub fn set_engine_version(&self, version: &str, trtllm_version: Option<&str>) {
        let mut state = self.0.lock();
        let mut registry = self.0.shared.lock();
        let version = registry.values.admit(Label::EngineVersion, None, version);
        let trtllm_version =
            trtllm_version.map(|it| registry.values.admit(Label::TrtllmVersion, None, it));
        if state.series.version == version && state.series.trtllm_version == trtllm_version {
            return;
        }
        let key = &self.0.key;
        let series = VersionSeries::open(
            &mut registry,
            &self.0.shared,
            key,
            &version,
            trtllm_version.as_ref(),
        );
        let old = std::mem::replace(&mut state.series, Arc::new(series));
        old.is_retired.store(true, Ordering::Relaxed);
        drop(old);
        state.streams.clear();
        for gauge in std::mem::take(&mut state.gauges) {
            gauge.series.detach(&gauge.part);
            state.show(&mut registry, gauge.family, gauge.extra, &gauge.part);
        }
        if is_one(key) {
            registry.retire(key, Some(&version));
        }
    }

    /// What one task of this priority tells. `trace_id` is what its latencies are found by.
    #[must_use]
    pub fn task(&self, priority: &str, trace_id: Option<TraceId>) -> TaskMetrics {
        let mut state = self.0.lock();
        let known = state.streams.iter().find(|(own, _)| &**own == priority);
        let series = if let Some((_, series)) = known {
            Arc::clone(series)
        } else {
            let mut registry = self.0.shared.lock();
            let priority = registry.values.admit(Label::Priority, None, priority);
            let version = Arc::clone(&state.series);
            let extra = [(Label::Priority, Arc::clone(&priority))];
            let mut of = |family| registry.series(family, &version.labels(family, &extra));
            let series = Arc::new(StreamSeries {
                started: of(Family::TasksStarted),
                first_token: of(Family::LatencyFirstToken),
                decode: of(Family::LatencyDecode),
                inter_token: of(Family::InterToken),
                version,
            });
            if &*priority != OTHER {
                state.streams.push((priority, Arc::clone(&series)));
            }
            series
        };
        TaskMetrics::new(series, Arc::clone(&self.0.in_flight), trace_id)
    }

    /// A task was refused before there was anything of it: by whoever routes, or the breaker.
    pub fn rejected(&self, reason: &str) {
        self.0.shared.rejected(self.engine(), reason);
    }

    /// A request is sent once more, because of an error of this code.
    pub fn retried(&self, reason: &str) {
        let series = Arc::clone(&self.0.lock().series);
        series.count(Family::TaskRetries, &[(Label::Reason, reason)]);
    }

    /// Where the circuit breaker stands.
    pub fn set_breaker(&self, breaker: BreakerState) {
        let mut state = self.0.lock();
        let known = state.gauges.iter().find(|gauge| gauge.family == Family::BreakerState);
        let part = if let Some(gauge) = known {
            Arc::clone(&gauge.part)
        } else {
            let part = Part::new(None);
            let mut registry = self.0.shared.lock();
            state.show(&mut registry, Family::BreakerState, Vec::new(), &part);
            part
        };
        part.set(Some(breaker.value()));
    }

    /// The circuit breaker opened.
    pub fn breaker_tripped(&self) {
        self.0.lock().series.breaker_trips.add(1);
    }

    /// Sets a gauge of the engine's, of all priorities or of one; None says that it is not known.
    /// `source` names which of its answers it comes from, `now` is when that came.
    pub fn set_gauge(
        &self,
        gauge: EngineGauge,
        priority: Option<&str>,
        value: Option<f64>,
        source: &str,
        now: Instant,
    ) {
        let mut state = self.0.lock();
        let mut registry = self.0.shared.lock();
        let priority = priority.unwrap_or(ALL_PRIORITIES);
        let priority = registry.values.admit(Label::Priority, None, priority);
        let source = registry.values.admit(Label::Source, None, source);
        let key = (gauge, Arc::clone(&priority));
        let mut reading = state.readings.remove(&key);
        if value.is_none() || reading.as_ref().is_some_and(|known| known.source != source) {
            if let Some(known) = reading.take() {
                state.hide(&mut registry, &known.part);
                state.hide(&mut registry, &known.read_at);
            }
            if value.is_none() {
                return;
            }
        }
        let reading = reading.unwrap_or_else(|| {
            let (part, read_at) = (Part::new(None), Part::new(None));
            let family = gauge.family();
            let by_priority = family.labels().contains(&Label::Priority);
            let extra = by_priority.then_some((Label::Priority, priority)).into_iter().collect();
            state.show(&mut registry, family, extra, &part);
            let name = registry.values.admit(Label::Gauge, None, gauge.as_str());
            let extra = vec![(Label::Gauge, name), (Label::Source, Arc::clone(&source))];
            state.show(&mut registry, Family::GaugeAge, extra, &read_at);
            Reading { part, read_at, source, at: now }
        });
        reading.part.set(value);
        reading.read_at.set_instant(now);
        state.readings.insert(key, Reading { at: now, ..reading });
    }

    /// Every gauge of the engine's that is known.
    #[must_use]
    pub fn gauges(&self) -> Vec<GaugeReading> {
        let state = self.0.lock();
        let readings = state.readings.iter().map(|((gauge, priority), reading)| GaugeReading {
            gauge: *gauge,
            priority: Arc::clone(priority),
            value: reading.part.get(),
            source: Arc::clone(&reading.source),
            at: reading.at,
        });
        readings.collect()
    }

    /// Lets the series go: the replica is no more. They are seen by one scrape more, and by those
    /// until its last stream has ended.
    pub fn retire(&self) {
        let mut state = self.0.lock();
        let mut registry = self.0.shared.lock();
        state.series.is_retired.store(true, Ordering::Relaxed);
        state.streams.clear();
        state.readings.clear();
        for gauge in state.gauges.drain(..) {
            gauge.series.detach(&gauge.part);
        }
        if is_one(&self.0.key) {
            registry.replicas.remove(&self.0.key);
            registry.retire(&self.0.key, None);
        }
    }
}

/// Whether this is one replica, and not all those past a budget.
fn is_one((engine, pool, replica): &ReplicaKey) -> bool {
    [engine, pool, replica].iter().all(|value| &***value != OTHER)
}

impl fmt::Debug for ReplicaMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicaMetrics")
            .field("engine", &self.engine())
            .field("pool_id", &self.pool_id())
            .field("replica_id", &self.replica_id())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("key", &self.key).finish_non_exhaustive()
    }
}

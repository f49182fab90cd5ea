//! Every name: metrics, labels, buckets. Nothing else spells one.

use crate::words::words;

words! {
    /// A label.
    Label {
        /// The engine's name.
        Engine = "engine",
        /// Its build; `unknown` until it has said.
        EngineVersion = "engine_version",
        /// The TensorRT-LLM behind Triton, where there is one.
        TrtllmVersion = "trtllm_version",
        /// The pool.
        PoolId = "pool_id",
        /// The replica within its pool.
        ReplicaId = "replica_id",
        /// A task's priority; `all` where an engine does not tell them apart.
        Priority = "priority",
        /// Why a task was rejected or cancelled, or a request sent again.
        Reason = "reason",
        /// A model.
        ModelId = "model_id",
        /// How a task ended.
        Outcome = "outcome",
        /// The kind of an error.
        Kind = "kind",
        /// The phase of an error.
        Phase = "phase",
        /// Whether the engine confirmed a cancel.
        Confirmed = "confirmed",
        /// Which gauge an age is of.
        Gauge = "gauge",
        /// Which of the engine's answers a gauge comes from.
        Source = "source",
        /// What an orchestrator does under pressure.
        Policy = "policy",
        /// A state of something that has a few.
        State = "state",
        /// A label past its budget.
        Label = "label",
    }
}

/// Stands for every value past a label's budget.
pub const OTHER: &str = "other";

/// The version of an engine that has not told it.
pub const UNKNOWN: &str = "unknown";

/// The priority of what an engine reports without one.
pub const ALL_PRIORITIES: &str = "all";

/// What kind of series a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyKind {
    /// Only grows.
    Counter,
    /// Goes up and down; absent while it is not known.
    Gauge,
    /// Durations, by upper bounds in microseconds.
    Histogram(&'static [u64]),
}

impl FamilyKind {
    /// The word of the exposition formats.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// Whom a family is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The contract names it.
    Contract,
    /// This project adds it.
    Project,
    /// The orchestrator's own: exported only once it has been asked for.
    Orchestrator,
}

/// How the values of several replicas under the same labels make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Combine {
    Sum,
    Max,
    /// The age of the oldest; what is kept is when it was read.
    Age,
}

const BY_REPLICA: &[Label] =
    &[Label::Engine, Label::EngineVersion, Label::PoolId, Label::ReplicaId];
const BY_TASK: &[Label] =
    &[Label::Engine, Label::EngineVersion, Label::PoolId, Label::ReplicaId, Label::Priority];
const BY_POOL: &[Label] = &[Label::Engine, Label::EngineVersion, Label::PoolId, Label::Priority];
const BY_REASON: &[Label] =
    &[Label::Engine, Label::EngineVersion, Label::PoolId, Label::ReplicaId, Label::Reason];
const BY_OUTCOME: &[Label] =
    &[Label::Engine, Label::EngineVersion, Label::PoolId, Label::ReplicaId, Label::Outcome];
const BY_ERROR: &[Label] = &[
    Label::Engine,
    Label::EngineVersion,
    Label::PoolId,
    Label::ReplicaId,
    Label::Kind,
    Label::Phase,
];
const BY_CONFIRMED: &[Label] =
    &[Label::Engine, Label::EngineVersion, Label::PoolId, Label::ReplicaId, Label::Confirmed];
const BY_GAUGE: &[Label] = &[
    Label::Engine,
    Label::EngineVersion,
    Label::PoolId,
    Label::ReplicaId,
    Label::Gauge,
    Label::Source,
];

const FIRST_TOKEN: FamilyKind = FamilyKind::Histogram(&[
    50_000, 100_000, 150_000, 200_000, 300_000, 500_000, 750_000, 1_000_000, 1_500_000, 2_000_000,
    3_000_000,
]);
const DECODE: FamilyKind = FamilyKind::Histogram(&[
    250_000, 500_000, 1_000_000, 1_500_000, 2_000_000, 3_000_000, 4_000_000, 6_000_000, 8_000_000,
    12_000_000,
]);
pub(super) const INTER_TOKEN_BOUNDS: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 15_000, 20_000, 30_000, 50_000, 75_000, 100_000, 150_000, 200_000,
    300_000, 500_000, 1_000_000,
];
const INTER_TOKEN: FamilyKind = FamilyKind::Histogram(&INTER_TOKEN_BOUNDS);
const CONFIRMATION: FamilyKind = FamilyKind::Histogram(&[
    1_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000,
]);

macro_rules! families {
    ($($variant:ident = $name:literal $kind:expr, $labels:expr, $origin:ident, $help:literal;)+) => {
        words! {
            /// A metric.
            Family { $(#[doc = $help] $variant = $name,)+ }
        }

        impl Family {
            /// What it tells.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self {
                    $(Self::$variant => $help,)+
                }
            }

            /// What kind of series it has.
            #[must_use]
            pub const fn kind(self) -> FamilyKind {
                match self {
                    $(Self::$variant => $kind,)+
                }
            }

            /// The labels of its series; `trtllm_version` comes to them where it applies.
            #[must_use]
            pub const fn labels(self) -> &'static [Label] {
                match self {
                    $(Self::$variant => $labels,)+
                }
            }

            /// Whom it is from.
            #[must_use]
            pub const fn origin(self) -> Origin {
                match self {
                    $(Self::$variant => Origin::$origin,)+
                }
            }
        }
    };
}

families! {
    TasksStarted = "tasks_started_total" FamilyKind::Counter, BY_TASK, Contract,
        "Tasks handed to an engine.";
    TasksCanceled = "tasks_canceled_total" FamilyKind::Counter, BY_REASON, Contract,
        "Tasks that ended because nobody wanted them any more.";
    TasksRejected = "tasks_rejected_total" FamilyKind::Counter, &[Label::Engine, Label::Reason],
        Contract, "Tasks whose submit raised, by the code of the error.";
    TokensIn = "tokens_in_total" FamilyKind::Counter, BY_REPLICA, Contract,
        "Tokens of prompts and inputs, as engines counted them.";
    TokensOut = "tokens_out_total" FamilyKind::Counter, BY_REPLICA, Contract,
        "Tokens generated.";
    LatencyFirstToken = "latency_first_token_ms" FIRST_TOKEN, BY_POOL, Contract,
        "From dispatch to the first token, in milliseconds.";
    LatencyDecode = "latency_decode_ms" DECODE, BY_POOL, Contract,
        "From the first token to the end of a task that ended by itself, in milliseconds.";
    KvCacheUsage = "kv_cache_usage_ratio" FamilyKind::Gauge, BY_REPLICA, Contract,
        "Share of the engine's KV cache in use, 0 to 1.";
    QueueDepth = "queue_depth" FamilyKind::Gauge, BY_POOL, Contract,
        "Tasks that wait in the engines of a pool.";
    LatencyFirstTokenSeconds = "latency_first_token_seconds" FIRST_TOKEN, BY_POOL, Project,
        "From dispatch to the first token.";
    LatencyDecodeSeconds = "latency_decode_seconds" DECODE, BY_POOL, Project,
        "From the first token to the end of a task that ended by itself.";
    InterToken = "inter_token_latency_seconds" INTER_TOKEN, BY_POOL, Project,
        "Between two tokens of a stream; of tokens that come together, their even share.";
    TasksInFlight = "tasks_in_flight" FamilyKind::Gauge, BY_REPLICA, Project,
        "Tasks handed to the engine that have not ended.";
    TasksFinished = "tasks_finished_total" FamilyKind::Counter, BY_OUTCOME, Project,
        "Tasks by outcome: completed, cancelled, failed mid-stream, rejected by submit.";
    TaskErrors = "task_errors_total" FamilyKind::Counter, BY_ERROR, Project,
        "Errors that ended a task, by kind and phase.";
    TaskRetries = "task_retries_total" FamilyKind::Counter, BY_REASON, Project,
        "Requests sent once more, by the code of the error before.";
    TaskCancels = "task_cancels_total" FamilyKind::Counter, BY_CONFIRMED, Project,
        "Cancels that ended something, by whether the engine confirmed that it stopped.";
    CancelConfirmation = "task_cancel_confirmation_seconds" CONFIRMATION, BY_REPLICA, Project,
        "How long cancels took that the engine confirmed.";
    Slots = "slots" FamilyKind::Gauge, BY_REPLICA, Project,
        "Tasks the engine can run at once.";
    SlotsFree = "slots_free" FamilyKind::Gauge, BY_REPLICA, Project,
        "Places of the engine that no task holds.";
    RequestsRunning = "requests_running" FamilyKind::Gauge, BY_REPLICA, Project,
        "Requests the engine works on, whoever sent them.";
    GaugeAge = "engine_gauge_age_seconds" FamilyKind::Gauge, BY_GAUGE, Project,
        "How long ago a gauge of the engine's was read, and from what.";
    BreakerState = "breaker_state" FamilyKind::Gauge, BY_REPLICA, Project,
        "Circuit breaker: 0 closed, 1 open, 2 half open.";
    BreakerTrips = "breaker_trips_total" FamilyKind::Counter, BY_REPLICA, Project,
        "How often the circuit breaker opened.";
    MetricsFramesDropped = "metrics_frames_dropped_total" FamilyKind::Counter, BY_REPLICA, Project,
        "Metrics events given up because a reader was slow.";
    DecodeBytes = "decode_bytes_total" FamilyKind::Counter, BY_REPLICA, Project,
        "Bytes of response bodies decoded.";
    SseReplacements = "sse_replacements_total" FamilyKind::Counter, BY_REPLICA, Project,
        "Malformed UTF-8 sequences that became U+FFFD.";
    FramesAfterEnd = "frames_after_end_total" FamilyKind::Counter, BY_REPLICA, Project,
        "Frames dropped because they came after the terminal event.";
    LabelOverflow = "label_overflow_total" FamilyKind::Counter, &[Label::Label], Project,
        "Label values past their budget, and series past theirs, counted as `other`.";
    TasksEnqueued = "tasks_enqueued_total" FamilyKind::Counter, BY_TASK, Orchestrator,
        "Tasks admitted to a queue.";
    GpuUtilization = "gpu_utilization" FamilyKind::Gauge, BY_REPLICA, Orchestrator,
        "Share of the GPU in use.";
    VramUsed = "vram_used_bytes" FamilyKind::Gauge, BY_REPLICA, Orchestrator,
        "GPU memory in use.";
    AdmissionBackpressure = "admission_backpressure_events_total" FamilyKind::Counter,
        &[Label::Engine, Label::Policy], Orchestrator, "Tasks held back at admission.";
    PlacementDecisions = "placement_decisions_total" FamilyKind::Counter,
        &[Label::PoolId, Label::Outcome], Orchestrator, "Placements, by pool and outcome.";
    PlacementCandidates = "placement_candidates_considered" FamilyKind::Gauge,
        &[Label::PoolId], Orchestrator, "Replicas looked at by the last placement.";
    ModelState = "model_state" FamilyKind::Gauge, &[Label::ModelId, Label::State], Orchestrator,
        "1 for the state that a model is in.";
    CatalogVerifications = "catalog_verifications_total" FamilyKind::Counter,
        &[Label::Outcome, Label::Reason], Orchestrator, "Verifications of catalogued models.";
}

impl Family {
    /// The family whose series these are, in another unit.
    pub(crate) const fn twin(self) -> Option<Self> {
        match self {
            Self::LatencyFirstToken => Some(Self::LatencyFirstTokenSeconds),
            Self::LatencyDecode => Some(Self::LatencyDecodeSeconds),
            _ => None,
        }
    }

    pub(crate) const fn is_twin(self) -> bool {
        matches!(self, Self::LatencyFirstTokenSeconds | Self::LatencyDecodeSeconds)
    }

    /// How many microseconds its unit has.
    #[must_use]
    pub const fn micros_per_unit(self) -> u32 {
        match self {
            Self::LatencyFirstToken | Self::LatencyDecode => 1_000,
            _ => 1_000_000,
        }
    }

    pub(crate) const fn combine(self) -> Combine {
        match self {
            Self::KvCacheUsage | Self::BreakerState => Combine::Max,
            Self::GaugeAge => Combine::Age,
            _ => Combine::Sum,
        }
    }

    /// How many lines of an exposition one series takes.
    pub(crate) const fn samples(self) -> usize {
        match self.kind() {
            FamilyKind::Histogram(bounds) => bounds.len() + 3,
            _ => 1,
        }
    }
}

words! {
    /// How a task ended.
    Outcome {
        /// By itself.
        Completed = "completed",
        /// By a cancel.
        Cancelled = "cancelled",
        /// By an error of its stream.
        Failed = "failed",
        /// Its submit raised.
        Rejected = "rejected",
    }
}

words! {
    /// A gauge of the engine's own.
    EngineGauge {
        /// [`Family::QueueDepth`].
        QueueDepth = "queue_depth",
        /// [`Family::RequestsRunning`].
        RequestsRunning = "requests_running",
        /// [`Family::KvCacheUsage`].
        KvCacheUsage = "kv_cache_usage_ratio",
        /// [`Family::Slots`].
        Slots = "slots",
        /// [`Family::SlotsFree`].
        SlotsFree = "slots_free",
    }
}

impl EngineGauge {
    pub(crate) const fn family(self) -> Family {
        match self {
            Self::QueueDepth => Family::QueueDepth,
            Self::RequestsRunning => Family::RequestsRunning,
            Self::KvCacheUsage => Family::KvCacheUsage,
            Self::Slots => Family::Slots,
            Self::SlotsFree => Family::SlotsFree,
        }
    }
}

words! {
    /// Where a circuit breaker stands.
    BreakerState {
        /// Tasks pass.
        Closed = "closed",
        /// None does.
        Open = "open",
        /// One is let through, to see.
        HalfOpen = "half_open",
    }
}

impl BreakerState {
    pub(crate) const fn value(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::Open => 1.0,
            Self::HalfOpen => 2.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_its_series_are() {
        for family in Family::ALL {
            let name = family.as_str();
            assert_eq!(name.ends_with("_total"), family.kind() == FamilyKind::Counter, "{name}");
            if let FamilyKind::Histogram(bounds) = family.kind() {
                assert!(bounds.is_sorted(), "{name}");
                let unit = if family.micros_per_unit() == 1_000 { "_ms" } else { "_seconds" };
                assert!(name.ends_with(unit), "{name}");
            }
        }
    }
}

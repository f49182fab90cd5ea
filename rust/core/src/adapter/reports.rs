//! What an adapter reports, and the clocks it is given.

use std::time::Duration;

#[cfg(feature = "serde")]
use super::json;
use crate::clocks::Clocks;
use crate::task::InvalidTask;
use crate::time::Instant;
use crate::words::words;

words! {
    /// What a cancel did.
    CancelMethod {
        /// The task was unknown or had ended.
        None = "none",
        /// The connection was closed.
        Close = "close",
        /// The connection was closed and the engine's own abort was called.
        CloseAndAbort = "close+abort",
    }
}

/// What [`WorkerAdapter::health`](super::WorkerAdapter::health) found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct WorkerHealth {
    /// Whether the engine answers at all.
    pub live: bool,
    /// Whether a task would be dispatched now: the model is loaded and nothing drains.
    pub ready: bool,
    /// Why it is not ready: a stable word such as `connect`, `loading` or `wrong_model`.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub reason: Option<String>,
}

impl WorkerHealth {
    /// The engine would take a task now.
    #[must_use]
    pub fn ready() -> Self {
        Self { live: true, ready: true, reason: None }
    }

    /// The engine answers, but would not take a task.
    #[must_use]
    pub fn unready(reason: impl Into<String>) -> Self {
        Self { live: true, ready: false, reason: Some(reason.into()) }
    }

    /// The engine does not answer.
    #[must_use]
    pub fn unreachable(reason: impl Into<String>) -> Self {
        Self { live: false, ready: false, reason: Some(reason.into()) }
    }

    /// The engine's state in one word: `ready`, `loading`, `draining`, `failed` or `unreachable`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (self.ready, self.live, self.reason.as_deref()) {
            (true, _, _) => "ready",
            (_, false, _) => "unreachable",
            (_, _, Some("loading")) => "loading",
            (_, _, Some("draining")) => "draining",
            _ => "failed",
        }
    }
}

/// How many tasks the engine can run at once, as far as it tells; None where it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct WorkerProps {
    /// All slots.
    #[cfg_attr(
        feature = "serde",
        serde(
            skip_serializing_if = "Option::is_none",
            deserialize_with = "crate::task::json::count"
        )
    )]
    pub slots_total: Option<u32>,
    /// Those that no task holds.
    #[cfg_attr(
        feature = "serde",
        serde(
            skip_serializing_if = "Option::is_none",
            deserialize_with = "crate::task::json::count"
        )
    )]
    pub slots_free: Option<u32>,
    /// Which of the engine's answers the figures come from.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub source: Option<String>,
}

/// What [`WorkerAdapter::cancel`](super::WorkerAdapter::cancel) did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct CancelReceipt {
    /// What was done.
    pub method: CancelMethod,
    /// Whether anything was done about the engine.
    pub sent: bool,
    /// Whether the engine has confirmed it; None where it has no way to.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub confirmed: Option<bool>,
    /// How long the call took; in JSON `elapsed_ms`, to the microsecond.
    #[cfg_attr(feature = "serde", serde(rename = "elapsed_ms", with = "json::millis"))]
    pub elapsed: Duration,
}

impl CancelReceipt {
    /// A receipt; `sent` follows from the method.
    #[must_use]
    pub fn new(method: CancelMethod, confirmed: Option<bool>, elapsed: Duration) -> Self {
        Self { method, sent: method != CancelMethod::None, confirmed, elapsed }
    }
}

/// The clocks of an adapter or of one call; None switches a clock off.
///
/// The defaults are the contract's. In JSON they are seconds, and None is `null`. A task's own
/// deadline ends it whatever these say.
///
/// ```
/// use std::time::Duration;
/// use worker_adapters_core::adapter::Timeouts;
///
/// let timeouts = Timeouts { token_gap: None, ..Timeouts::default() };
/// assert_eq!(timeouts.first_token, Some(Duration::from_secs(120)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct Timeouts {
    /// From the start of name resolution to the TCP connection; 5 s.
    #[cfg_attr(feature = "serde", serde(with = "json::seconds"))]
    pub connect: Option<Duration>,
    /// The TLS handshake; 5 s.
    #[cfg_attr(feature = "serde", serde(with = "json::seconds"))]
    pub tls: Option<Duration>,
    /// A whole call that is not a stream: health, props, version, embeddings, rerank; 30 s.
    #[cfg_attr(feature = "serde", serde(with = "json::seconds"))]
    pub unary: Option<Duration>,
    /// From dispatch to the first generated token; covers the wait for the response head; 120 s.
    #[cfg_attr(feature = "serde", serde(with = "json::seconds"))]
    pub first_token: Option<Duration>,
    /// Between two frames that stand for generated tokens; stops while the reader is away; 30 s.
    #[cfg_attr(feature = "serde", serde(with = "json::seconds"))]
    pub token_gap: Option<Duration>,
    /// No byte at all, keep-alive comments included; off.
    #[cfg_attr(feature = "serde", serde(with = "json::seconds"))]
    pub idle: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        Self {
            connect: seconds(5),
            tls: seconds(5),
            unary: seconds(30),
            first_token: seconds(120),
            token_gap: seconds(30),
            idle: None,
        }
    }
}

impl Timeouts {
    /// Checks that every clock that is on has time on it.
    ///
    /// # Errors
    ///
    /// The first clock that has none.
    pub fn check(&self) -> Result<(), InvalidTask> {
        let clocks = [
            ("connect", self.connect),
            ("tls", self.tls),
            ("unary", self.unary),
            ("first_token", self.first_token),
            ("token_gap", self.token_gap),
            ("idle", self.idle),
        ];
        for (field, clock) in clocks {
            if clock.is_some_and(|clock| clock.is_zero()) {
                return Err(InvalidTask::new(
                    format!("timeouts.{field}"),
                    "must be a positive time, or None to switch the clock off",
                ));
            }
        }
        Ok(())
    }

    /// The clocks of one stream, for a task that must have ended by `deadline`.
    #[must_use]
    pub fn stream_clocks(&self, deadline: Option<Instant>) -> Clocks {
        Clocks {
            first_token: self.first_token,
            token_gap: self.token_gap,
            idle: self.idle,
            deadline,
        }
    }
}

//! Bytes of LLM engines in, token events out – with no I/O, no clock and no Python.
//!
//! An engine's answer is a stream of server-sent events in a dialect of its own. This crate decodes
//! them into one vocabulary, [`event::TokenEvent`], under one law: `started`, then tokens, then
//! exactly one `end` or `error`. A stream that was cut off is an error, never an end.
//!
//! The parts, from the wire up:
//!
//! * [`sse`] decodes `text/event-stream`; [`json`] takes a few fields out of a document while
//!   checking all of it.
//! * [`dialects`] knows how engines write their frames. Bring your own with
//!   [`dialects::FrameParser`].
//! * [`stream`] is the state machine of one response, clocks included. It is told what happens and
//!   when, and answers with events.
//! * [`error`], [`engine_error`] and [`rules`] turn what goes wrong into data.
//! * [`metrics`] counts what happens, for Prometheus.
//! * [`redact`] keeps secrets out of every text.
//! * [`egress`] decides what may be connected to.
//! * [`adapter`] is the contract between an orchestrator and an engine, [`task`] what crosses it.
//!
//! `examples/replay.rs` decodes a captured body with nothing but this crate.

#![forbid(unsafe_code)]

pub mod adapter;
mod clocks;
pub mod dialects;
pub mod egress;
pub mod engine_error;
pub mod error;
pub mod event;
mod hidden;
pub mod http;
pub mod json;
pub mod metrics;
mod pause;
pub mod redact;
pub mod rules;
pub mod sse;
pub mod stream;
pub mod task;
mod template;
pub mod time;
mod words;

pub use adapter::{TokenStream, WorkerAdapter};
pub use clocks::Clocks;
pub use dialects::Dialect;
pub use event::TokenEvent;
pub use stream::{StreamConfig, StreamDecoder};
pub use task::TaskRequest;

/// What a [`TokenStream`] is to executors and combinators.
pub use futures_core::Stream;
/// What URLs are read with: who connects reads them as the [`egress`] policy does.
pub use url;

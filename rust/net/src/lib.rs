//! The native data plane: sockets read and decoded into token events.
//!
//! * [`Reactor`] moves any number of exchanges on; [`Target`] is an address they go to;
//!   [`EventStream`] hands over the events of one. What a response means is decided by a [`Sink`],
//!   which every `StreamDecoder` of `worker-adapters-core` is.
//! * [`Tasks`] sends tasks as the contract's `WorkerAdapter` has it and reaches them to cancel;
//!   [`Target::ask`] is for calls that end in one answer.
//! * [`http1`] reads HTTP/1.1 responses strictly, without copying bodies.
//! * [`origin`] reads base URLs; [`resolver`] turns names into addresses in a few threads,
//!   [`happy_eyeballs`] says in which order those are tried; [`tls`] makes the client's
//!   configuration.

#![forbid(unsafe_code)]

mod announced;
mod clock;
mod connect;
mod exchange;
mod guard;
pub mod happy_eyeballs;
pub mod http1;
mod http2;
mod link;
pub mod origin;
mod reactor;
pub mod resolver;
mod sink;
mod state;
mod stream;
mod sync;
mod target;
mod tasks;
mod timers;
pub mod tls;
mod unary;

pub use clock::{Clock, Monotonic};
pub use connect::TcpOptions;
pub use exchange::{
    DRAIN_BYTES, DRAIN_TIME, ERROR_BODY_BYTES, ERROR_BODY_TIME, QUEUE_BYTES, QUEUE_EVENTS,
};
pub use reactor::{Driver, Reactor, ReactorConfig};
pub use sink::{Sink, Standing};
pub use state::{READ_BYTES, Stats};
pub use stream::EventStream;
pub use target::{
    Bounds, IDLE_TIMEOUT, MAX_EXCHANGES, MAX_HTTP2_CONNECTIONS, MAX_IDLE, MAX_WAITING, Prepared,
    QUEUE_TIMEOUT, Request, SubmitError, Target, TargetConfig, Vet,
};
pub use tasks::Tasks;
pub use unary::{ANSWER_BYTES, Call};

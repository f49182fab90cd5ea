//! The contract between an orchestrator and an engine: [`WorkerAdapter`] and its [`TokenStream`].
//!
//! The trait is what the Python package's class of the same name is: five members, the same
//! requests, reports, events and errors. It is object-safe, names no runtime and no transport, and
//! boxes one future per call – nothing per token.
//!
//! # An adapter in memory
//!
//! An adapter of a real engine writes a request and a rule table and leaves the rest to
//! [`StreamDecoder`](crate::StreamDecoder) and a transport. This one replays a recorded answer:
//!
//! ```
//! use std::collections::{HashMap, VecDeque};
//! use std::pin::Pin;
//! use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
//! use std::sync::{Arc, Mutex, PoisonError};
//! use std::task::{Context, Poll};
//! use std::time::Duration;
//!
//! use futures_core::Stream;
//! use worker_adapters_core::adapter::{
//!     BoxFuture, CancelMethod, CancelReceipt, EventStream, Timeouts, TokenStream, WorkerAdapter,
//!     WorkerHealth, WorkerProps,
//! };
//! use worker_adapters_core::error::{Detail, Phase, WorkerError};
//! use worker_adapters_core::event::TokenEvent;
//! use worker_adapters_core::task::{SubmitContext, TaskRequest, Uuid};
//! use worker_adapters_core::time::Instant;
//! use worker_adapters_core::{Dialect, StreamConfig, StreamDecoder};
//!
//! const RECORDED: &[u8] = b"data: {\"content\":\"Hel\",\"stop\":false,\"tokens_predicted\":1}\n\n\
//!     data: {\"content\":\"lo\",\"stop\":false,\"tokens_predicted\":2}\n\n\
//!     data: {\"content\":\"\",\"stop\":true,\"stop_type\":\"eos\",\"tokens_predicted\":2}\n\n";
//!
//! /// Replays one answer to every task.
//! #[derive(Default)]
//! struct Replay {
//!     streams: Mutex<HashMap<Uuid, Arc<AtomicBool>>>,
//! }
//!
//! struct Replayed {
//!     task_id: Uuid,
//!     decoder: StreamDecoder,
//!     events: VecDeque<TokenEvent>,
//!     cancelled: Arc<AtomicBool>,
//! }
//!
//! impl EventStream for Replayed {
//!     fn task_id(&self) -> Uuid {
//!         self.task_id
//!     }
//!
//!     fn is_terminal(&self) -> bool {
//!         self.decoder.is_terminal()
//!     }
//!
//!     fn cancel(self: Pin<&mut Self>) {
//!         self.cancelled.store(true, SeqCst);
//!     }
//! }
//!
//! impl Stream for Replayed {
//!     type Item = TokenEvent;
//!
//!     fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
//!         let now = Instant::default();
//!         let mut produced = Vec::new();
//!         if self.cancelled.load(SeqCst) && !self.decoder.is_terminal() {
//!             // Tokens that nobody has taken yet are taken back.
//!             self.events.clear();
//!             self.decoder.cancel(now, &mut produced);
//!         } else if self.events.is_empty() && !self.decoder.is_terminal() {
//!             self.decoder.feed(RECORDED, now, &mut produced);
//!         }
//!         self.events.extend(produced);
//!         Poll::Ready(self.events.pop_front())
//!     }
//! }
//!
//! impl WorkerAdapter for Replay {
//!     fn health<'a>(&'a self, _: Option<&'a Timeouts>) -> BoxFuture<'a, WorkerHealth> {
//!         Box::pin(async { WorkerHealth::ready() })
//!     }
//!
//!     fn props<'a>(
//!         &'a self,
//!         _: Option<&'a Timeouts>,
//!     ) -> BoxFuture<'a, Result<WorkerProps, WorkerError>> {
//!         Box::pin(async { Ok(WorkerProps::default()) })
//!     }
//!
//!     fn submit<'a>(
//!         &'a self,
//!         task: &'a TaskRequest,
//!         context: &'a SubmitContext,
//!         _: Option<&'a Timeouts>,
//!     ) -> BoxFuture<'a, Result<TokenStream, WorkerError>> {
//!         Box::pin(async move {
//!             let dialect = Dialect::new("llamacpp", [])
//!                 .map_err(|_| WorkerError::new("replay", Detail::Internal, Phase::Validate))?;
//!             let mut config = StreamConfig::new("replay");
//!             config.started.correlation_id = context.correlation_id.clone().map(Into::into);
//!             let cancelled = Arc::new(AtomicBool::new(false));
//!             let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
//!             streams.insert(task.task_id, Arc::clone(&cancelled));
//!             let stream: TokenStream = Box::pin(Replayed {
//!                 task_id: task.task_id,
//!                 decoder: StreamDecoder::new(dialect, config),
//!                 events: VecDeque::new(),
//!                 cancelled,
//!             });
//!             Ok(stream)
//!         })
//!     }
//!
//!     fn cancel(&self, task_id: Uuid) -> BoxFuture<'_, CancelReceipt> {
//!         let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
//!         let stream = streams.remove(&task_id);
//!         let method = if stream.is_some() { CancelMethod::Close } else { CancelMethod::None };
//!         if let Some(cancelled) = stream {
//!             cancelled.store(true, SeqCst);
//!         }
//!         Box::pin(async move { CancelReceipt::new(method, None, Duration::ZERO) })
//!     }
//!
//!     fn engine_version<'a>(
//!         &'a self,
//!         _: Option<&'a Timeouts>,
//!     ) -> BoxFuture<'a, Result<String, WorkerError>> {
//!         Box::pin(async { Ok("recorded".to_owned()) })
//!     }
//!
//!     fn close(&self) -> BoxFuture<'_, ()> {
//!         for (_, cancelled) in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain() {
//!             cancelled.store(true, SeqCst);
//!         }
//!         Box::pin(async {})
//!     }
//! }
//!
//! # use worker_adapters_core::task::*;
//! # fn task(id: u128) -> TaskRequest {
//! #     let required = Required {
//! #         task_id: Uuid::from_u128(id),
//! #         session_id: Uuid::from_u128(2),
//! #         workload: Workload::Completion,
//! #         model_ref: ModelRef::new("hf:org/repo").unwrap(),
//! #         engine: EngineName::LLAMACPP,
//! #         ctx: 4096,
//! #         priority: Priority::Interactive,
//! #         max_tokens: 64,
//! #         deadline_ms: 30_000,
//! #     };
//! #     let fields = TaskFields { prompt: Some("Say hi".into()), ..required.into() };
//! #     TaskRequest::new(fields, &Extensions::default()).unwrap()
//! # }
//! # futures::executor::block_on(async {
//! // Whoever uses it sees the trait alone.
//! let adapter: Arc<dyn WorkerAdapter> = Arc::new(Replay::default());
//! let context = SubmitContext::default();
//!
//! let mut stream = adapter.submit(&task(1), &context, None).await?;
//! let mut sse = Vec::new();
//! let mut events = Vec::new();
//! while stream.as_mut().next_batch(&mut events).await > 0 {
//!     for event in events.drain(..) {
//!         event.write_sse(&mut sse);
//!     }
//! }
//! assert!(sse.starts_with(b"event: started\ndata: {\"engine\":\"replay\"}\n\nevent: token\n"));
//!
//! // Or all of it at once.
//! let answer = adapter::collect(adapter.submit(&task(2), &context, None).await?).await?;
//! assert_eq!((&*answer.text, answer.tokens_out), ("Hello", 2));
//!
//! // Cancelled by its id, which may come from anywhere.
//! let stream = adapter.submit(&task(3), &context, None).await?;
//! assert_eq!(adapter.cancel(stream.task_id()).await.method, CancelMethod::Close);
//! assert_eq!(adapter::collect(stream).await?.finish_reason, Some(FinishReason::Cancelled));
//! assert!(!adapter.cancel(Uuid::from_u128(4)).await.sent);
//! # Ok::<(), WorkerError>(())
//! # }).unwrap();
//! # use worker_adapters_core::adapter;
//! # use worker_adapters_core::event::FinishReason;
//! ```

mod collected;
#[cfg(feature = "serde")]
mod json;
mod reports;
mod stream;

use std::future::Future;
use std::pin::Pin;

pub use self::collected::{Collected, collect};
pub use self::reports::{CancelMethod, CancelReceipt, Timeouts, WorkerHealth, WorkerProps};
pub use self::stream::{EventStream, NextBatch, TokenStream};
use crate::error::WorkerError;
use crate::event::Score;
use crate::task::{SubmitContext, TaskRequest, Uuid, Workload};

/// A future that any executor can drive.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One engine at one address: what an orchestrator sees of it.
///
/// An adapter owns its connections and knows its streams by their task ids. `timeouts` are those of
/// one call, in place of the adapter's own. A future that is dropped gives up its call; for
/// [`submit`](Self::submit) that closes the connection.
///
/// [The module](self) has an example.
pub trait WorkerAdapter: Send + Sync {
    /// Asks whether the engine lives and is ready.
    ///
    /// `ready` means that a submit would be dispatched now: the model is loaded and nothing drains.
    /// An engine that cannot be reached is neither live nor ready, which is no error. Bounded in
    /// time by [`Timeouts::unary`].
    fn health<'a>(&'a self, timeouts: Option<&'a Timeouts>) -> BoxFuture<'a, WorkerHealth>;

    /// Asks for the engine's slots. What it does not tell is None, never a guess.
    ///
    /// # Errors
    ///
    /// The engine cannot be asked.
    fn props<'a>(
        &'a self,
        timeouts: Option<&'a Timeouts>,
    ) -> BoxFuture<'a, Result<WorkerProps, WorkerError>>;

    /// Sends `task` and returns its stream once the engine has answered 200.
    ///
    /// The stream is `started → token* → end`, or ends in one `error`; exactly one terminal event,
    /// nothing after it. A task that is cancelled before the answer gives a stream of the one event
    /// `end` with `finish_reason: cancelled`. Nothing is sent twice, unless it certainly was not
    /// taken up. The task's deadline counts from this call.
    ///
    /// # Errors
    ///
    /// Everything that fails before the 200; afterwards a failure is the stream's `error` event.
    fn submit<'a>(
        &'a self,
        task: &'a TaskRequest,
        context: &'a SubmitContext,
        timeouts: Option<&'a Timeouts>,
    ) -> BoxFuture<'a, Result<TokenStream, WorkerError>>;

    /// Cancels a task in whatever phase and frees the engine's slot.
    ///
    /// Best effort and idempotent; an unknown id is no error. No `token` is delivered after it
    /// returns. The receipt may be ignored.
    fn cancel(&self, task_id: Uuid) -> BoxFuture<'_, CancelReceipt>;

    /// Asks the engine which build it is: a stable version from the engine itself.
    ///
    /// # Errors
    ///
    /// The engine cannot be asked, or does not say.
    fn engine_version<'a>(
        &'a self,
        timeouts: Option<&'a Timeouts>,
    ) -> BoxFuture<'a, Result<String, WorkerError>>;

    /// Cancels what is in flight and closes every connection. Idempotent.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// One vector per input, in input order.
    ///
    /// # Errors
    ///
    /// Those of [`submit`](Self::submit) and of the stream; a task of another workload is
    /// `INVALID_PARAMS`.
    fn embed<'a>(
        &'a self,
        task: &'a TaskRequest,
        context: &'a SubmitContext,
        timeouts: Option<&'a Timeouts>,
    ) -> BoxFuture<'a, Result<Vec<Vec<f64>>, WorkerError>> {
        Box::pin(async move {
            collected::expect_workload(task, Workload::Embedding)?;
            let answer = collect(self.submit(task, context, timeouts).await?).await?;
            Ok(answer.embeddings.unwrap_or_default())
        })
    }

    /// One score per document, in input order.
    ///
    /// # Errors
    ///
    /// Those of [`submit`](Self::submit) and of the stream; a task of another workload is
    /// `INVALID_PARAMS`.
    fn rerank<'a>(
        &'a self,
        task: &'a TaskRequest,
        context: &'a SubmitContext,
        timeouts: Option<&'a Timeouts>,
    ) -> BoxFuture<'a, Result<Vec<Score>, WorkerError>> {
        Box::pin(async move {
            collected::expect_workload(task, Workload::Rerank)?;
            let answer = collect(self.submit(task, context, timeouts).await?).await?;
            Ok(answer.scores.unwrap_or_default())
        })
    }
}

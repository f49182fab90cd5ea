//! The trait as an orchestrator uses it, over scripted streams.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::executor::block_on;
use futures_core::Stream;
use worker_adapters_core::adapter::{
    self, BoxFuture, CancelMethod, CancelReceipt, Collected, EventStream, NextBatch, Timeouts,
    TokenStream, WorkerAdapter, WorkerHealth, WorkerProps,
};
use worker_adapters_core::error::{Detail, ErrorKind, Phase, WorkerError, WorkerErrorKind};
use worker_adapters_core::event::{FinishReason, TokenEvent};
use worker_adapters_core::stream::UnaryAnswer;
use worker_adapters_core::task::{
    EngineName, Extensions, ModelRef, Priority, Required, SubmitContext, TaskFields, TaskRequest,
    Uuid, Workload,
};
use worker_adapters_core::time::Instant;
use worker_adapters_core::{Dialect, StreamConfig, StreamDecoder};

fn assert_send<T: Send + ?Sized>() {}
fn assert_sync<T: Sync + ?Sized>() {}

#[test]
fn what_crosses_the_boundary_crosses_threads() {
    assert_send::<dyn WorkerAdapter>();
    assert_sync::<dyn WorkerAdapter>();
    assert_send::<Arc<dyn WorkerAdapter>>();
    assert_send::<TokenStream>();
    assert_send::<NextBatch<'_>>();
    assert_send::<BoxFuture<'_, Collected>>();
    // The future of an async function is sent with what it holds.
    let collecting: BoxFuture<'_, _> = Box::pin(adapter::collect(scripted([Step::Over])));
    drop(collecting);
    for check in [assert_send::<TaskRequest>, assert_sync::<TaskRequest>] {
        check();
    }
    for check in [assert_send::<SubmitContext>, assert_sync::<SubmitContext>] {
        check();
    }
    for check in [assert_send::<WorkerError>, assert_sync::<WorkerError>] {
        check();
    }
}

/// What a poll of a scripted stream meets.
enum Step {
    Bytes(&'static str),
    Unary(UnaryAnswer),
    Nothing,
    Over,
}

struct Scripted {
    decoder: StreamDecoder,
    steps: VecDeque<Step>,
    ready: VecDeque<TokenEvent>,
}

fn scripted(steps: impl IntoIterator<Item = Step>) -> TokenStream {
    let dialect = Dialect::new("llamacpp", []).unwrap();
    Box::pin(Scripted {
        decoder: StreamDecoder::new(dialect, StreamConfig::new("llamacpp")),
        steps: steps.into_iter().collect(),
        ready: VecDeque::new(),
    })
}

impl Stream for Scripted {
    type Item = TokenEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        let now = Instant::default();
        let mut out = Vec::new();
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            if self.decoder.is_terminal() {
                return Poll::Ready(None);
            }
            match self.steps.pop_front() {
                Some(Step::Bytes(bytes)) => self.decoder.feed(bytes.as_bytes(), now, &mut out),
                Some(Step::Unary(answer)) => self.decoder.complete(answer, now, &mut out),
                Some(Step::Nothing) => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Some(Step::Over) | None => self.decoder.finish(true, now, &mut out),
            }
            self.ready.extend(out.drain(..));
        }
    }
}

impl EventStream for Scripted {
    fn task_id(&self) -> Uuid {
        Uuid::from_u128(1)
    }

    fn is_terminal(&self) -> bool {
        self.decoder.is_terminal()
    }

    fn cancel(mut self: Pin<&mut Self>) {
        if !self.decoder.is_terminal() {
            let mut out = Vec::new();
            self.decoder.cancel(Instant::default(), &mut out);
            self.ready = out.into();
        }
    }
}

const TWO_TOKENS: &str = "data: {\"content\":\"a\",\"stop\":false,\"tokens_predicted\":1}\n\n\
    data: {\"content\":\"b\",\"stop\":false,\"tokens_predicted\":2}\n\n";
const THE_END: &str =
    "data: {\"content\":\"\",\"stop\":true,\"stop_type\":\"eos\",\"tokens_predicted\":2}\n\n";

fn kinds(events: &[TokenEvent]) -> Vec<&'static str> {
    events.iter().map(TokenEvent::kind).collect()
}

#[test]
fn a_batch_is_all_that_is_there() {
    let steps = [Step::Bytes(TWO_TOKENS), Step::Nothing, Step::Bytes(THE_END)];
    let mut stream = scripted(steps);
    let mut context = Context::from_waker(Waker::noop());
    let mut events = Vec::new();
    let polled = stream.as_mut().poll_batch(&mut context, &mut events);
    assert_eq!((polled, &*kinds(&events)), (Poll::Ready(3), &["started", "token", "token"][..]));
    events.clear();
    assert!(!stream.is_terminal());
    assert_eq!(block_on(stream.as_mut().next_batch(&mut events)), 1);
    assert_eq!(kinds(&events), ["end"]);
    assert!(stream.is_terminal());
    // The stream stays over, however often it is asked.
    for _ in 0..2 {
        assert_eq!(block_on(stream.as_mut().next_batch(&mut events)), 0);
    }
    assert_eq!(events.len(), 1);
}

#[test]
fn nothing_there_is_pending_and_leaves_the_vector_alone() {
    let mut stream = scripted([Step::Nothing, Step::Bytes(TWO_TOKENS)]);
    let mut context = Context::from_waker(Waker::noop());
    let mut events = Vec::new();
    assert_eq!(stream.as_mut().poll_batch(&mut context, &mut events), Poll::Pending);
    assert!(events.is_empty());
}

#[test]
fn a_batch_has_a_bound() {
    let frame =
        |n| format!("data: {{\"content\":\"a\",\"stop\":false,\"tokens_predicted\":{n}}}\n\n");
    let frames: Vec<String> = (1..=3000).map(frame).collect();
    let mut stream = scripted([Step::Bytes(frames.concat().leak()), Step::Bytes(THE_END)]);
    let mut events = Vec::new();
    let mut sizes = Vec::new();
    loop {
        match block_on(stream.as_mut().next_batch(&mut events)) {
            0 => break,
            size => sizes.push(size),
        }
    }
    assert_eq!(events.len(), 3002);
    assert_eq!(sizes.iter().sum::<usize>(), events.len());
    assert!(sizes.iter().all(|size| *size <= 1024), "{sizes:?}");
}

#[test]
fn a_cancelled_stream_has_its_end_left_to_read() {
    let mut stream = scripted([Step::Bytes(TWO_TOKENS)]);
    let first = block_on(std::future::poll_fn(|context| stream.as_mut().poll_next(context)));
    assert_eq!(first.unwrap().kind(), "started");
    stream.as_mut().cancel();
    stream.as_mut().cancel();
    let mut events = Vec::new();
    while block_on(stream.as_mut().next_batch(&mut events)) > 0 {}
    let [TokenEvent::End(end)] = events.as_slice() else { panic!("{:?}", kinds(&events)) };
    assert_eq!(end.finish_reason, Some(FinishReason::Cancelled));
}

#[test]
fn collecting_joins_the_text_and_raises_the_error() {
    let whole = scripted([Step::Bytes(TWO_TOKENS), Step::Nothing, Step::Bytes(THE_END)]);
    let answer = block_on(adapter::collect(whole)).unwrap();
    assert_eq!((&*answer.text, answer.tokens_out), ("ab", 2));
    assert_eq!(answer.finish_reason, Some(FinishReason::Stop));
    assert!(!format!("{answer:?}").contains("ab"));

    let cut = block_on(adapter::collect(scripted([Step::Bytes(TWO_TOKENS), Step::Over])));
    assert_eq!(cut.unwrap_err().detail, Detail::Truncated);

    let mut read = scripted([Step::Bytes(THE_END)]);
    while block_on(read.as_mut().next_batch(&mut Vec::new())) > 0 {}
    assert_eq!(block_on(adapter::collect(read)).unwrap_err().kind, WorkerErrorKind::Internal);
}

/// Answers every task with two vectors.
struct Vectors;

impl WorkerAdapter for Vectors {
    fn health<'a>(&'a self, _: Option<&'a Timeouts>) -> BoxFuture<'a, WorkerHealth> {
        Box::pin(async { WorkerHealth::unready("loading") })
    }

    fn props<'a>(
        &'a self,
        _: Option<&'a Timeouts>,
    ) -> BoxFuture<'a, Result<WorkerProps, WorkerError>> {
        Box::pin(async { Err(WorkerError::new("tgi", Detail::Connect, Phase::Connect)) })
    }

    fn submit<'a>(
        &'a self,
        _: &'a TaskRequest,
        _: &'a SubmitContext,
        _: Option<&'a Timeouts>,
    ) -> BoxFuture<'a, Result<TokenStream, WorkerError>> {
        let embeddings = Some(vec![vec![0.5], vec![1.0]]);
        let answer = UnaryAnswer { tokens_in: Some(2), embeddings, scores: None };
        Box::pin(async { Ok(scripted([Step::Unary(answer)])) })
    }

    fn cancel(&self, _: Uuid) -> BoxFuture<'_, CancelReceipt> {
        Box::pin(async { CancelReceipt::new(CancelMethod::None, None, Duration::ZERO) })
    }

    fn engine_version<'a>(
        &'a self,
        _: Option<&'a Timeouts>,
    ) -> BoxFuture<'a, Result<String, WorkerError>> {
        Box::pin(async { Ok("1".to_owned()) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

fn task(workload: Workload) -> TaskRequest {
    let required = Required {
        task_id: Uuid::from_u128(1),
        session_id: Uuid::from_u128(2),
        workload,
        model_ref: ModelRef::new("hf:org/repo").unwrap(),
        engine: EngineName::TGI,
        ctx: 512,
        priority: Priority::Batch,
        max_tokens: 1,
        deadline_ms: 1000,
    };
    let inputs = Some(vec!["one".into(), "two".into()]);
    let fields = TaskFields { prompt: Some("q".into()), inputs, ..required.into() };
    TaskRequest::new(fields, &Extensions::default()).unwrap()
}

#[test]
fn vectors_come_typed_and_for_their_workload_only() {
    let adapter: Box<dyn WorkerAdapter> = Box::new(Vectors);
    let context = SubmitContext::default();
    let embedded = block_on(adapter.embed(&task(Workload::Embedding), &context, None));
    assert_eq!(embedded.unwrap(), [vec![0.5], vec![1.0]]);
    let refused = block_on(adapter.embed(&task(Workload::Rerank), &context, None)).unwrap_err();
    assert_eq!((refused.code, refused.phase), (ErrorKind::InvalidParams, Phase::Validate));
    let refused = block_on(adapter.rerank(&task(Workload::Embedding), &context, None));
    assert_eq!(&*refused.unwrap_err().engine, "tgi");
}

#[test]
fn the_state_of_a_worker_is_one_word() {
    let state = |live, ready, reason: Option<&str>| {
        WorkerHealth { live, ready, reason: reason.map(Into::into) }.state()
    };
    assert_eq!(state(true, true, None), "ready");
    assert_eq!(state(true, false, Some("loading")), "loading");
    assert_eq!(state(true, false, Some("draining")), "draining");
    assert_eq!(state(true, false, Some("wrong_model")), "failed");
    assert_eq!(state(false, false, Some("connect")), "unreachable");
}

#[test]
fn clocks_have_time_on_them() {
    Timeouts::default().check().unwrap();
    let mut timeouts = Timeouts { tls: Some(Duration::ZERO), ..Timeouts::default() };
    assert_eq!(timeouts.check().unwrap_err().field(), "timeouts.tls");
    timeouts.tls = None;
    timeouts.check().unwrap();
    let clocks = timeouts.stream_clocks(Some(Instant::from_nanos(7)));
    assert_eq!(clocks.first_token, Some(Duration::from_secs(120)));
    assert_eq!(clocks.deadline, Some(Instant::from_nanos(7)));
}

//! The law of a stream and its clocks, on virtual time.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use worker_adapters_core::dialects::{Dialect, FrameParser};
use worker_adapters_core::error::{Detail, ErrorKind, Phase, Processed, WorkerError};
use worker_adapters_core::event::{End, FinishReason, TokenEvent, UsageSource};
use worker_adapters_core::http::ResponseHead;
use worker_adapters_core::json::JsonError;
use worker_adapters_core::redact::Redactor;
use worker_adapters_core::sse::SseEvent;
use worker_adapters_core::stream::{FrameSink, StreamConfig, StreamDecoder, UnaryAnswer};
use worker_adapters_core::time::Instant;

const EVENT_STREAM: &[(&[u8], &[u8])] = &[(b"content-type", b"text/event-stream")];

fn secs(secs: f64) -> Instant {
    Instant::from_secs_f64(secs)
}

fn frame(content: &str, predicted: u64) -> String {
    format!(
        "data: {{\"content\":\"{content}\",\"stop\":false,\"tokens_predicted\":{predicted}}}\n\n"
    )
}

fn last_frame(predicted: u64) -> String {
    format!(
        "data: {{\"content\":\"\",\"stop\":true,\"stop_type\":\"eos\",\
         \"tokens_predicted\":{predicted},\"tokens_evaluated\":8}}\n\n"
    )
}

/// A llama.cpp stream and everything it has said.
struct Stream {
    decoder: StreamDecoder,
    events: Vec<TokenEvent>,
}

impl Stream {
    fn new(configure: impl FnOnce(&mut StreamConfig)) -> Self {
        let mut config = StreamConfig::new("llamacpp");
        configure(&mut config);
        let decoder = StreamDecoder::new(Dialect::new("llamacpp", []).unwrap(), config);
        Self { decoder, events: Vec::new() }
    }

    /// With every clock of the contract.
    fn clocked() -> Self {
        Self::new(|config| {
            config.clocks.first_token = Some(Duration::from_secs(120));
            config.clocks.token_gap = Some(Duration::from_secs(30));
            config.clocks.idle = Some(Duration::from_secs(75));
            config.clocks.deadline = Some(secs(1000.0));
        })
    }

    fn dispatched(mut self, now: f64) -> Self {
        self.decoder.dispatched(secs(now));
        self
    }

    fn head(&mut self, status: u16, headers: &[(&[u8], &[u8])], now: f64) -> &mut Self {
        self.decoder.head(&ResponseHead { status, headers }, secs(now), &mut self.events);
        self
    }

    fn feed(&mut self, bytes: &str, now: f64) -> &mut Self {
        self.decoder.feed(bytes.as_bytes(), secs(now), &mut self.events);
        self
    }

    fn finish(&mut self, complete: bool, now: f64) -> &mut Self {
        self.decoder.finish(complete, secs(now), &mut self.events);
        self
    }

    fn tick(&mut self, now: f64) -> &mut Self {
        self.decoder.tick(secs(now), &mut self.events);
        self
    }

    fn cancel(&mut self, now: f64) -> &mut Self {
        self.decoder.cancel(secs(now), &mut self.events);
        self
    }

    fn wakeup(&self) -> Option<f64> {
        self.decoder.next_wakeup().map(Instant::as_secs_f64)
    }

    fn kinds(&self) -> Vec<&'static str> {
        self.events.iter().map(TokenEvent::kind).collect()
    }

    fn error(&self) -> &WorkerError {
        match self.events.last() {
            Some(TokenEvent::Error(error)) => error,
            other => panic!("no error: {other:?}"),
        }
    }

    fn end(&self) -> &End {
        match self.events.last() {
            Some(TokenEvent::End(end)) => end,
            other => panic!("no end: {other:?}"),
        }
    }
}

#[test]
fn a_whole_stream_is_started_tokens_and_one_end() {
    let mut stream = Stream::clocked().dispatched(1.0);
    stream.head(200, EVENT_STREAM, 1.5).feed(&frame("a", 1), 2.0).feed(&frame("b", 3), 2.25);
    stream.feed(&last_frame(4), 3.0).finish(true, 3.0);
    assert_eq!(stream.kinds(), ["started", "token", "token", "end"]);
    let end = stream.end();
    assert_eq!((end.tokens_out, end.tokens_in), (4, Some(8)));
    assert_eq!((end.latency_first_token_ms, end.decode_ms), (Some(1000), 1000));
    assert_eq!(end.finish_reason, Some(FinishReason::Stop));
    assert_eq!(end.usage_source, Some(UsageSource::Engine));
    assert_eq!(stream.wakeup(), None);
}

#[test]
fn a_body_that_ends_early_is_a_reset_with_its_tokens_counted() {
    for complete in [true, false] {
        let mut stream = Stream::clocked().dispatched(0.0);
        stream.head(200, EVENT_STREAM, 0.0).feed(&frame("a", 2), 0.0).finish(complete, 0.0);
        let error = stream.error();
        assert_eq!(error.code, ErrorKind::WorkerReset);
        assert_eq!((error.detail, error.phase), (Detail::Truncated, Phase::Stream));
        assert_eq!((error.tokens_emitted, error.processed), (2, Processed::Yes));
        assert!(error.retriable);
    }
}

#[test]
fn what_follows_the_end_is_dropped_and_counted() {
    let mut stream = Stream::new(|_| {});
    stream.feed(&frame("a", 1), 0.0).feed(&last_frame(1), 0.0);
    stream.feed(&frame("b", 2), 0.0).feed(": comment\n\ndata: null\n\n", 0.0).finish(false, 0.0);
    stream.cancel(0.0).tick(1e9);
    assert_eq!(stream.kinds(), ["started", "token", "end"]);
    assert_eq!(stream.decoder.dropped_after_end(), 1);
}

#[test]
fn a_refusal_inside_a_200_gives_no_started() {
    let mut stream = Stream::new(|_| {});
    stream.feed("data: {\"error\":{\"code\":400,\"message\":\"no\",\"type\":\"x\"}}\n\n", 0.0);
    assert_eq!(stream.kinds(), ["error"]);
    assert_eq!(stream.error().status, Some(400));
    assert_eq!(stream.error().code, ErrorKind::InvalidParams);
}

#[test]
fn each_clock_fires_exactly_when_it_said_it_would() {
    // Nothing at all: the first-token clock covers the head.
    let mut stream = Stream::clocked().dispatched(5.0);
    assert_eq!(stream.wakeup(), Some(125.0));
    assert_eq!(stream.tick(124.999_999).kinds(), [""; 0]);
    stream.tick(125.0);
    assert_eq!((stream.error().detail, stream.error().phase), (Detail::FirstToken, Phase::Head));
    assert_eq!(stream.error().processed, Processed::Unknown);
    assert_eq!(stream.error().message, "the first-token clock ran out in phase head");

    // Between tokens.
    let mut stream = Stream::clocked().dispatched(0.0);
    stream.head(200, EVENT_STREAM, 1.0).feed(&frame("a", 1), 2.0);
    assert_eq!(stream.wakeup(), Some(32.0));
    stream.tick(32.0);
    assert_eq!((stream.error().detail, stream.error().phase), (Detail::TokenGap, Phase::Stream));
    assert_eq!(stream.error().message, "the token-gap clock ran out in phase stream");
    assert_eq!(stream.error().tokens_emitted, 1);

    // The head has come, but not a byte since: idle, before the first-token clock.
    let mut stream = Stream::clocked().dispatched(0.0);
    stream.head(200, EVENT_STREAM, 1.0);
    assert_eq!(stream.wakeup(), Some(76.0));
    stream.tick(76.0);
    assert_eq!((stream.error().detail, stream.error().phase), (Detail::Idle, Phase::FirstToken));
    assert_eq!(stream.error().message, "the idle clock ran out in phase first_token");

    // The deadline is over all, in whatever phase.
    let mut stream = Stream::clocked();
    stream.tick(1000.0);
    assert_eq!((stream.error().detail, stream.error().phase), (Detail::Deadline, Phase::Queue));
    assert_eq!(stream.error().message, "the task's deadline passed in phase queue");
    assert_eq!((stream.error().code, stream.error().retriable), (ErrorKind::DeadlineUnmet, false));
    assert_eq!(stream.error().processed, Processed::No);
}

#[test]
fn comments_reset_only_the_idle_clock() {
    let mut stream = Stream::clocked().dispatched(0.0);
    stream.head(200, EVENT_STREAM, 0.0).feed(&frame("a", 1), 10.0).feed(":\n\n", 39.0);
    assert_eq!(stream.wakeup(), Some(40.0));
    stream.feed("data: null\n\ndata:\n\n", 39.5).tick(40.0);
    assert_eq!(stream.error().detail, Detail::TokenGap);

    let mut stream = Stream::clocked().dispatched(0.0);
    stream.head(200, EVENT_STREAM, 0.0).feed(":\n\n", 70.0);
    assert_eq!(stream.wakeup(), Some(120.0), "idle moved to 145");
}

#[test]
fn frames_that_stand_for_tokens_reset_the_gap_text_or_not() {
    let mut stream = Stream::clocked().dispatched(0.0);
    stream.head(200, EVENT_STREAM, 0.0).feed(&frame("a", 1), 10.0).feed(&frame("", 2), 35.0);
    assert_eq!(stream.wakeup(), Some(65.0));
    // The same count again stands for no token.
    stream.feed(&frame("", 2), 50.0);
    assert_eq!(stream.wakeup(), Some(65.0));
    let progress = "data: {\"content\":\"\",\"stop\":false,\"tokens\":[0],\"tokens_predicted\":0,\
                    \"prompt_progress\":{\"total\":9}}\n\n";
    stream.feed(progress, 60.0);
    assert_eq!(stream.wakeup(), Some(90.0));
    assert_eq!(stream.kinds(), ["started", "token"]);
}

#[test]
fn a_paused_reader_stops_all_clocks_but_the_deadline() {
    let mut stream = Stream::clocked().dispatched(0.0);
    stream.head(200, EVENT_STREAM, 0.0).feed(&frame("a", 1), 10.0);
    stream.decoder.reader(true, secs(15.0));
    assert_eq!(stream.wakeup(), Some(1000.0));
    assert_eq!(stream.tick(500.0).kinds(), ["started", "token"]);
    stream.decoder.reader(false, secs(500.0));
    assert_eq!(stream.wakeup(), Some(525.0), "25 of 30 seconds are left");
    // A token that comes during a pause has its whole gap after it.
    stream.decoder.reader(true, secs(510.0));
    stream.feed(&frame("b", 2), 515.0);
    stream.decoder.reader(false, secs(600.0));
    assert_eq!(stream.wakeup(), Some(630.0));
    stream.decoder.reader(true, secs(601.0));
    stream.tick(1000.0);
    assert_eq!(stream.error().detail, Detail::Deadline);
}

#[test]
fn bytes_after_the_deadline_come_too_late() {
    let mut stream = Stream::clocked().dispatched(0.0);
    stream.head(200, EVENT_STREAM, 0.0).feed(&frame("a", 1), 999.0).feed(&frame("b", 2), 1000.0);
    assert_eq!(stream.kinds(), ["started", "token", "error"]);
    assert_eq!(stream.error().detail, Detail::Deadline);
}

#[test]
fn nothing_that_comes_at_the_deadline_counts() {
    let mut head = Stream::clocked().dispatched(0.0);
    assert_eq!(head.decoder.deadline(), Some(secs(1000.0)));
    head.head(503, &[], 1000.0).finish(true, 1000.0);
    let mut end = Stream::clocked().dispatched(0.0);
    end.head(200, EVENT_STREAM, 0.0).finish(true, 1000.0);
    let mut answer = Stream::clocked().dispatched(0.0);
    answer.decoder.complete(UnaryAnswer::default(), secs(1000.0), &mut answer.events);
    for stream in [head, end, answer] {
        assert_eq!(stream.kinds(), ["error"]);
        assert_eq!(stream.error().detail, Detail::Deadline);
    }
    assert_eq!(Stream::new(|_| {}).decoder.deadline(), None);
}

#[test]
fn cancel_ends_the_stream_in_every_phase() {
    let mut stream = Stream::clocked();
    assert_eq!(stream.cancel(0.0).kinds(), ["end"], "before dispatch");
    let mut stream = Stream::clocked().dispatched(0.0);
    stream.head(200, EVENT_STREAM, 0.0).feed(&frame("a", 3), 1.0).feed(&frame("", 4), 1.0);
    stream.cancel(2.0).cancel(2.0).feed(&frame("b", 5), 3.0).finish(true, 3.0);
    assert_eq!(stream.kinds(), ["started", "token", "end"]);
    assert_eq!(stream.end().finish_reason, Some(FinishReason::Cancelled));
    assert_eq!(stream.end().tokens_out, 4);
    let mut stream = Stream::new(|_| {});
    stream.feed(&last_frame(0), 0.0).cancel(0.0);
    assert_eq!(stream.end().finish_reason, Some(FinishReason::Stop), "after the end");
}

#[test]
fn an_error_status_makes_the_body_an_error_body() {
    let mut stream = Stream::clocked().dispatched(0.0);
    stream.head(503, &[(b"retry-after", b"7")], 1.0);
    stream.feed("{\"error\":{\"message\":\"Loading", 1.0).feed(" model\"}}", 1.0).finish(true, 1.0);
    let error = stream.error();
    assert_eq!((error.detail, error.status), (Detail::Unavailable, Some(503)));
    assert_eq!(error.phase, Phase::Head);
    assert_eq!((error.retry_after_ms, error.message.as_str()), (Some(7000), "Loading model"));
}

#[test]
fn a_pause_ends_with_the_task() {
    let mut stream = Stream::clocked().dispatched(997.0);
    stream.head(429, &[(b"retry-after", b"50")], 998.0).finish(true, 998.0);
    assert_eq!(stream.error().retry_after_ms, Some(2000));
}

#[test]
fn a_pause_that_is_cut_never_fits_into_what_the_task_has_left() {
    const ASKED: &str = r#"{"error":{"message":"m","retry_after":50}}"#;
    for past_the_millisecond in [0.000_1, 0.000_4, 0.000_6, 0.000_9] {
        let now = 998.0 + past_the_millisecond;
        let mut told = Stream::clocked().dispatched(997.0);
        told.head(429, &[(b"retry-after", b"50")], now).finish(true, now);
        assert_eq!(told.error().retry_after_ms, Some(2000), "{now}");
        let mut in_the_body = Stream::clocked().dispatched(997.0);
        in_the_body.head(429, &[], now).feed(ASKED, now).finish(true, now);
        assert_eq!(in_the_body.error().retry_after_ms, Some(2000), "{now}");
    }
}

#[test]
fn a_pause_until_a_date_is_counted_by_the_wall_clock() {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    let mut stream = Stream::new(|config| config.wall = Some((secs(100.0), wall)));
    stream.head(503, &[(b"retry-after", b"Sun, 06 Nov 1994 08:49:57 GMT")], 105.0);
    stream.finish(true, 105.0);
    assert_eq!(stream.error().retry_after_ms, Some(15_000));
    let mut stream = Stream::new(|_| {});
    stream.head(503, &[(b"retry-after", b"Sun, 06 Nov 1994 08:49:57 GMT")], 105.0);
    stream.finish(true, 105.0);
    assert_eq!(stream.error().retry_after_ms, None, "nobody knows what time it is");
}

#[test]
fn error_bodies_are_kept_to_8_kib() {
    let mut stream = Stream::new(|_| {});
    stream.head(500, &[], 0.0);
    for _ in 0..1000 {
        stream.feed(&"x".repeat(1000), 0.0);
    }
    stream.finish(true, 0.0);
    assert_eq!(stream.error().detail, Detail::EngineError);
    assert!(stream.error().message.len() <= 512);
}

#[test]
fn a_200_that_is_no_event_stream_is_an_error_at_once() {
    let mut stream = Stream::clocked().dispatched(0.0);
    stream.head(200, &[(b"content-type", b"text/html")], 0.0).feed("<html>", 0.0).finish(true, 0.0);
    assert_eq!(stream.kinds(), ["error"]);
    assert_eq!(stream.error().detail, Detail::ContentType);
}

#[test]
fn errors_carry_what_the_stream_knows_and_no_secret() {
    let mut stream = Stream::new(|config| {
        config.redactor = Redactor::new(["sk-very-secret"]).unwrap();
        config.started.correlation_id = Some(Arc::from("corr-1"));
    });
    stream.feed(&frame("a", 1), 0.0);
    stream.feed("data: {\"error\":{\"code\":500,\"message\":\"key sk-very-secret\"}}\n\n", 0.0);
    let error = stream.error();
    assert_eq!(error.correlation_id.as_deref(), Some("corr-1"));
    assert_eq!((&*error.engine, error.tokens_emitted), ("llamacpp", 1));
    assert!(!format!("{error:?} {error}").contains("sk-very-secret"));
}

#[test]
fn a_failing_transport_says_where_and_whether_the_engine_worked() {
    let mut stream = Stream::clocked();
    let Stream { decoder, events } = &mut stream;
    decoder.fail(Detail::Connect, Phase::Connect, None, "refused", secs(0.0), events);
    let error = stream.error();
    assert_eq!((error.phase, error.processed), (Phase::Connect, Processed::No));
    assert_eq!(error.code, ErrorKind::PoolUnavailable);

    let mut stream = Stream::clocked().dispatched(0.0);
    let Stream { decoder, events } = &mut stream;
    let processed = Some(Processed::No);
    decoder.fail(Detail::Reset, Phase::Head, processed, "", secs(0.0), events);
    assert_eq!(stream.error().processed, Processed::No, "the transport knows");
}

#[test]
fn a_unary_answer_is_started_and_end() {
    let mut stream = Stream::clocked().dispatched(0.0);
    let answer = UnaryAnswer {
        tokens_in: Some(5),
        embeddings: Some(vec![vec![0.5]]),
        ..UnaryAnswer::default()
    };
    stream.decoder.complete(answer, secs(1.0), &mut stream.events);
    assert_eq!(stream.kinds(), ["started", "end"]);
    let end = stream.end();
    assert_eq!((end.tokens_in, end.tokens_out), (Some(5), 0));
    assert_eq!(end.embeddings.as_deref(), Some(&[vec![0.5]][..]));
}

#[test]
fn what_is_no_utf_8_is_counted() {
    let Stream { mut decoder, mut events } = Stream::new(|_| {});
    assert_eq!(decoder.utf8_replaced(), 0);
    decoder.feed(b"data: {\"content\":\"\xff \xff\"}\n\n", secs(0.0), &mut events);
    assert_eq!(decoder.utf8_replaced(), 2);
}

/// Accepts every other frame, and notes whether the stream had started before each.
struct Halting<'s>(&'s RefCell<Vec<bool>>);

impl FrameParser for Halting<'_> {
    fn frame(&mut self, _: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
        let mut was_started = self.0.borrow_mut();
        was_started.push(sink.is_started());
        if was_started.len().is_multiple_of(2) {
            sink.accept();
        }
        Ok(())
    }
}

#[test]
fn a_stream_starts_with_the_first_frame_that_is_accepted() {
    let was_started = RefCell::default();
    let mut decoder = StreamDecoder::new(Halting(&was_started), StreamConfig::new("own"));
    let mut events = Vec::new();
    decoder.feed(b"data: 1\n\ndata: 2\n\ndata: 3\n\n", secs(0.0), &mut events);
    assert_eq!(events.iter().map(TokenEvent::kind).collect::<Vec<_>>(), ["started"]);
    assert_eq!(*was_started.borrow(), [false, false, true]);
}

#[test]
fn events_larger_than_the_limit_are_refused_at_the_limit_and_not_before() {
    let line = frame("x", 1).trim_end().len();
    let run = |limit| {
        let mut stream = Stream::new(|config| config.max_event_bytes = limit);
        stream.feed(&frame("x", 1), 0.0);
        stream
    };
    assert_eq!(run(line).kinds(), ["started", "token"]);
    assert_eq!(run(line - 1).error().detail, Detail::FrameTooLarge);
}

/// Anything that can happen to a stream.
#[derive(Clone, Debug)]
enum Input {
    Head(u16),
    Feed(String),
    Finish(bool),
    Fail,
    Cancel,
    Reader(bool),
    Tick,
}

fn inputs() -> impl Strategy<Value = Vec<(Input, u8)>> {
    let body = prop_oneof![
        4 => ("[ a-z]{0,3}", 0..20_u64).prop_map(|(text, count)| frame(&text, count)),
        1 => (0..20_u64).prop_map(last_frame),
        1 => Just("data: {\"error\":{\"code\":500}}\n\n".to_owned()),
        1 => Just("data: {\"content\":\n\n".to_owned()),
        1 => Just("data: [DONE]\n\n".to_owned()),
        1 => Just("error: {\"code\":400}\n".to_owned()),
        1 => Just(": ping\n\n".to_owned()),
        1 => "[ -~\n]{0,20}",
    ];
    let input = prop_oneof![
        1 => prop::sample::select(vec![200, 204, 400, 500]).prop_map(Input::Head),
        8 => body.prop_map(Input::Feed),
        1 => any::<bool>().prop_map(Input::Finish),
        1 => Just(Input::Fail),
        1 => Just(Input::Cancel),
        1 => any::<bool>().prop_map(Input::Reader),
        1 => Just(Input::Tick),
    ];
    prop::collection::vec((input, 0..50_u8), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_happens_the_law_holds(inputs in inputs()) {
        let mut stream = Stream::clocked().dispatched(0.0);
        let mut now = 0.0;
        for (input, pause) in inputs {
            now += f64::from(pause);
            match input {
                Input::Head(status) => { stream.head(status, EVENT_STREAM, now); }
                Input::Feed(bytes) => { stream.feed(&bytes, now); }
                Input::Finish(complete) => { stream.finish(complete, now); }
                Input::Fail => {
                    let Stream { decoder, events } = &mut stream;
                    decoder.fail(Detail::Reset, Phase::Stream, None, "", secs(now), events);
                }
                Input::Cancel => { stream.cancel(now); }
                Input::Reader(paused) => stream.decoder.reader(paused, secs(now)),
                Input::Tick => { stream.tick(now); }
            }
        }
        stream.finish(true, now);
        let kinds = stream.kinds();
        let terminals = stream.events.iter().filter(|event| event.is_terminal()).count();
        prop_assert_eq!(terminals, 1, "{:?}", kinds);
        prop_assert!(stream.events.last().is_some_and(TokenEvent::is_terminal));
        prop_assert!(stream.decoder.is_terminal());
        prop_assert_eq!(stream.wakeup(), None);
        let starts: Vec<_> = kinds.iter().enumerate().filter(|(_, kind)| **kind == "started").collect();
        prop_assert!(starts.len() <= 1 && starts.iter().all(|(at, _)| *at == 0), "{:?}", kinds);
        let mut tokens = 0;
        let mut index = 0;
        for event in &stream.events {
            if let TokenEvent::Token(token) = event {
                prop_assert_eq!(token.i, index);
                prop_assert!(!starts.is_empty() && !token.t.is_empty());
                index += 1;
                tokens += u64::from(token.n);
            }
        }
        prop_assert_eq!(stream.decoder.tokens_emitted(), tokens);
        if let Some(TokenEvent::Error(error)) = stream.events.last() {
            prop_assert_eq!(error.tokens_emitted, tokens);
        }
    }
}

#[test]
fn public_types_can_be_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<StreamDecoder>();
    check::<StreamConfig>();
    check::<TokenEvent>();
    check::<WorkerError>();
    check::<Redactor>();
    check::<Dialect>();
    check::<Instant>();
    check::<worker_adapters_core::sse::SseDecoder>();
    check::<worker_adapters_core::rules::RuleTable>();
    check::<worker_adapters_core::engine_error::EngineError>();
    check::<worker_adapters_core::json::Reader<'_>>();
}

//! A fault of this library, or of who extends it, ends one stream.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::sync::Arc;

use common::*;
use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::dialects::FrameParser;
use worker_adapters_core::error::{Detail, Phase, Processed};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::http::ResponseHead;
use worker_adapters_core::json::JsonError;
use worker_adapters_core::sse::SseEvent;
use worker_adapters_core::stream::FrameSink;
use worker_adapters_core::time::Instant;
use worker_adapters_core::{StreamConfig, StreamDecoder};
use worker_adapters_net::{Bounds, EventStream, Sink};

const TEXT: &str = "a generated text";

/// Panics at the second frame.
struct Parser(Dialect, usize);

impl FrameParser for Parser {
    fn frame(&mut self, event: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
        self.1 += 1;
        assert!(self.1 < 2, "a parser that panics over {}", event.data);
        self.0.frame(event, sink)
    }

    fn end_marker(&self) -> Option<&str> {
        self.0.end_marker()
    }

    fn body_end(&mut self, sink: &mut FrameSink<'_>) {
        self.0.body_end(sink);
    }
}

/// Where a [`Fragile`] panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Dispatched,
    Head,
    Body,
    Finish,
    Fail,
    Cancel,
    Reader,
    Tick,
    NextWakeup,
    Deadline,
    Phase,
    IsTerminal,
    TokensEmitted,
    HasSurplus,
    Drop,
    /// At everything, that is, also when it is asked for its error.
    Always,
}

/// A decoder that panics at one thing, which it is told with a secret.
struct Fragile {
    decoder: Box<StreamDecoder>,
    at: At,
    /// The phase is asked for at every turn; it panics once the head is there.
    has_head: bool,
}

impl Fragile {
    fn reach(&self, at: At) {
        let is_asked = matches!(
            at,
            At::NextWakeup | At::Deadline | At::Phase | At::IsTerminal | At::TokensEmitted
        );
        let strikes = if self.at == At::Always { self.has_head } else { self.at == at };
        assert!(!strikes || (is_asked && !self.has_head), "{TEXT}");
    }
}

impl Sink for Fragile {
    fn dispatched(&mut self, now: Instant) {
        self.reach(At::Dispatched);
        self.decoder.dispatched(now);
    }
    fn head(&mut self, head: &ResponseHead<'_>, now: Instant, out: &mut Vec<TokenEvent>) {
        self.has_head = true;
        self.reach(At::Head);
        self.decoder.head(head, now, out);
    }
    fn body(&mut self, bytes: &[u8], now: Instant, out: &mut Vec<TokenEvent>) {
        self.reach(At::Body);
        self.decoder.feed(bytes, now, out);
    }
    fn finish(&mut self, complete: bool, now: Instant, out: &mut Vec<TokenEvent>) {
        self.reach(At::Finish);
        self.decoder.finish(complete, now, out);
    }
    fn fail(
        &mut self,
        detail: Detail,
        phase: Phase,
        processed: Option<Processed>,
        message: &str,
        now: Instant,
        out: &mut Vec<TokenEvent>,
    ) {
        self.reach(At::Fail);
        self.decoder.fail(detail, phase, processed, message, now, out);
    }
    fn cancel(&mut self, now: Instant, out: &mut Vec<TokenEvent>) {
        self.reach(At::Cancel);
        self.decoder.cancel(now, out);
    }
    fn reader(&mut self, paused: bool, now: Instant) {
        self.reach(At::Reader);
        self.decoder.reader(paused, now);
    }
    fn tick(&mut self, now: Instant, out: &mut Vec<TokenEvent>) {
        self.reach(At::Tick);
        self.decoder.tick(now, out);
    }
    fn next_wakeup(&self) -> Option<Instant> {
        self.reach(At::NextWakeup);
        self.decoder.next_wakeup()
    }
    fn deadline(&self) -> Option<Instant> {
        self.reach(At::Deadline);
        self.decoder.deadline()
    }
    fn phase(&self) -> Phase {
        self.reach(At::Phase);
        self.decoder.phase()
    }
    fn is_terminal(&self) -> bool {
        self.reach(At::IsTerminal);
        self.decoder.is_terminal()
    }
    fn tokens_emitted(&self) -> u64 {
        self.reach(At::TokensEmitted);
        self.decoder.tokens_emitted()
    }
    fn has_surplus(&self) -> bool {
        self.reach(At::HasSurplus);
        self.decoder.dropped_after_end() > 0
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        self.reach(At::Drop);
    }
}

fn fragile(at: At) -> Box<dyn Sink> {
    let config = clocks(|clocks| clocks.token_gap = Some(30 * SECOND));
    Box::new(Fragile { decoder: decoder(config), at, has_head: false })
}

/// The reactor still serves.
fn still_serves(rig: &Rig, other: &mut EventStream, socket: &mut std::net::TcpStream) {
    write(socket, &format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
    assert_eq!(kinds(&rig.ended(other)), ["started", "end"]);
}

fn assert_is_internal(events: &[TokenEvent]) {
    let failure = failure(events);
    assert_eq!(failure.detail, Detail::Internal);
    assert!(!failure.message.contains(TEXT) && !failure.message.contains("panic"));
    assert!(!failure.retriable);
}

#[test]
fn a_parser_that_panics_ends_its_stream_alone() {
    let rig = Rig::new();
    let target = rig.target();
    let (mut other, mut other_socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    let parser = Parser(Dialect::new("llamacpp", []).unwrap(), 0);
    let mut config = StreamConfig::new("llamacpp");
    config.started.correlation_id = Some(Arc::from("c-1"));
    let sink = StreamDecoder::new(parser, config);
    let (mut stream, mut socket) = rig.open_sink(&target, Box::new(sink));
    let frames = token("a", 1) + &token(TEXT, 2) + &token("c", 3);
    write(&mut socket, &format!("{HEAD}{}0\r\n\r\n", chunk(&frames)));
    let events = rig.ended(&mut stream);
    assert_eq!(texts(&events), ["a"]);
    assert_is_internal(&events);
    // All that the stream knows is in the error.
    let failure = failure(&events);
    assert_eq!((&*failure.engine, failure.tokens_emitted), ("llamacpp", 1));
    assert_eq!(failure.processed, Processed::Yes);
    assert_eq!(failure.correlation_id.as_deref(), Some("c-1"));
    assert_eq!(rig.reactor.connections(), 1);
    wait_for_close(&mut socket);
    still_serves(&rig, &mut other, &mut other_socket);
}

#[test]
fn a_sink_that_panics_anywhere_ends_its_stream_alone() {
    let ats = [
        At::Dispatched,
        At::Head,
        At::Body,
        At::Finish,
        At::Reader,
        At::Tick,
        At::NextWakeup,
        At::Deadline,
        At::Phase,
        At::IsTerminal,
        At::TokensEmitted,
        At::HasSurplus,
        At::Drop,
        At::Always,
    ];
    for at in ats {
        let rig = Rig::new();
        let target = rig.target();
        let (mut other, mut other_socket) = rig.open(&target, StreamConfig::new("llamacpp"));
        let mut stream = target.submit(&request(), fragile(at), Bounds::default()).unwrap();
        let mut events = Vec::new();
        if at == At::Dispatched {
            // Before a packet is sent.
            assert!(stream.take(&mut events));
            assert_is_internal(&events);
            assert_eq!(rig.reactor.connections(), 1);
            still_serves(&rig, &mut other, &mut other_socket);
            continue;
        }
        rig.until(|| stream.phase() == Phase::Head);
        let mut socket = rig.accept();
        read_request(&mut socket);
        let tokens: String = (0..1000).map(|i| chunk(&token("x", i + 1))).collect();
        write(&mut socket, &format!("{HEAD}{tokens}"));
        let ends_well = matches!(at, At::HasSurplus | At::Drop);
        if ends_well {
            write(&mut socket, &chunk(STOP));
        }
        if at == At::Finish {
            socket.shutdown(std::net::Shutdown::Write).unwrap();
        }
        rig.until(|| {
            if at != At::Reader || stream.pending() > 256 {
                stream.take(&mut events);
            }
            if at == At::Tick {
                rig.advance(30 * SECOND);
            }
            if at == At::TokensEmitted {
                // Nothing but the caller asks for it.
                let _ = stream.tokens_emitted();
            }
            let _ = stream.phase();
            stream.is_terminal() && stream.pending() == 0
        });
        if ends_well {
            assert_eq!(kinds(&events).last(), Some(&"end"), "{at:?}");
        } else {
            assert_is_internal(&events);
        }
        assert_eq!(events.iter().filter(|event| event.is_terminal()).count(), 1, "{at:?}");
        drop(stream);
        rig.advance(SECOND);
        rig.turn();
        assert_eq!(rig.reactor.connections(), 1, "{at:?}");
        wait_for_close(&mut socket);
        still_serves(&rig, &mut other, &mut other_socket);
        drop((other, target));
        rig.is_empty();
    }
}

#[test]
fn a_sink_that_panics_over_its_failure_or_its_cancelling_has_ended_as_well() {
    let rig = Rig::new();
    let target = rig.target();
    let (mut stream, socket) = rig.open_sink(&target, fragile(At::Fail));
    reset(socket);
    assert_is_internal(&rig.ended(&mut stream));

    let (mut stream, mut socket) = rig.open_sink(&target, fragile(At::Cancel));
    assert!(stream.cancel());
    let mut events = Vec::new();
    assert!(stream.take(&mut events));
    assert_is_internal(&events);
    wait_for_close(&mut socket);
}

#[test]
fn a_sink_whose_clock_never_stops_does_not_stop_the_reactor() {
    /// Says that a clock has run out, and does nothing about it.
    struct Idle(Box<StreamDecoder>);
    impl Sink for Idle {
        fn dispatched(&mut self, now: Instant) {
            self.0.dispatched(now);
        }
        fn head(&mut self, head: &ResponseHead<'_>, now: Instant, out: &mut Vec<TokenEvent>) {
            self.0.head(head, now, out);
        }
        fn body(&mut self, bytes: &[u8], now: Instant, out: &mut Vec<TokenEvent>) {
            self.0.feed(bytes, now, out);
        }
        fn finish(&mut self, complete: bool, now: Instant, out: &mut Vec<TokenEvent>) {
            self.0.finish(complete, now, out);
        }
        fn fail(
            &mut self,
            _: Detail,
            _: Phase,
            _: Option<Processed>,
            _: &str,
            _: Instant,
            _: &mut Vec<TokenEvent>,
        ) {
        }
        fn cancel(&mut self, now: Instant, out: &mut Vec<TokenEvent>) {
            self.0.cancel(now, out);
        }
        fn reader(&mut self, _: bool, _: Instant) {}
        fn tick(&mut self, _: Instant, _: &mut Vec<TokenEvent>) {}
        fn next_wakeup(&self) -> Option<Instant> {
            Some(Instant::default())
        }
        fn deadline(&self) -> Option<Instant> {
            None
        }
        fn phase(&self) -> Phase {
            self.0.phase()
        }
        fn is_terminal(&self) -> bool {
            self.0.is_terminal()
        }
        fn tokens_emitted(&self) -> u64 {
            self.0.tokens_emitted()
        }
        fn has_surplus(&self) -> bool {
            self.0.dropped_after_end() > 0
        }
    }
    let rig = Rig::new();
    let target = rig.target();
    let (mut other, mut other_socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    let idle = Box::new(Idle(decoder(StreamConfig::new("llamacpp"))));
    let (mut stream, mut socket) = rig.open_sink(&target, idle);
    still_serves(&rig, &mut other, &mut other_socket);
    still_serves(&rig, &mut stream, &mut socket);
}

#[test]
fn a_policy_that_panics_allows_nothing() {
    let rig = Rig::new();
    let mut config = rig.config();
    config.vet = Some(Arc::new(|_| panic!("{TEXT}")));
    let mut stream = submit(&rig.reactor.target(config));
    let mut events = Vec::new();
    assert!(stream.take(&mut events));
    assert_eq!(error(&events), ("egress_denied", "resolve"));
    assert_eq!(rig.reactor.connections(), 0);
}

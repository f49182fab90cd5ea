//! Many streams, large bursts and long queues: nothing starves, piles up or takes too long.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use common::*;
use socket2::SockRef;
use worker_adapters_core::dialects::FrameParser;
use worker_adapters_core::event::{Channel, TokenEvent};
use worker_adapters_core::json::JsonError;
use worker_adapters_core::sse::SseEvent;
use worker_adapters_core::stream::{Count, FrameSink};
use worker_adapters_core::{StreamConfig, StreamDecoder};
use worker_adapters_net::origin::Origin;
use worker_adapters_net::resolver::Resolve;
use worker_adapters_net::{EventStream, QUEUE_EVENTS, TargetConfig};

/// Ten times and more what any of this takes; what is quadratic takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

fn plain() -> StreamConfig {
    StreamConfig::new("llamacpp")
}

#[test]
fn a_thousand_streams_at_once() {
    const STREAMS: usize = 1000;
    const TOKENS: usize = 20;
    let rig = Rig::new();
    let mut config = rig.config();
    config.max_exchanges = STREAMS;
    config.max_idle = STREAMS;
    let target = rig.reactor.target(config);
    let mut streams: Vec<EventStream> = Vec::new();
    let mut sockets: Vec<TcpStream> = Vec::new();
    // As many at a time as the listener's backlog holds.
    while streams.len() < STREAMS {
        let batch: Vec<EventStream> = (0..100).map(|_| submit(&target)).collect();
        rig.until(|| batch.iter().all(EventStream::is_sent));
        sockets.extend(batch.iter().map(|_| rig.accept()));
        streams.extend(batch);
    }
    let mut events: Vec<Vec<TokenEvent>> = streams.iter().map(|_| Vec::new()).collect();
    for socket in &mut sockets {
        read_request(socket);
        write(socket, HEAD);
    }
    for i in 0..TOKENS {
        for socket in &mut sockets {
            write(socket, &chunk(&token("x", i + 1)));
        }
        rig.until(|| {
            for (stream, events) in streams.iter_mut().zip(&mut events) {
                stream.take(events);
            }
            events.iter().all(|events| events.len() == i + 2)
        });
    }
    for socket in &mut sockets {
        write(socket, &format!("{}0\r\n\r\n", chunk(STOP)));
    }
    rig.until(|| rig.reactor.resting() == STREAMS);
    for (stream, events) in streams.iter_mut().zip(&mut events) {
        stream.take(events);
        assert_eq!(texts(events).len(), TOKENS);
        assert_eq!(kinds(events).last(), Some(&"end"));
    }
    drop((streams, target));
    rig.is_empty();
}

#[test]
fn a_burst_does_not_starve_the_others() {
    const BURST: usize = 50 << 20;
    let rig = Rig::new();
    let target = rig.target();
    let (mut burst, mut torrent) = rig.open(&target, plain());
    let (mut quiet, mut trickle) = rig.open(&target, plain());
    let (mut last, mut late) = rig.open(&target, plain());
    for socket in [&mut torrent, &mut trickle, &mut late] {
        write(socket, HEAD);
    }
    let frames: String = (0..2000).map(|_| token("x", 1)).collect();
    let frames = chunk(&frames);
    torrent.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut answered = 0;
    let mut events = Vec::new();
    while sent < BURST {
        // There is always more of it than a turn reads.
        loop {
            let rest = &frames.as_bytes()[sent % frames.len()..];
            match torrent.write(rest) {
                Ok(size) => sent += size,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        answered += 1;
        write(&mut trickle, &chunk(&token("a", answered)));
        write(&mut late, &chunk(&token("b", answered)));
        // One turn, and whatever the others were sent has come.
        rig.turn();
        assert_eq!(quiet.tokens_emitted(), answered as u64);
        assert_eq!(last.tokens_emitted(), answered as u64);
        events.clear();
        assert!(burst.take(&mut events), "the burst goes on as well");
        // And it has had no more than its share.
        assert!(events.len() <= 2500, "{}", events.len());
        quiet.take(&mut events);
        last.take(&mut events);
    }
    assert!(answered > 20, "{answered}");
}

/// A dialect without any shell: a frame's data is its text.
struct Bare;

impl FrameParser for Bare {
    fn frame(&mut self, event: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
        sink.accept();
        sink.tokens(Count::More(1));
        sink.text(Channel::Content, event.data);
        Ok(())
    }
}

/// What events take: the room of the vector that grew to hold them, and texts of their own.
fn memory(events: &[TokenEvent]) -> usize {
    let texts: usize = texts(events)
        .iter()
        .filter(|text| text.len() > 24)
        .map(|text| text.len().next_multiple_of(16) + 16)
        .sum();
    events.len().next_power_of_two() * size_of::<TokenEvent>() + texts
}

#[test]
fn a_stopped_reader_costs_no_more_than_128_kib() {
    // From one token in 20 bytes on; texts that need an allocation; frames of many kilobytes.
    for text in [13, 18, 25, 60, 200, 1000, 20_000, 200_000] {
        let rig = Rig::new();
        let target = rig.target();
        let sink = StreamDecoder::new(Bare, plain());
        let (mut stream, mut socket) = rig.open_sink(&target, Box::new(sink));
        let frame = format!("data:{}\n\n", "x".repeat(text));
        let body = frame.repeat((4 << 20) / frame.len());
        write(&mut socket, &format!("{HEAD}{:x}\r\n", body.len()));
        socket.set_nonblocking(true).unwrap();
        SockRef::from(&socket).set_send_buffer_size(64 << 10).unwrap();
        let mut rest = body.as_bytes();
        // Until neither end takes any more.
        let mut stuck = 0;
        while stuck < 20 && !rest.is_empty() {
            stuck += 1;
            if let Ok(size) = socket.write(rest) {
                rest = &rest[size..];
                stuck = 0;
            }
            rig.turn();
        }
        assert!(!rest.is_empty(), "the reactor reads on and on");
        let waiting = stream.pending();
        assert_eq!(rig.reactor.stats().events, waiting);
        let mut events = Vec::new();
        stream.take(&mut events);
        assert_eq!(events.len(), waiting);
        // An event larger than the bound has to be held whole, once.
        let bound = (128 << 10) + if text > 64 << 10 { text } else { 0 };
        assert!(memory(&events) <= bound, "{text}: {waiting} events, {}", memory(&events));
        assert!(waiting >= 2);
    }
}

#[test]
fn a_reader_that_waits_for_more_is_told_when_there_is_no_room() {
    // Few events, but large ones.
    let rig = Rig::new();
    let target = rig.target();
    let sink = StreamDecoder::new(Bare, plain());
    let (mut stream, mut socket) = rig.open_sink(&target, Box::new(sink));
    let frame = format!("data:{}\n\n", "x".repeat(10_000));
    let body = frame.repeat(20);
    write(&mut socket, &format!("{HEAD}{}", chunk(&body)));
    let (count, waker) = count();
    let mut context = Context::from_waker(&waker);
    let mut polls = 0;
    rig.until(|| {
        polls += 1;
        stream.poll_beyond(100, &mut context).is_ready()
    });
    assert!(stream.pending() < 10 && count.get() >= 1 && polls > 1);
    let mut tokens = 0;
    rig.until(|| {
        let mut events = Vec::new();
        stream.take(&mut events);
        tokens += texts(&events).len();
        tokens == 20
    });
}

#[test]
fn so_many_events_wait_and_no_more() {
    let rig = Rig::new();
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, plain());
    write(&mut socket, HEAD);
    // Each event in a read of its own; the first brings `started` along.
    for number in 1..QUEUE_EVENTS {
        assert!(!stream.is_full());
        write(&mut socket, &chunk(&token("x", number)));
        rig.until(|| stream.pending() == number + 1);
    }
    assert!(stream.is_full());
    write(&mut socket, &chunk(&token("x", QUEUE_EVENTS)));
    for _ in 0..20 {
        rig.turn();
        assert_eq!(stream.pending(), QUEUE_EVENTS);
    }
    let mut events = Vec::new();
    assert!(stream.take(&mut events));
    rig.until(|| stream.pending() == 1);
    stream.take(&mut events);
    assert_eq!(texts(&events).len(), QUEUE_EVENTS);
}

#[test]
fn so_many_connections_rest_and_no_more() {
    let rig = Rig::new();
    let mut config = rig.config();
    config.max_idle = 2;
    let target = rig.reactor.target(config);
    let mut open: Vec<_> = (0..3).map(|_| rig.open(&target, plain())).collect();
    assert_eq!(rig.reactor.connections(), 3);
    for (_, socket) in &mut open {
        write(socket, &format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
    }
    rig.until(|| open.iter().all(|(stream, _)| stream.is_terminal()));
    rig.until(|| rig.reactor.connections() == 2);
    assert_eq!(rig.reactor.resting(), 2);
}

fn waiting_room(rig: &Rig, size: usize) -> TargetConfig {
    let mut config = rig.config();
    config.max_exchanges = 1;
    config.max_waiting = size;
    config.queue_timeout = 2 * SECOND;
    config
}

const MANY: usize = 10_000;

fn all_failed(streams: &mut [EventStream], detail: &str) {
    for stream in streams {
        let mut events = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(stream.poll_batch(&mut context, &mut events), Poll::Ready(()));
        assert_eq!(error(&events).0, detail);
    }
}

#[test]
fn ten_thousand_waiters_fail_at_once() {
    let rig = Rig::new();
    let target = rig.reactor.target(waiting_room(&rig, MANY));
    let (_holder, _socket) = rig.open(&target, plain());
    let mut streams: Vec<EventStream> = (0..MANY).map(|_| submit(&target)).collect();
    assert_eq!(rig.reactor.stats().waiting, MANY);
    let began = Instant::now();
    rig.advance(2 * SECOND);
    rig.turn();
    all_failed(&mut streams, "saturated");
    drop(streams);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    let stats = rig.reactor.stats();
    // The one clock is the holder's, who has connected since.
    assert_eq!((stats.waiting, stats.exchanges, stats.clocks), (0, 1, 1));
}

#[test]
fn ten_thousand_waiters_leave_in_any_order() {
    let rig = Rig::new();
    let target = rig.reactor.target(waiting_room(&rig, MANY));
    let (_holder, _socket) = rig.open(&target, plain());
    let began = Instant::now();
    for backwards in [false, true] {
        let mut streams: Vec<EventStream> = (0..MANY).map(|_| submit(&target)).collect();
        if backwards {
            streams.reverse();
        }
        for stream in &mut streams {
            assert!(stream.cancel());
        }
    }
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert_eq!(rig.reactor.stats().exchanges, 1);
}

#[test]
fn ten_thousand_places_are_had_and_lost_in_one_go() {
    // Whoever gets the place is refused at once, and the next one gets it: no deeper stack for it.
    use std::sync::atomic::{AtomicBool, Ordering};
    let rig = Rig::new();
    let mut config = waiting_room(&rig, MANY);
    let is_open = Arc::new(AtomicBool::new(true));
    let gate = Arc::clone(&is_open);
    config.vet =
        Some(Arc::new(
            move |_| {
                if gate.load(Ordering::SeqCst) { Ok(()) } else { Err("closed".to_owned()) }
            },
        ));
    let target = rig.reactor.target(config);
    let (holder, _socket) = rig.open(&target, plain());
    let mut streams: Vec<EventStream> = (0..MANY).map(|_| submit(&target)).collect();
    is_open.store(false, Ordering::SeqCst);
    let began = Instant::now();
    drop(holder);
    all_failed(&mut streams, "egress_denied");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    drop((streams, target));
    rig.is_empty();
}

#[test]
fn ten_thousand_lookups_fail_at_once() {
    struct Nowhere;
    impl Resolve for Nowhere {
        fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
            Err(io::ErrorKind::NotFound.into())
        }
    }
    let rig = Rig::resolving(Arc::new(Nowhere));
    let origin = Origin::parse("http://engine.test:8080").unwrap().0;
    let mut config = TargetConfig::new(origin);
    config.max_exchanges = MANY;
    let target = rig.reactor.target(config);
    let began = Instant::now();
    let mut streams: Vec<EventStream> = (0..MANY).map(|_| submit(&target)).collect();
    rig.until(|| streams.iter().all(EventStream::is_terminal));
    all_failed(&mut streams, "resolve");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    drop((streams, target));
    rig.is_empty();
}

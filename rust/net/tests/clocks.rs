//! Every bound on time, to the nanosecond.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::*;
use socket2::{Domain, Socket, Type};
use worker_adapters_core::StreamConfig;
use worker_adapters_core::error::{Phase, Processed};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::time::Instant;
use worker_adapters_net::happy_eyeballs::ATTEMPT_DELAY;
use worker_adapters_net::origin::Origin;
use worker_adapters_net::resolver::Resolve;
use worker_adapters_net::{
    Bounds, DRAIN_TIME, ERROR_BODY_TIME, EventStream, QUEUE_EVENTS, Request, TargetConfig,
};

/// A resolver that answers nobody until it is dropped.
#[derive(Default)]
struct Hangs(Mutex<bool>, Condvar);

impl Resolve for Hangs {
    fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        let mut is_over = self.0.lock().unwrap();
        while !*is_over {
            is_over = self.1.wait(is_over).unwrap();
        }
        Ok(Vec::new())
    }
}

impl Hangs {
    fn end(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

/// A listener that takes no more connections: its SYNs are dropped.
fn deaf() -> (Socket, Vec<Socket>, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let fillers = (0..4).map(|_| {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        let _ = filler.connect(&address);
        filler
    });
    (listener, fillers.collect(), address.as_socket().unwrap())
}

fn connect_within(seconds: u64) -> Bounds {
    Bounds { connect: Some(Duration::from_secs(seconds)), ..Bounds::default() }
}

fn deadline(rig: &Rig, after: Duration) -> StreamConfig {
    clocks(|clocks| clocks.deadline = Some(rig.reactor.now().saturating_add(after)))
}

#[test]
fn connecting_is_bounded() {
    let rig = Rig::new();
    let (_listener, _fillers, address) = deaf();
    let target = rig.reactor.target(config(address));
    let sink = decoder(StreamConfig::new("llamacpp"));
    let mut stream = target.submit(&request(), sink, connect_within(3)).unwrap();
    let events = rig.expires(&mut stream, 3 * SECOND);
    assert_eq!(error(&events), ("connect_timeout", "connect"));
    assert_eq!(failure(&events).processed, Processed::No);
    assert!(!stream.is_sent());
    assert_eq!(rig.reactor.connections(), 0);
    drop((stream, target));
    rig.is_empty();
}

#[test]
fn a_dead_address_costs_the_attempt_delay() {
    struct Both(Vec<SocketAddr>);
    impl Resolve for Both {
        fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
            Ok(self.0.clone())
        }
    }
    let (_listener, _fillers, dead) = deaf();
    let alive = TcpListener::bind("127.0.0.1:0").unwrap();
    let both = Both(vec![dead, alive.local_addr().unwrap()]);
    let rig = Rig::resolving(Arc::new(both));
    let origin = Origin::parse("http://engine.test:8080").unwrap().0;
    let target = rig.reactor.target(TargetConfig::new(origin));
    let stream = submit(&target);
    rig.until(|| stream.phase() == Phase::Connect);
    rig.advance(ATTEMPT_DELAY.saturating_sub(NANO));
    rig.turn();
    alive.set_nonblocking(true).unwrap();
    assert!(alive.accept().is_err());
    rig.advance(NANO);
    rig.until(|| stream.phase() == Phase::Head);
    assert_eq!(rig.reactor.connections(), 1);
    drop((stream, target));
    rig.is_empty();
}

#[test]
fn a_lookup_is_bounded_by_the_same_clock() {
    let hangs = Arc::new(Hangs::default());
    let rig = Rig::resolving(Arc::<Hangs>::clone(&hangs));
    let origin = Origin::parse("http://engine.test:8080").unwrap().0;
    let target = rig.reactor.target(TargetConfig::new(origin));
    let sink = decoder(StreamConfig::new("llamacpp"));
    let mut stream = target.submit(&request(), sink, connect_within(5)).unwrap();
    let events = rig.expires(&mut stream, 5 * SECOND);
    assert_eq!(error(&events), ("connect_timeout", "resolve"));
    drop((stream, target));
    rig.is_empty();
    hangs.end();
}

#[test]
fn a_handshake_is_bounded_from_its_own_beginning() {
    let rig = Rig::new();
    let mut config = rig.config();
    let options = worker_adapters_net::tls::TlsOptions::default();
    config.tls = Some(worker_adapters_net::tls::client_config(&options).unwrap());
    let target = rig.reactor.target(config);
    let bounds = Bounds { connect: Some(SECOND), tls: Some(7 * SECOND) };
    let sink = decoder(StreamConfig::new("llamacpp"));
    let mut stream = target.submit(&request(), sink, bounds).unwrap();
    rig.until(|| stream.phase() == Phase::Tls);
    let _silent = rig.accept();
    let events = rig.expires(&mut stream, 7 * SECOND);
    assert_eq!(error(&events), ("tls_timeout", "tls"));
    assert!(!stream.is_sent());
    assert_eq!(rig.reactor.connections(), 0);
}

#[test]
fn waiting_for_a_place_is_bounded_in_time_and_number() {
    let rig = Rig::new();
    let mut config = rig.config();
    config.max_exchanges = 1;
    config.max_waiting = 1;
    config.queue_timeout = 2 * SECOND;
    let target = rig.reactor.target(config);
    let (mut first, _socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    let mut second = submit(&target);
    assert_eq!(second.phase(), Phase::Queue);
    // One too many is told at once, with no turn of the reactor.
    let mut third = submit(&target);
    let mut events = Vec::new();
    assert!(third.take(&mut events));
    assert_eq!(error(&events), ("saturated", "queue"));
    let events = rig.expires(&mut second, 2 * SECOND);
    assert_eq!(error(&events), ("saturated", "queue"));
    assert_eq!(failure(&events).processed, Processed::No);
    assert_eq!(rig.reactor.stats().waiting, 0);
    assert!(first.cancel());
    drop((first, second, third, target));
    rig.is_empty();
}

#[test]
fn a_waiter_that_leaves_takes_no_place() {
    let rig = Rig::new();
    let mut config = rig.config();
    config.max_exchanges = 1;
    let target = rig.reactor.target(config);
    let (first, _socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    let mut cancelled = submit(&target);
    let dropped = submit(&target);
    let next = submit(&target);
    let last = submit(&target);
    assert!(cancelled.cancel());
    drop(dropped);
    assert_eq!(rig.reactor.stats().waiting, 2);
    drop(first);
    // In the order of coming, and one at a time.
    assert_eq!((next.phase(), last.phase()), (Phase::Connect, Phase::Queue));
    drop(next);
    assert_eq!(last.phase(), Phase::Connect);
    drop((last, cancelled));
    assert_eq!(rig.reactor.stats().exchanges, 0);
    // The place is free, and there is one.
    let stream = submit(&target);
    assert_eq!(stream.phase(), Phase::Connect);
    drop((stream, target));
    rig.is_empty();
}

#[test]
fn a_place_that_becomes_free_as_the_wait_ends_is_not_lost() {
    let rig = Rig::new();
    let mut config = rig.config();
    config.max_exchanges = 1;
    config.queue_timeout = 2 * SECOND;
    let target = rig.reactor.target(config);
    let (first, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    let mut waiter = submit(&target);
    // In one and the same turn the first one ends and the waiter's time is up.
    rig.advance(2 * SECOND);
    write(&mut socket, &format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
    rig.until(|| first.is_terminal() && waiter.is_terminal());
    let mut events = Vec::new();
    waiter.take(&mut events);
    assert_eq!(error(&events), ("saturated", "queue"));
    drop((first, waiter));
    // The place is free, and so is the connection.
    assert_eq!(submit(&target).phase(), Phase::Head);
}

#[test]
fn writing_is_bounded_by_the_first_token_clock() {
    let rig = Rig::new();
    let target = rig.target();
    let body = vec![b'x'; 64 << 20];
    let request = Request { method: "POST", path: "/completion", headers: &[], body: Some(&body) };
    let sink = decoder(clocks(|clocks| clocks.first_token = Some(120 * SECOND)));
    let mut stream = target.submit(&request, sink, Bounds::default()).unwrap();
    rig.until(|| stream.is_sent());
    let _never_reads = rig.accept();
    // Until the socket is full.
    for _ in 0..100 {
        rig.turn();
    }
    let events = rig.expires(&mut stream, 120 * SECOND);
    assert_eq!(error(&events), ("write_timeout", "write"));
    assert_eq!(failure(&events).processed, Processed::Unknown);
    assert_eq!(rig.reactor.connections(), 0);
}

#[test]
fn a_head_is_bounded_as_a_whole() {
    let rig = Rig::new();
    let target = rig.target();
    let config = clocks(|clocks| {
        clocks.first_token = Some(10 * SECOND);
        clocks.idle = Some(SECOND);
    });
    let (mut stream, mut socket) = rig.open(&target, config);
    for byte in "HTTP/1.1 2".chars().take(9) {
        write(&mut socket, &byte.to_string());
        rig.turn();
        rig.advance(SECOND);
        rig.turn();
    }
    assert!(!stream.is_terminal());
    let events = rig.expires(&mut stream, SECOND);
    assert_eq!(error(&events), ("header_timeout", "head"));
    assert!(failure(&events).retriable);
}

#[test]
fn silence_is_bounded_by_the_first_token_clock_before_and_after_the_head() {
    let rig = Rig::new();
    let target = rig.target();
    let config = clocks(|clocks| clocks.first_token = Some(120 * SECOND));
    let (mut stream, _socket) = rig.open(&target, config.clone());
    let events = rig.expires(&mut stream, 120 * SECOND);
    assert_eq!(error(&events), ("first_token", "head"));
    assert_eq!(failure(&events).processed, Processed::Unknown);

    // An interim response is no head.
    let (mut stream, mut socket) = rig.open(&target, config.clone());
    write(&mut socket, "HTTP/1.1 103 Early Hints\r\n\r\n");
    let events = rig.expires(&mut stream, 120 * SECOND);
    assert_eq!(error(&events), ("first_token", "head"));

    let (mut stream, mut socket) = rig.open(&target, config);
    write(&mut socket, HEAD);
    rig.until(|| stream.status() == Some(200));
    write(&mut socket, &chunk(": ping\n\n"));
    let events = rig.expires(&mut stream, 120 * SECOND);
    assert_eq!(error(&events), ("first_token", "first_token"));
    assert_eq!(rig.reactor.connections(), 0);
}

/// A stream that has given its first token, which has been taken.
fn with_a_token(rig: &Rig, config: StreamConfig) -> (EventStream, std::net::TcpStream) {
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, config);
    write(&mut socket, &format!("{HEAD}{}", chunk(&token("a", 1))));
    rig.until(|| stream.pending() == 2);
    stream.take(&mut Vec::new());
    (stream, socket)
}

#[test]
fn the_token_gap_is_reset_by_tokens_alone() {
    let rig = Rig::new();
    let config = clocks(|clocks| clocks.token_gap = Some(30 * SECOND));
    let (mut stream, mut socket) = with_a_token(&rig, config);
    rig.advance(29 * SECOND);
    write(&mut socket, &chunk(&token("b", 2)));
    rig.until(|| stream.tokens_emitted() == 2);
    rig.advance(29 * SECOND);
    write(&mut socket, &chunk(": ping\n\n"));
    // It is read in the turn in which the clock has not yet run out.
    let events = rig.expires(&mut stream, SECOND);
    assert_eq!(kinds(&events), ["token", "error"]);
    assert_eq!(error(&events), ("token_gap", "stream"));
    assert_eq!(failure(&events).processed, Processed::Yes);
    assert_eq!(rig.reactor.connections(), 0);
}

#[test]
fn what_has_come_in_time_counts_however_late_it_is_looked_at() {
    let rig = Rig::new();
    let config = clocks(|clocks| clocks.token_gap = Some(30 * SECOND));
    let (stream, mut socket) = with_a_token(&rig, config);
    write(&mut socket, &chunk(&token("b", 2)));
    rig.advance(300 * SECOND);
    rig.until(|| stream.tokens_emitted() == 2 || stream.is_terminal());
    assert!(!stream.is_terminal());
}

#[test]
fn the_idle_clock_is_reset_by_any_byte() {
    let rig = Rig::new();
    let (mut stream, mut socket) =
        with_a_token(&rig, clocks(|clocks| clocks.idle = Some(75 * SECOND)));
    for _ in 0..3 {
        rig.advance(74 * SECOND);
        write(&mut socket, &chunk(": ping\n\n"));
        // The comment gives no event to wait for; what is in the socket is read in a turn, though.
        rig.until(|| rig.reactor.turn(Some(INSTANTLY)).is_ok());
        assert!(!stream.is_terminal());
    }
    let events = rig.expires(&mut stream, 75 * SECOND);
    assert_eq!(error(&events), ("idle", "stream"));
}

#[test]
fn the_deadline_ends_every_phase() {
    let rig = Rig::new();
    let after = 9 * SECOND;
    let unbounded = Bounds { connect: None, tls: None };

    // Queue.
    let mut one = rig.config();
    one.max_exchanges = 1;
    one.queue_timeout = Duration::from_secs(3600);
    let target = rig.reactor.target(one);
    let (_holder, _socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    let mut stream = submit_with(&target, deadline(&rig, after));
    assert_eq!(error(&rig.expires(&mut stream, after)), ("deadline", "queue"));

    // Resolve.
    let hangs = Arc::new(Hangs::default());
    let named = Rig::resolving(Arc::<Hangs>::clone(&hangs));
    let origin = Origin::parse("http://engine.test:8080").unwrap().0;
    let target = named.reactor.target(TargetConfig::new(origin));
    let sink = decoder(deadline(&named, after));
    let mut stream = target.submit(&request(), sink, unbounded).unwrap();
    assert_eq!(error(&named.expires(&mut stream, after)), ("deadline", "resolve"));
    hangs.end();

    // Connect.
    let (_listener, _fillers, address) = deaf();
    let target = rig.reactor.target(config(address));
    let sink = decoder(deadline(&rig, after));
    let mut stream = target.submit(&request(), sink, unbounded).unwrap();
    assert_eq!(error(&rig.expires(&mut stream, after)), ("deadline", "connect"));

    // TLS.
    let mut secure = rig.config();
    let options = worker_adapters_net::tls::TlsOptions::default();
    secure.tls = Some(worker_adapters_net::tls::client_config(&options).unwrap());
    let target = rig.reactor.target(secure);
    let sink = decoder(deadline(&rig, after));
    let mut stream = target.submit(&request(), sink, unbounded).unwrap();
    rig.until(|| stream.phase() == Phase::Tls);
    let _silent = rig.accept();
    assert_eq!(error(&rig.expires(&mut stream, after)), ("deadline", "tls"));

    // Write.
    let target = rig.target();
    let body = vec![b'x'; 64 << 20];
    let large = Request { method: "POST", path: "/completion", headers: &[], body: Some(&body) };
    let sink = decoder(deadline(&rig, after));
    let mut stream = target.submit(&large, sink, unbounded).unwrap();
    rig.until(|| stream.is_sent());
    let _never_reads = rig.accept();
    assert_eq!(error(&rig.expires(&mut stream, after)), ("deadline", "write"));

    // Head, whole or in part.
    let (mut stream, mut socket) = rig.open(&target, deadline(&rig, after));
    assert_eq!(error(&rig.expires(&mut stream, after)), ("deadline", "head"));
    drop(socket);
    (stream, socket) = rig.open(&target, deadline(&rig, after));
    write(&mut socket, "HTTP/1.1 200");
    assert_eq!(error(&rig.expires(&mut stream, after)), ("deadline", "head"));

    // First token.
    (stream, socket) = rig.open(&target, deadline(&rig, after));
    write(&mut socket, HEAD);
    rig.until(|| stream.status().is_some());
    assert_eq!(error(&rig.expires(&mut stream, after)), ("deadline", "first_token"));

    // Stream.
    let (mut stream, _socket) = with_a_token(&rig, deadline(&rig, after));
    assert_eq!(error(&rig.expires(&mut stream, after)), ("deadline", "stream"));
}

#[test]
fn a_deadline_that_has_passed_sends_nothing() {
    let rig = Rig::new();
    let target = rig.target();
    let mut stream = submit_with(&target, deadline(&rig, INSTANTLY));
    let mut events = Vec::new();
    assert!(stream.take(&mut events));
    assert_eq!(kinds(&events), ["error"]);
    assert_eq!(error(&events), ("deadline", "queue"));
    assert_eq!(rig.reactor.connections(), 0);
    rig.listener.set_nonblocking(true).unwrap();
    rig.turn();
    assert_eq!(rig.listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    // The same for one whose turn comes too late.
    drop((stream, target));
    rig.is_empty();
}

/// Fills the queue of a stream whose reader has stopped, and the socket behind it.
fn stop_reading(rig: &Rig, stream: &EventStream, socket: &mut std::net::TcpStream) -> usize {
    let frames: String = (0..200).map(|i| token("x", i + 2)).collect();
    socket.set_nonblocking(true).unwrap();
    let chunk = chunk(&frames);
    let mut written = 0;
    // Whole chunks, until the reactor does not read any more and one does not fit.
    while io::Write::write(socket, chunk.as_bytes()).is_ok_and(|size| size == chunk.len()) {
        written += 200;
        rig.turn();
    }
    assert!(stream.pending() >= QUEUE_EVENTS, "{}", stream.pending());
    written
}

#[test]
fn the_token_gap_stands_still_while_the_reader_is_the_slow_side() {
    let rig = Rig::new();
    let config = clocks(|clocks| {
        clocks.token_gap = Some(30 * SECOND);
        clocks.idle = Some(30 * SECOND);
        clocks.deadline = Some(rig.reactor.now().saturating_add(1000 * SECOND));
    });
    let (mut stream, mut socket) = with_a_token(&rig, config);
    stop_reading(&rig, &stream, &mut socket);
    let before = stream.pending();
    rig.advance(900 * SECOND);
    rig.turn();
    assert!(!stream.is_terminal());
    // The deadline does not stand still: what had come stays, and then comes the error.
    let events = rig.expires(&mut stream, 100 * SECOND);
    assert_eq!(error(&events), ("deadline", "stream"));
    assert!(events.len() > before);
    let numbers: Vec<u64> = events
        .iter()
        .filter_map(|event| match event {
            TokenEvent::Token(token) => Some(token.i),
            _ => None,
        })
        .collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64));
    assert_eq!(rig.reactor.connections(), 0);
}

#[test]
fn the_token_gap_goes_on_when_the_reader_does() {
    let rig = Rig::new();
    let config = clocks(|clocks| clocks.token_gap = Some(30 * SECOND));
    let (mut stream, mut socket) = with_a_token(&rig, config);
    stop_reading(&rig, &stream, &mut socket);
    rig.advance(900 * SECOND);
    rig.turn();
    // All is read, and from there on the engine is the slow side.
    let mut events = Vec::new();
    loop {
        stream.take(&mut events);
        rig.turn();
        if stream.pending() == 0 {
            break;
        }
    }
    let events = rig.expires(&mut stream, 30 * SECOND);
    assert_eq!(kinds(&events), ["error"]);
    assert_eq!(error(&events), ("token_gap", "stream"));
}

#[test]
fn the_body_of_an_error_is_bounded_in_time_and_size() {
    let rig = Rig::new();
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    write(&mut socket, "HTTP/1.1 500 Oops\r\ncontent-length: 100\r\n\r\n{\"error\":\"a");
    rig.until(|| stream.status() == Some(500));
    let events = rig.expires(&mut stream, ERROR_BODY_TIME);
    assert_eq!(failure(&events).status, Some(500));
    assert_eq!(rig.reactor.connections(), 0);

    for (length, resting) in [(8 << 10, 1), ((8 << 10) + 1, 0)] {
        let (mut stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
        let head = format!("HTTP/1.1 500 Oops\r\ncontent-length: {length}\r\n\r\n");
        write(&mut socket, &head);
        write(&mut socket, &"x".repeat(length));
        rig.until(|| stream.is_terminal());
        let mut events = Vec::new();
        stream.take(&mut events);
        assert_eq!(failure(&events).status, Some(500));
        assert_eq!(rig.reactor.resting(), resting, "{length}");
        assert_eq!(rig.reactor.connections(), resting);
    }
}

#[test]
fn what_follows_the_end_is_read_for_a_while() {
    let rig = Rig::new();
    let target = rig.target();
    let (stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    write(&mut socket, &format!("{HEAD}{}", chunk(STOP)));
    rig.until(|| stream.is_terminal());
    // Also when nobody refers to it any more.
    drop(stream);
    assert_eq!(rig.reactor.connections(), 1);
    rig.advance(DRAIN_TIME.saturating_sub(NANO));
    rig.turn();
    assert_eq!(rig.reactor.connections(), 1);
    rig.advance(NANO);
    rig.turn();
    assert_eq!(rig.reactor.stats(), worker_adapters_net::Stats::default());
    wait_for_close(&mut socket);

    let (stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    write(&mut socket, &format!("{HEAD}{}", chunk(STOP)));
    rig.until(|| stream.is_terminal());
    let padding = chunk(&": \n".repeat(5000));
    socket.set_nonblocking(true).unwrap();
    let mut sent = 0;
    rig.until(|| {
        let _ = io::Write::write(&mut socket, padding.as_bytes()).map(|size| sent += size);
        rig.reactor.connections() == 0
    });
    assert!(sent > 64 << 10);
}

#[test]
fn connections_rest_for_a_bounded_time() {
    let rig = Rig::new();
    let target = rig.target();
    let (stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    write(&mut socket, &format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
    rig.until(|| rig.reactor.resting() == 1);
    let rests = target.config().idle_timeout;
    rig.advance(rests.saturating_sub(NANO));
    rig.turn();
    assert_eq!(rig.reactor.resting(), 1);
    rig.advance(NANO);
    rig.turn();
    assert_eq!(rig.reactor.connections(), 0);
    wait_for_close(&mut socket);
    drop((stream, target));
    rig.is_empty();
}

#[test]
fn a_connection_that_has_rested_too_long_is_not_used_though_nobody_has_looked() {
    let rig = Rig::new();
    let target = rig.target();
    let (_stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    write(&mut socket, &format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
    rig.until(|| rig.reactor.resting() == 1);
    rig.advance(target.config().idle_timeout);
    let (_fresh, _socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    wait_for_close(&mut socket);
}

#[test]
fn the_next_moment_to_turn_is_told() {
    let rig = Rig::new();
    let target = rig.target();
    assert_eq!(rig.reactor.turn(Some(INSTANTLY)).unwrap(), None);
    let begun = rig.reactor.now();
    let (stream, _socket) =
        rig.open(&target, clocks(|clocks| clocks.first_token = Some(120 * SECOND)));
    // An earlier entry of the connect clock may come first; it strikes nobody.
    let mut due: Instant = rig.reactor.turn(Some(INSTANTLY)).unwrap().unwrap();
    assert_eq!(due, begun.saturating_add(5 * SECOND));
    rig.advance(5 * SECOND);
    due = rig.reactor.turn(Some(INSTANTLY)).unwrap().unwrap();
    assert_eq!(due, begun.saturating_add(120 * SECOND));
    drop(stream);
    assert_eq!(rig.reactor.turn(Some(INSTANTLY)).unwrap(), None);
}

#[test]
fn a_deaf_listener_is_deaf() {
    let (_listener, _fillers, address) = deaf();
    let late = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(20));
    assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
    drop(TcpListener::bind("127.0.0.1:0").unwrap());
}

//! HTTP/2: exchanges that share a connection, and are kept from one another's troubles.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod http2_server;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use common::*;
use h2::Reason;
use http2_server::*;
use tokio::sync::Notify;
use worker_adapters_core::StreamConfig;
use worker_adapters_core::error::{ErrorKind, Processed, WorkerError, WorkerErrorKind};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_net::{Bounds, EventStream, Reactor, Request, Target};

fn failure(events: &[TokenEvent]) -> &WorkerError {
    match events.last() {
        Some(TokenEvent::Error(error)) => error,
        other => panic!("no error but {other:?}"),
    }
}

/// Turns the reactor until something is so.
fn until(reactor: &Reactor, is_so: impl Fn(&Reactor) -> bool) {
    let began = std::time::Instant::now();
    while !is_so(reactor) {
        assert!(began.elapsed() < GUARD, "it never comes to be");
        reactor.turn(Some(Duration::from_millis(20))).unwrap();
    }
}

/// Turns the reactor until a message has come.
fn receive<T>(reactor: &Reactor, from: &mpsc::Receiver<T>) -> T {
    let began = std::time::Instant::now();
    loop {
        match from.try_recv() {
            Ok(message) => return message,
            Err(error) => {
                assert_eq!(error, mpsc::TryRecvError::Empty);
                assert!(began.elapsed() < GUARD, "nothing is said");
                reactor.turn(Some(Duration::from_millis(20))).unwrap();
            }
        }
    }
}

#[test]
fn a_stream_comes_through() {
    let server = Server::start(&[b"h2"], 1, async |_, tls| {
        let mut connection = h2::server::handshake(tls).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let (head, mut body) = request.into_parts();
        assert_eq!(head.method, "POST");
        assert_eq!(head.uri.scheme_str(), Some("https"));
        assert_eq!(head.uri.path_and_query().unwrap(), "/completion?a=b");
        assert!(head.uri.authority().unwrap().as_str().starts_with("127.0.0.1:"));
        assert_eq!(head.headers["content-type"], "application/json");
        assert_eq!(head.headers["content-length"], "2");
        let talk = async {
            assert_eq!(body.data().await.unwrap().unwrap(), "{}");
            let mut stream = begin(&mut respond);
            say(&mut stream, &token("a", 1));
            say(&mut stream, &token("b", 2));
            say(&mut stream, STOP);
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-checksum", "1".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
        };
        let ((), next) = tokio::join!(talk, connection.accept());
        assert!(!matches!(next, Some(Ok(_))), "one request came, and another");
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let request = Request {
        method: "POST",
        path: "/completion?a=b",
        headers: &[(b"content-type", b"application/json")],
        body: Some(b"{}"),
    };
    let sink = decoder(StreamConfig::new("llamacpp"));
    let mut stream = target.submit(&request, sink, Bounds::default()).unwrap();
    let events = collect(&reactor, &mut stream);
    assert_eq!(kinds(&events), ["started", "token", "token", "end"]);
    assert!(next_batch(&reactor, &mut stream).is_empty());
    assert_eq!(stream.status(), Some(200));
    until(&reactor, |reactor| reactor.resting() == 1);
    drop((stream, target));
    assert_eq!(reactor.connections(), 0);
    server.join();
}

#[test]
fn secrets_enter_no_compression_table() {
    let server = Server::start(&[b"h2"], 1, async |_, tls| {
        let mut peer = Raw::greet(tls, &[]).await;
        for _ in 0..2 {
            let (stream, block) = peer.header_block().await;
            // A literal that is never indexed, under the name's index 23 (RFC 7541, section 6.2.3).
            let mut literal = block.windows(2).filter(|pair| pair == &[0x1f, 0x08]);
            assert_eq!(literal.by_ref().count(), 1, "{block:02x?}");
            peer.stream_whole(stream).await;
        }
        peer.end().await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let request = Request {
        method: "POST",
        path: "/",
        headers: &[(b"Authorization", b"Bearer x")],
        body: None,
    };
    for _ in 0..2 {
        let sink = decoder(StreamConfig::new("llamacpp"));
        let mut stream = target.submit(&request, sink, Bounds::default()).unwrap();
        assert_eq!(kinds(&collect(&reactor, &mut stream)), ["started", "end"]);
    }
    drop(target);
    server.join();
}

#[test]
fn a_get_has_no_body() {
    let server = Server::start(&[b"h2"], 1, async |_, tls| {
        answering(tls, async |request, mut respond| {
            assert_eq!(request.method(), "GET");
            assert!(request.body().is_end_stream());
            let mut stream = begin(&mut respond);
            say(&mut stream, STOP);
            end(stream);
        })
        .await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let request = Request { method: "GET", path: "/", headers: &[], body: None };
    let sink = decoder(StreamConfig::new("llamacpp"));
    let mut stream = target.submit(&request, sink, Bounds::default()).unwrap();
    assert_eq!(kinds(&collect(&reactor, &mut stream)), ["started", "end"]);
    drop((stream, target));
    server.join();
}

#[test]
fn a_hundred_streams_share_a_connection() {
    let server = Server::start(&[b"h2", b"http/1.1"], 1, async |_, tls| {
        let waiting = Arc::new(AtomicUsize::new(0));
        let all = Arc::new(Notify::new());
        answering(tls, async move |_, mut respond| {
            // Nobody is answered before all have asked.
            if waiting.fetch_add(1, Ordering::Relaxed) == 99 {
                all.notify_waiters();
            } else {
                all.notified().await;
            }
            let mut stream = begin(&mut respond);
            for number in 1..=50 {
                say(&mut stream, &token("x", number));
                tokio::task::yield_now().await;
            }
            say(&mut stream, STOP);
            end(stream);
        })
        .await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let mut streams: Vec<_> = (0..100).map(|_| submit(&target)).collect();
    for stream in &mut streams {
        let events = collect(&reactor, stream);
        assert_eq!(events.len(), 52);
        assert_eq!(stream.tokens_emitted(), 50);
    }
    assert_eq!(reactor.connections(), 1);
    // Others come later, and find it at rest.
    until(&reactor, |reactor| reactor.resting() == 1);
    drop((streams, target));
    server.join();
}

/// Serves streams of two parts, the second of which comes when the test lets it. Would refuse two at
/// a time.
async fn one_at_a_time(tls: Tls, go_on: Arc<Notify>) {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(1);
    answering_with(builder, tls, async move |_, mut respond| {
        let mut stream = begin(&mut respond);
        say(&mut stream, &token("a", 1));
        tokio::select! {
            () = go_on.notified() => {
                say(&mut stream, STOP);
                end(stream);
            }
            _ = std::future::poll_fn(|context| stream.poll_reset(context)) => {}
        }
    })
    .await;
}

#[test]
fn a_full_connection_is_waited_for() {
    let go_on = Arc::new(Notify::new());
    let server = Server::start(&[b"h2"], 1, {
        let go_on = Arc::clone(&go_on);
        async move |_, tls| one_at_a_time(tls, Arc::clone(&go_on)).await
    });
    let reactor = reactor();
    let mut config = server.config();
    config.max_http2_connections = 1;
    let target = reactor.target(config);
    let mut first = submit(&target);
    assert_eq!(kinds(&next_batch(&reactor, &mut first)), ["started", "token"]);
    let mut second = submit(&target);
    for _ in 0..5 {
        reactor.turn(Some(Duration::from_millis(1))).unwrap();
    }
    assert!(!second.is_sent());
    assert_eq!(second.phase().as_str(), "queue");
    go_on.notify_one();
    assert_eq!(kinds(&collect(&reactor, &mut first)), ["end"]);
    assert_eq!(kinds(&next_batch(&reactor, &mut second)), ["started", "token"]);
    assert_eq!(reactor.connections(), 1);
    go_on.notify_one();
    assert_eq!(kinds(&collect(&reactor, &mut second)), ["end"]);

    // One that is cancelled makes room as well, and those that nobody wants any more take none.
    let mut third = submit(&target);
    next_batch(&reactor, &mut third);
    let (fourth, mut fifth) = (submit(&target), submit(&target));
    drop(fourth);
    third.cancel();
    assert_eq!(kinds(&next_batch(&reactor, &mut fifth)), ["started", "token"]);
    drop((first, second, third, fifth, target));
    go_on.notify_one();
    server.join();
}

#[test]
fn the_wait_for_a_full_connection_is_bounded() {
    let server = Server::start(&[b"h2"], 1, async |_, tls| {
        one_at_a_time(tls, Arc::new(Notify::new())).await;
    });
    let reactor = reactor();
    let mut config = server.config();
    config.max_http2_connections = 1;
    config.queue_timeout = Duration::from_millis(50);
    let target = reactor.target(config);
    let mut first = submit(&target);
    next_batch(&reactor, &mut first);
    let events = collect(&reactor, &mut submit(&target));
    assert_eq!(error(&events), ("saturated", "queue"));
    assert_eq!(failure(&events).processed, Processed::No);
    assert!(!first.is_terminal());
    drop((first, target));
    server.join();
}

#[test]
fn another_connection_is_opened_when_one_is_full() {
    let go_on = Arc::new(Notify::new());
    let server = Server::start(&[b"h2"], 3, {
        let go_on = Arc::clone(&go_on);
        async move |_, tls| one_at_a_time(tls, Arc::clone(&go_on)).await
    });
    let reactor = reactor();
    let mut config = server.config();
    config.max_http2_connections = 3;
    let target = reactor.target(config);
    let mut streams: Vec<_> = (0..4).map(|_| submit(&target)).collect();
    for stream in streams.iter_mut().take(3) {
        assert_eq!(kinds(&next_batch(&reactor, stream)), ["started", "token"]);
    }
    assert_eq!(reactor.connections(), 3);
    assert_eq!(streams.iter().filter(|stream| stream.is_sent()).count(), 3);
    // When any of them ends, the last gets its place.
    go_on.notify_one();
    go_on.notify_waiters();
    assert_eq!(kinds(&next_batch(&reactor, &mut streams[3])), ["started", "token"]);
    assert_eq!(reactor.connections(), 3);
    drop((streams, target));
    server.join();
}

#[test]
fn cancelling_resets_its_own_stream_alone() {
    let (resets, reset) = mpsc::channel();
    let go_on = Arc::new(Notify::new());
    let server = Server::start(&[b"h2"], 1, {
        let go_on = Arc::clone(&go_on);
        async move |_, tls| {
            let (resets, go_on) = (resets.clone(), Arc::clone(&go_on));
            answering(tls, async move |_, mut respond| {
                let number = respond.stream_id().as_u32();
                let mut stream = begin(&mut respond);
                say(&mut stream, &token("a", 1));
                tokio::select! {
                    reason = std::future::poll_fn(|context| stream.poll_reset(context)) => {
                        resets.send((number, reason.unwrap())).unwrap();
                    }
                    () = go_on.notified() => {
                        say(&mut stream, STOP);
                        end(stream);
                    }
                }
            })
            .await;
        }
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let mut kept = submit(&target);
    let mut cancelled = submit(&target);
    let mut dropped = submit(&target);
    for stream in [&mut kept, &mut cancelled, &mut dropped] {
        assert_eq!(kinds(&next_batch(&reactor, stream)), ["started", "token"]);
    }
    // Neither needs a turn of the reactor.
    assert!(cancelled.cancel());
    assert_eq!(reset.recv_timeout(GUARD).unwrap(), (3, Reason::CANCEL));
    assert_eq!(kinds(&collect(&reactor, &mut cancelled)), ["end"]);
    assert!(!cancelled.cancel());
    drop(dropped);
    assert_eq!(reset.recv_timeout(GUARD).unwrap(), (5, Reason::CANCEL));
    go_on.notify_waiters();
    assert_eq!(kinds(&collect(&reactor, &mut kept)), ["end"]);
    assert_eq!(reactor.connections(), 1);
    drop((kept, cancelled, target));
    server.join();
}

#[test]
fn the_deadline_of_one_is_not_the_others() {
    let go_on = Arc::new(Notify::new());
    let server = Server::start(&[b"h2"], 1, {
        let go_on = Arc::clone(&go_on);
        async move |_, tls| {
            let go_on = Arc::clone(&go_on);
            answering(tls, async move |_, mut respond| {
                let mut stream = begin(&mut respond);
                say(&mut stream, &token("a", 1));
                go_on.notified().await;
                stream.send_data(STOP.into(), true).unwrap_or_default();
            })
            .await;
        }
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let mut patient = submit(&target);
    next_batch(&reactor, &mut patient);
    let mut hasty = StreamConfig::new("llamacpp");
    hasty.clocks.deadline = Some(reactor.now().saturating_add(Duration::from_millis(80)));
    let events = collect(&reactor, &mut submit_with(&target, hasty));
    assert_eq!(failure(&events).kind, WorkerErrorKind::DeadlineUnmet);
    go_on.notify_waiters();
    assert_eq!(kinds(&collect(&reactor, &mut patient)), ["end"]);
    drop((patient, target));
    server.join();
}

#[test]
fn what_a_goaway_leaves_out_was_not_processed() {
    let server = Server::start(&[b"h2"], 2, async |index, tls| {
        let mut peer = Raw::greet(tls, &[]).await;
        if index > 0 {
            let stream = peer.request().await;
            peer.stream_whole(stream).await;
            peer.end().await;
            return;
        }
        let first = peer.request().await;
        peer.head(first).await;
        peer.data(first, &token("a", 1), false).await;
        let second = peer.request().await;
        assert!(second > first);
        peer.goaway(first, Reason::NO_ERROR).await;
        // The one it has taken on comes to its end.
        peer.data(first, &token("b", 2), false).await;
        peer.data(first, STOP, true).await;
        peer.end().await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let mut first = submit(&target);
    assert_eq!(kinds(&next_batch(&reactor, &mut first)), ["started", "token"]);
    let events = collect(&reactor, &mut submit(&target));
    let refused = failure(&events);
    assert_eq!(error(&events), ("unavailable", "head"));
    assert_eq!(refused.kind, WorkerErrorKind::PoolUnavailable);
    assert_eq!(refused.code, ErrorKind::PoolUnavailable);
    assert_eq!(refused.processed, Processed::No);
    assert!(refused.retriable);
    // A new one goes elsewhere.
    assert_eq!(kinds(&collect(&reactor, &mut submit(&target))), ["started", "end"]);
    let rest = collect(&reactor, &mut first);
    assert_eq!(kinds(&rest), ["token", "end"]);
    drop((first, target));
    until(&reactor, |reactor| reactor.connections() == 0);
    server.join();
}

#[test]
fn a_goaway_counts_although_the_server_closes_right_behind_it() {
    let (gone, is_gone) = mpsc::channel();
    let server = Server::start(&[b"h2"], 1, async move |_, tls| {
        let mut peer = Raw::greet(tls, &[]).await;
        let first = peer.request().await;
        let second = peer.request().await;
        assert!(second > first);
        peer.head(first).await;
        peer.data(first, &token("a", 1), false).await;
        peer.goaway(first, Reason::NO_ERROR).await;
        peer.flush().await;
        drop(peer);
        gone.send(()).unwrap();
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let (mut first, mut second) = (submit(&target), submit(&target));
    receive(&reactor, &is_gone);
    let left_out = collect(&reactor, &mut second);
    assert_eq!(error(&left_out), ("unavailable", "head"));
    assert_eq!(failure(&left_out).processed, Processed::No);
    assert!(failure(&left_out).retriable);
    let taken_on = collect(&reactor, &mut first);
    assert_eq!(kinds(&taken_on), ["started", "token", "error"]);
    assert_eq!(error(&taken_on), ("reset", "stream"));
    until(&reactor, |reactor| reactor.connections() == 0);
    drop((first, second, target));
    server.join();
}

#[test]
fn a_graceful_shutdown_harms_nobody() {
    let (going, is_going) = mpsc::channel();
    let go_on = Arc::new(Notify::new());
    let server = Server::start(&[b"h2"], 2, {
        let go_on = Arc::clone(&go_on);
        async move |_, tls| {
            let mut connection = h2::server::handshake(tls).await.unwrap();
            let (_, mut respond) = connection.accept().await.unwrap().unwrap();
            let mut stream = begin(&mut respond);
            say(&mut stream, &token("a", 1));
            connection.graceful_shutdown();
            going.send(()).unwrap();
            let talk = async {
                go_on.notified().await;
                say(&mut stream, STOP);
                end(stream);
            };
            let ((), next) = tokio::join!(talk, connection.accept());
            assert!(!matches!(next, Some(Ok(_))), "a request came after the goodbye");
        }
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let mut first = submit(&target);
    next_batch(&reactor, &mut first);
    is_going.recv_timeout(GUARD).unwrap();
    for _ in 0..20 {
        reactor.turn(Some(Duration::from_millis(1))).unwrap();
    }
    let mut second = submit(&target);
    next_batch(&reactor, &mut second);
    assert_eq!(reactor.connections(), 2);
    go_on.notify_waiters();
    assert_eq!(kinds(&collect(&reactor, &mut first)), ["end"]);
    assert_eq!(kinds(&collect(&reactor, &mut second)), ["end"]);
    until(&reactor, |reactor| reactor.connections() == 0);
    server.join();
}

#[test]
fn a_refused_stream_was_not_processed() {
    let server = Server::start(&[b"h2"], 1, async |_, tls| {
        answering(tls, async |_, mut respond| {
            if respond.stream_id().as_u32() == 1 {
                respond.send_reset(Reason::REFUSED_STREAM);
            } else {
                let mut stream = begin(&mut respond);
                say(&mut stream, STOP);
                end(stream);
            }
        })
        .await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let events = collect(&reactor, &mut submit(&target));
    let refused = failure(&events);
    assert_eq!(error(&events), ("unavailable", "head"));
    assert_eq!(refused.code, ErrorKind::PoolUnavailable);
    assert_eq!(refused.processed, Processed::No);
    assert!(refused.retriable);
    assert_eq!(kinds(&collect(&reactor, &mut submit(&target))), ["started", "end"]);
    assert_eq!(reactor.connections(), 1);
    drop(target);
    server.join();
}

#[test]
fn any_other_reset_is_one() {
    let server = Server::start(&[b"h2"], 1, async |_, tls| {
        answering(tls, async |_, mut respond| match respond.stream_id().as_u32() {
            1 => respond.send_reset(Reason::CANCEL),
            3 => {
                let mut stream = begin(&mut respond);
                say(&mut stream, &token("a", 1));
                flushed().await;
                stream.send_reset(Reason::INTERNAL_ERROR);
            }
            // Nonsense, after an answer has begun.
            _ => {
                let mut stream = begin(&mut respond);
                say(&mut stream, &token("a", 1));
                flushed().await;
                stream.send_reset(Reason::REFUSED_STREAM);
            }
        })
        .await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let events = collect(&reactor, &mut submit(&target));
    assert_eq!(error(&events), ("reset", "head"));
    assert_eq!(failure(&events).kind, WorkerErrorKind::WorkerReset);
    assert_eq!(failure(&events).processed, Processed::Unknown);
    for _ in 0..2 {
        let events = collect(&reactor, &mut submit(&target));
        assert_eq!(kinds(&events), ["started", "token", "error"]);
        assert_eq!(error(&events), ("reset", "stream"));
        assert_eq!(failure(&events).code, ErrorKind::WorkerReset);
        assert_eq!(failure(&events).tokens_emitted, 1);
    }
    assert_eq!(reactor.connections(), 1);
    drop(target);
    server.join();
}

/// Reads a stream to its end, in order and without loss; how many tokens it had.
fn read_all(reactor: &Reactor, stream: &mut EventStream) -> u64 {
    let mut tokens = 0;
    loop {
        for event in next_batch(reactor, stream) {
            match event {
                TokenEvent::Token(token) => {
                    assert_eq!(token.i, tokens);
                    tokens += 1;
                }
                TokenEvent::End(_) => return tokens,
                TokenEvent::Error(error) => panic!("{error}"),
                _ => {}
            }
        }
    }
}

#[test]
fn a_slow_reader_stops_its_own_stream_alone() {
    const TOKENS: usize = 20_000;
    let (sent, is_sent) = mpsc::channel();
    let server = Server::start(&[b"h2"], 1, async move |_, tls| {
        let sent = sent.clone();
        answering(tls, async move |_, mut respond| {
            let number = respond.stream_id().as_u32();
            let mut stream = begin(&mut respond);
            // A frame for each token, which is the most that frames can cost.
            for token_number in 1..=TOKENS {
                write_all(&mut stream, &token("x", token_number)).await;
            }
            write_all(&mut stream, STOP).await;
            end(stream);
            sent.send(number).unwrap();
        })
        .await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let mut slow = submit(&target);
    let mut quick = submit(&target);
    let mut third = submit(&target);
    assert_eq!(read_all(&reactor, &mut quick), TOKENS as u64);
    assert_eq!(read_all(&reactor, &mut third), TOKENS as u64);
    let mut done = [receive(&reactor, &is_sent), receive(&reactor, &is_sent)];
    done.sort_unstable();
    assert_eq!(done, [3, 5]);
    // The slow one's events are not decoded beyond the queue, and the server waits.
    assert!(slow.pending() < 1000, "{} events wait", slow.pending());
    assert!(!slow.is_terminal());
    assert_eq!(is_sent.try_recv(), Err(mpsc::TryRecvError::Empty));
    assert_eq!(read_all(&reactor, &mut slow), TOKENS as u64);
    assert_eq!(receive(&reactor, &is_sent), 1);
    assert_eq!(reactor.connections(), 1);
    drop((slow, quick, third, target));
    server.join();
}

#[test]
fn cancelling_one_that_is_not_read_gives_its_room_back() {
    let server = Server::start(&[b"h2"], 1, async |_, tls| {
        answering(tls, async |_, mut respond| {
            let mut stream = begin(&mut respond);
            let is_endless = respond.stream_id().as_u32() < 40;
            let mut number = 0;
            while is_endless || number < 20_000 {
                number += 1;
                if !try_write_all(&mut stream, &token("x", number)).await {
                    return;
                }
            }
            write_all(&mut stream, STOP).await;
            end(stream);
        })
        .await;
    });
    let reactor = reactor();
    let mut config = server.config();
    // The connection's window is that of two streams.
    config.max_exchanges = 2;
    let target = reactor.target(config);
    for _ in 0..20 {
        let mut unread = submit(&target);
        next_batch(&reactor, &mut unread);
        for _ in 0..10 {
            reactor.turn(Some(Duration::from_millis(1))).unwrap();
        }
        drop(unread);
    }
    assert_eq!(read_all(&reactor, &mut submit(&target)), 20_000);
    assert_eq!(reactor.connections(), 1);
    drop(target);
    server.join();
}

#[test]
fn a_server_that_takes_no_body_is_a_stalled_one() {
    let server = Server::start(&[b"h2"], 1, async |_, tls| {
        // SETTINGS_INITIAL_WINDOW_SIZE = 0
        let mut peer = Raw::greet(tls, &[0, 4, 0, 0, 0, 0]).await;
        let first = peer.header_block().await.0;
        // The settings may have come after the first request had been sent.
        let second = peer.header_block().await.0;
        peer.reset(second, Reason::INTERNAL_ERROR).await;
        assert_eq!(peer.until_reset(first).await, Reason::CANCEL);
        peer.end().await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let mut config = StreamConfig::new("llamacpp");
    config.clocks.first_token = Some(Duration::from_millis(200));
    let mut first = submit_with(&target, config);
    let mut second = submit(&target);
    let events = collect(&reactor, &mut second);
    assert_eq!(error(&events), ("reset", "head"));
    let events = collect(&reactor, &mut first);
    assert_eq!(failure(&events).kind, WorkerErrorKind::DecodeTimeout);
    assert_eq!(failure(&events).detail.as_str(), "first_token");
    drop((first, second, target));
    server.join();
}

#[test]
fn an_error_answer_is_read() {
    let server = Server::start(&[b"h2"], 1, async |_, tls| {
        answering(tls, async |_, mut respond| {
            let number = respond.stream_id().as_u32();
            let status = if number == 1 { 503 } else { 400 };
            let head = http::Response::builder().status(status).body(()).unwrap();
            let mut stream = respond.send_response(head, number == 5).unwrap();
            match number {
                1 => {
                    say(
                        &mut stream,
                        r#"{"error":{"code":503,"message":"Loading model","type":"x"}}"#,
                    );
                    end(stream);
                }
                // More than anybody reads, and never an end.
                3 => while try_write_all(&mut stream, &"x".repeat(1000)).await {},
                _ => {}
            }
        })
        .await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let events = collect(&reactor, &mut submit(&target));
    assert_eq!(failure(&events).status, Some(503));
    assert_eq!(failure(&events).kind, WorkerErrorKind::PoolUnavailable);
    for _ in 0..2 {
        let events = collect(&reactor, &mut submit(&target));
        assert_eq!(failure(&events).status, Some(400));
        assert_eq!(failure(&events).detail.as_str(), "invalid_request");
    }
    assert_eq!(reactor.connections(), 1);
    drop(target);
    server.join();
}

#[test]
fn a_stream_that_ends_without_a_finish_signal_is_truncated() {
    let server = Server::start(&[b"h2"], 1, async |_, tls| {
        answering(tls, async |_, mut respond| {
            let mut stream = begin(&mut respond);
            say(&mut stream, &token("a", 1));
            end(stream);
        })
        .await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    for _ in 0..2 {
        let events = collect(&reactor, &mut submit(&target));
        assert_eq!(kinds(&events), ["started", "token", "error"]);
        assert_eq!(error(&events), ("truncated", "stream"));
    }
    assert_eq!(reactor.connections(), 1);
    drop(target);
    server.join();
}

#[test]
fn a_connection_that_dies_takes_its_streams_with_it() {
    let (gone, is_gone) = mpsc::channel();
    let server = Server::start(&[b"h2"], 2, async move |index, tls| {
        let mut peer = Raw::greet(tls, &[]).await;
        if index > 0 {
            let stream = peer.request().await;
            peer.stream_whole(stream).await;
            peer.end().await;
            return;
        }
        let streams = [peer.request().await, peer.request().await];
        let unanswered = peer.request().await;
        assert!(unanswered > streams[1]);
        for stream in streams {
            peer.head(stream).await;
            for number in 1..=600 {
                peer.data(stream, &token("x", number), false).await;
            }
        }
        peer.flush().await;
        drop(peer);
        gone.send(()).unwrap();
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let mut streams = [submit(&target), submit(&target)];
    let mut unanswered = submit(&target);
    // Nobody reads the first two before the connection is gone, and still nothing is lost.
    receive(&reactor, &is_gone);
    let events = collect(&reactor, &mut unanswered);
    assert_eq!(error(&events), ("reset", "head"));
    assert_eq!(failure(&events).processed, Processed::Unknown);
    until(&reactor, |reactor| reactor.connections() == 0);
    for stream in &mut streams {
        let events = collect(&reactor, stream);
        assert_eq!(events.len(), 602);
        assert_eq!(error(&events), ("reset", "stream"));
        assert_eq!(failure(&events).kind, WorkerErrorKind::WorkerReset);
        assert_eq!(failure(&events).tokens_emitted, 600);
    }
    assert_eq!(kinds(&collect(&reactor, &mut submit(&target))), ["started", "end"]);
    drop((streams, unanswered, target));
    server.join();
}

#[test]
fn a_server_may_choose_http_1() {
    for alpn in [&[b"http/1.1" as &[u8]][..], &[]] {
        let server = Server::start(alpn, 3, async |_, mut tls| {
            let request = read_http1(&mut tls).await;
            assert!(request.starts_with("POST /completion HTTP/1.1\r\n"), "{request}");
            let body = chunk(&token("a", 1)) + &chunk(STOP) + "0\r\n\r\n";
            write_http1(&mut tls, &(HEAD.to_owned() + &body)).await;
            closed_http1(&mut tls).await;
        });
        let reactor = reactor();
        let target = reactor.target(server.config());
        // All wait for the first to learn what is spoken, and then go their own ways.
        let mut streams: Vec<_> = (0..3).map(|_| submit(&target)).collect();
        for stream in &mut streams {
            assert_eq!(kinds(&collect(&reactor, stream)), ["started", "token", "end"]);
        }
        assert_eq!(reactor.connections(), 3);
        drop((streams, target));
        server.join();
    }
}

#[test]
fn whoever_waits_for_a_connection_shares_its_failure() {
    let server = Server::start(&[b"h2"], 1, async |_, _| unreachable!("nobody is trusted"));
    let reactor = reactor();
    let target = reactor.target(Server::config_that_trusts_another(&server));
    let mut streams: Vec<_> = (0..3).map(|_| submit(&target)).collect();
    for stream in &mut streams {
        let events = collect(&reactor, stream);
        assert_eq!(failure(&events).detail.as_str(), "tls_verify");
        assert_eq!(failure(&events).processed, Processed::No);
    }
    assert_eq!(reactor.connections(), 0);
    drop((streams, target));
    server.join_failed_handshakes();
}

#[test]
fn a_refused_certificate_is_told_in_place_of_the_answer() {
    let server = Server::start_strictly(&[b"h2"], 1, async |_, _| unreachable!("nobody has one"));
    let reactor = reactor();
    let target = reactor.target(server.config());
    let mut streams = [submit(&target), submit(&target)];
    let events = collect(&reactor, &mut streams[0]);
    let refused = failure(&events);
    // As over HTTP/1.1: the server cannot have read anything.
    assert_eq!(refused.detail.as_str(), "tls");
    assert_eq!(refused.processed, Processed::No);
    assert!(refused.message.contains("client certificate"), "{}", refused.message);
    drop((streams, target));
    server.join_failed_handshakes();
}

#[test]
fn another_goes_on_with_a_connection_that_one_gives_up() {
    for when in ["before", "during"] {
        let (accepted, is_accepted) = mpsc::channel();
        let go_on = Arc::new(Notify::new());
        let server =
            Server::start_slowly(&[b"h2"], 1, accepted, Arc::clone(&go_on), async |_, tls| {
                answering(tls, async |_, mut respond| {
                    let mut stream = begin(&mut respond);
                    say(&mut stream, STOP);
                    end(stream);
                })
                .await;
            });
        let reactor = reactor();
        let target = reactor.target(server.config());
        let mut leader = submit(&target);
        let mut others = [submit(&target), submit(&target)];
        if when == "during" {
            receive(&reactor, &is_accepted);
            until(&reactor, |_| leader.phase().as_str() == "tls");
            assert_eq!(others[0].phase().as_str(), "tls");
        }
        leader.cancel();
        assert_eq!(reactor.connections(), 1);
        go_on.notify_one();
        for stream in &mut others {
            assert_eq!(kinds(&collect(&reactor, stream)), ["started", "end"]);
        }
        assert_eq!(reactor.connections(), 1);
        drop((leader, others, target));
        server.join();
    }
}

#[test]
fn each_waits_for_a_connection_no_longer_than_its_own_clocks_say() {
    let (accepted, _is_accepted) = mpsc::channel();
    let go_on = Arc::new(Notify::new());
    let server = Server::start_slowly(&[b"h2"], 1, accepted, Arc::clone(&go_on), async |_, tls| {
        answering(tls, async |_, mut respond| {
            let mut stream = begin(&mut respond);
            say(&mut stream, STOP);
            end(stream);
        })
        .await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let submit_within = |millis| {
        let bounds = Bounds { connect: None, tls: Some(Duration::from_millis(millis)) };
        let request = Request { method: "POST", path: "/", headers: &[], body: Some(b"{}") };
        target.submit(&request, decoder(StreamConfig::new("llamacpp")), bounds).unwrap()
    };
    let (mut hasty, mut hastier) = (submit_within(120), submit_within(60));
    let mut patient = submit_within(20_000);
    for stream in [&mut hastier, &mut hasty] {
        let events = collect(&reactor, stream);
        assert_eq!(error(&events), ("tls_timeout", "tls"));
    }
    assert_eq!(reactor.connections(), 1);
    go_on.notify_one();
    assert_eq!(kinds(&collect(&reactor, &mut patient)), ["started", "end"]);
    drop((hasty, hastier, patient, target));
    server.join();
}

#[test]
fn a_connection_rests_for_so_long_and_no_longer() {
    let server = Server::start(&[b"h2"], 2, async |index, tls| {
        let mut peer = Raw::greet(tls, &[]).await;
        for _ in 0..[3, 1][index] {
            let stream = peer.request().await;
            peer.stream_whole(stream).await;
        }
        // The client says goodbye.
        assert_eq!(peer.until_goaway().await, Reason::NO_ERROR);
        peer.end().await;
    });
    let reactor = reactor();
    let mut config = server.config();
    config.idle_timeout = Duration::from_millis(500);
    let target = reactor.target(config);
    for _ in 0..3 {
        assert_eq!(kinds(&collect(&reactor, &mut submit(&target))), ["started", "end"]);
        assert_eq!(reactor.connections(), 1);
    }
    until(&reactor, |reactor| reactor.connections() == 0);
    assert_eq!(kinds(&collect(&reactor, &mut submit(&target))), ["started", "end"]);
    drop(target);
    assert_eq!(reactor.connections(), 0);
    server.join();
}

#[test]
fn a_connection_that_has_rested_too_long_unseen_is_not_used_again() {
    let server = Server::start(&[b"h2"], 2, async |_, tls| {
        let mut peer = Raw::greet(tls, &[]).await;
        let stream = peer.request().await;
        peer.stream_whole(stream).await;
        peer.end().await;
    });
    let reactor = reactor();
    let mut config = server.config();
    config.idle_timeout = Duration::from_millis(1);
    let target = reactor.target(config);
    for _ in 0..2 {
        assert_eq!(kinds(&collect(&reactor, &mut submit(&target))), ["started", "end"]);
        until(&reactor, |reactor| reactor.resting() == 1 || reactor.connections() == 0);
        // Nobody turns the reactor meanwhile.
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(target);
    server.join();
}

#[test]
fn a_connection_that_the_server_closes_at_rest_is_not_used_again() {
    let server = Server::start(&[b"h2"], 2, async |_, tls| {
        let mut peer = Raw::greet(tls, &[]).await;
        let stream = peer.request().await;
        assert_eq!(stream, 1);
        peer.stream_whole(stream).await;
        peer.flush().await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    assert_eq!(kinds(&collect(&reactor, &mut submit(&target))), ["started", "end"]);
    until(&reactor, |reactor| reactor.connections() == 0);
    assert_eq!(kinds(&collect(&reactor, &mut submit(&target))), ["started", "end"]);
    drop(target);
    server.join();
}

#[test]
fn nor_is_one_that_is_found_closed_when_it_is_wanted() {
    let (gone, is_gone) = mpsc::channel();
    let server = Server::start(&[b"h2"], 2, async move |_, tls| {
        let mut peer = Raw::greet(tls, &[]).await;
        let stream = peer.request().await;
        assert_eq!(stream, 1);
        peer.stream_whole(stream).await;
        peer.goaway(1, Reason::NO_ERROR).await;
        peer.flush().await;
        drop(peer);
        gone.send(()).unwrap();
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    for _ in 0..2 {
        assert_eq!(kinds(&collect(&reactor, &mut submit(&target))), ["started", "end"]);
        // Nobody turns the reactor between the server's leave and the next request.
        is_gone.recv_timeout(GUARD).unwrap();
    }
    drop(target);
    server.join();
}

#[test]
fn one_turn_reads_so_much_and_no_more() {
    const STREAMS: usize = 64;
    let text = "x".repeat(1000);
    let (sent, is_sent) = mpsc::channel();
    let server = Server::start(&[b"h2"], 1, {
        let text = text.clone();
        async move |_, tls| {
            let mut peer = Raw::greet(tls, &[]).await;
            let mut streams = Vec::new();
            for _ in 0..STREAMS {
                let stream = peer.request().await;
                peer.head(stream).await;
                streams.push(stream);
            }
            for number in 1..=20 {
                for stream in &streams {
                    peer.data(*stream, &token(&text, number), false).await;
                }
            }
            peer.flush().await;
            sent.send(()).unwrap();
            peer.end().await;
        }
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let streams: Vec<_> = (0..STREAMS).map(|_| submit(&target)).collect();
    until(&reactor, |_| streams.iter().all(|stream| stream.status() == Some(200)));
    is_sent.recv_timeout(GUARD).unwrap();
    let come = || streams.iter().map(EventStream::pending).sum::<usize>();
    let mut before = come();
    let mut turns = 0;
    while come() < STREAMS * 21 {
        reactor.turn(Some(GUARD)).unwrap();
        // Four reads of 32 KiB for what the poll told of, on top of four that had been put off.
        assert!(come() - before <= 8 * (32 << 10) / 1000, "{} events in a turn", come() - before);
        before = come();
        turns += 1;
    }
    assert!(turns > 1);
    drop((streams, target));
    server.join();
}

/// A flood comes in place of an answer; how it ends for whoever waits for one.
fn flooded(flood: Vec<u8>) -> WorkerError {
    let server = Server::start(&[b"h2"], 1, async move |_, tls| {
        let mut peer = Raw::greet(tls, &[]).await;
        let stream = peer.request().await;
        peer.head(stream).await;
        peer.data(stream, &token("a", 1), false).await;
        // Until the client has had enough.
        while peer.try_write(&flood).await {}
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let events = collect(&reactor, &mut submit(&target));
    assert_eq!(kinds(&events), ["started", "token", "error"]);
    until(&reactor, |reactor| reactor.connections() == 0);
    drop(target);
    server.join();
    failure(&events).clone()
}

#[test]
fn floods_end_the_connection() {
    let headers = frame(1, 0, 1, &[0x88]);
    for (what, detail, flood) in [
        ("empty data", "flood", frame(0, 0, 1, &[])),
        // A head that never ends.
        ("continuation", "flood", [headers, frame(9, 0, 1, &[0; 64]).repeat(1000)].concat()),
        ("data nobody asked for", "protocol", frame(0, 0, 1, &[b'\n'; 16_384])),
        ("a stream nobody opened", "protocol", frame(0, 0, 7, b"x")),
        ("pushes", "protocol", frame(5, 4, 1, &[0, 0, 0, 2, 0x88])),
    ] {
        let error = flooded(flood);
        assert_eq!(error.detail.as_str(), detail, "{what}");
        assert_eq!(error.kind, WorkerErrorKind::Adapter, "{what}");
        assert_eq!(error.tokens_emitted, 1, "{what}");
    }
}

#[test]
fn pings_and_settings_without_end_are_answered_in_turn() {
    let server = Server::start(&[b"h2"], 1, async |_, tls| {
        let mut peer = Raw::greet(tls, &[]).await;
        let stream = peer.request().await;
        peer.head(stream).await;
        for _ in 0..100 {
            let flood = frame(6, 0, 0, &[7; 8]).repeat(100);
            assert!(peer.try_write(&flood).await);
            assert!(peer.try_write(&frame(4, 0, 0, &[]).repeat(100)).await);
            peer.flush().await;
            peer.discard().await;
        }
        peer.data(stream, &token("a", 1), false).await;
        peer.data(stream, STOP, true).await;
        peer.end().await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let events = collect(&reactor, &mut submit(&target));
    assert_eq!(kinds(&events), ["started", "token", "end"]);
    drop(target);
    server.join();
}

#[test]
fn a_head_beyond_its_limit_is_refused() {
    let server = Server::start(&[b"h2"], 1, async |_, tls| {
        let mut peer = Raw::greet(tls, &[]).await;
        let stream = peer.request().await;
        // :status 200, and a header of 12,000 bytes.
        let mut block = vec![0x88, 0x00, 1, b'x', 0x7f, 0xe1, 0x5c];
        block.extend([b'a'; 12_000]);
        peer.write(&frame(1, 4, stream, &block)).await;
        assert_eq!(peer.until_reset(stream).await, Reason::PROTOCOL_ERROR);
        let stream = peer.request().await;
        peer.stream_whole(stream).await;
        peer.end().await;
    });
    let reactor = reactor();
    let mut config = server.config();
    config.http.head_bytes = 8 << 10;
    let target = reactor.target(config);
    let events = collect(&reactor, &mut submit(&target));
    assert_eq!(error(&events), ("protocol", "head"));
    assert_eq!(kinds(&collect(&reactor, &mut submit(&target))), ["started", "end"]);
    drop(target);
    server.join();
}

#[test]
fn what_http2_cannot_say_is_not_sent() {
    let server = Server::start(&[b"h2"], 1, async |_, tls| {
        answering(tls, async |request, mut respond| {
            assert_eq!(request.uri().path(), "/completion");
            let mut stream = begin(&mut respond);
            say(&mut stream, STOP);
            end(stream);
        })
        .await;
    });
    let reactor = reactor();
    let target = reactor.target(server.config());
    let submit_to = |target: &Target, path| {
        let request = Request { method: "POST", path, headers: &[], body: None };
        target.submit(&request, decoder(StreamConfig::new("llamacpp")), Bounds::default()).unwrap()
    };
    let events = collect(&reactor, &mut submit_to(&target, "/<"));
    assert_eq!(failure(&events).detail.as_str(), "invalid_request");
    assert_eq!(failure(&events).processed, Processed::No);
    let events = collect(&reactor, &mut submit_to(&target, "/completion"));
    assert_eq!(kinds(&events), ["started", "end"]);
    drop(target);
    server.join();
}

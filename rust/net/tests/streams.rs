//! Streams over real sockets: how they begin, end, break, and let go.

mod common;

use std::net::{Shutdown, TcpListener};
use std::sync::mpsc;

use common::*;
use worker_adapters_core::event::TokenEvent;

#[test]
fn a_stream_comes_through() {
    let (address, thread) = server(
        |_, mut socket| {
            let request = read_request(&mut socket);
            assert!(request.starts_with("POST /completion HTTP/1.1\r\n"), "{request}");
            assert!(request.ends_with("\r\n\r\n{}"), "{request}");
            write(&mut socket, HEAD);
            write(&mut socket, &chunk(&token("a", 1)));
            write(&mut socket, &chunk(&token("b", 2)));
            write(&mut socket, &chunk(STOP));
            write(&mut socket, "0\r\n\r\n");
        },
        1,
    );
    let reactor = reactor();
    let target = reactor.target(config(address));
    let mut stream = submit(&target);
    let events = collect(&reactor, &mut stream);
    assert_eq!(kinds(&events), ["started", "token", "token", "end"]);
    assert!(next_batch(&reactor, &mut stream).is_empty());
    assert_eq!(stream.status(), Some(200));
    assert_eq!(stream.tokens_emitted(), 2);
    thread.join().unwrap();
}

#[test]
fn a_stream_that_is_cut_off_is_an_error() {
    let (address, thread) = server(
        |_, mut socket| {
            read_request(&mut socket);
            write(&mut socket, HEAD);
            write(&mut socket, &chunk(&token("a", 1)));
        },
        1,
    );
    let reactor = reactor();
    let target = reactor.target(config(address));
    let events = collect(&reactor, &mut submit(&target));
    assert_eq!(kinds(&events), ["started", "token", "error"]);
    assert_eq!(error(&events), ("truncated", "stream"));
    thread.join().unwrap();
    assert_eq!(reactor.connections(), 0);
}

#[test]
fn nobody_listens() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let reactor = reactor();
    let target = reactor.target(config(address));
    let events = collect(&reactor, &mut submit(&target));
    assert_eq!(kinds(&events), ["error"]);
    assert_eq!(error(&events), ("connect", "connect"));
    assert_eq!(reactor.connections(), 0);
}

#[test]
fn a_connection_is_used_again() {
    let (address, thread) = server(
        |_, mut socket| {
            for _ in 0..3 {
                read_request(&mut socket);
                write(&mut socket, HEAD);
                write(&mut socket, &chunk(STOP));
                write(&mut socket, "0\r\n\r\n");
            }
            wait_for_close(&mut socket);
        },
        1,
    );
    let reactor = reactor();
    let target = reactor.target(config(address));
    for _ in 0..3 {
        let events = collect(&reactor, &mut submit(&target));
        assert_eq!(kinds(&events), ["started", "end"]);
        assert_eq!(reactor.connections(), 1);
        // What is left of the body is read though nobody waits for it.
        while reactor.resting() == 0 {
            reactor.turn(Some(GUARD)).unwrap();
        }
    }
    drop(target);
    assert_eq!(reactor.connections(), 0);
    thread.join().unwrap();
}

#[test]
fn cancelling_closes_the_connection_at_once() {
    let (closed, is_closed) = mpsc::channel();
    let (address, thread) = server(
        move |_, mut socket| {
            read_request(&mut socket);
            write(&mut socket, HEAD);
            write(&mut socket, &chunk(&token("a", 1)));
            wait_for_close(&mut socket);
            closed.send(()).unwrap();
        },
        2,
    );
    let reactor = reactor();
    let target = reactor.target(config(address));
    let mut stream = submit(&target);
    assert_eq!(kinds(&next_batch(&reactor, &mut stream)), ["started", "token"]);
    assert!(stream.cancel());
    is_closed.recv_timeout(GUARD).unwrap();
    let events = collect(&reactor, &mut stream);
    assert_eq!(kinds(&events), ["end"]);
    assert!(!stream.cancel());

    // Dropping one does the same.
    let mut stream = submit(&target);
    next_batch(&reactor, &mut stream);
    drop(stream);
    is_closed.recv_timeout(GUARD).unwrap();
    assert_eq!(reactor.connections(), 0);
    thread.join().unwrap();
}

#[test]
fn a_slow_reader_slows_the_engine_and_loses_nothing() {
    const TOKENS: usize = 200_000;
    let (address, thread) = server(
        |_, mut socket| {
            read_request(&mut socket);
            write(&mut socket, HEAD);
            for first in (0..TOKENS).step_by(1000) {
                let frames: String = (first..first + 1000).map(|i| token("x", i + 1)).collect();
                write(&mut socket, &chunk(&frames));
            }
            write(&mut socket, &chunk(STOP));
            write(&mut socket, "0\r\n\r\n");
        },
        1,
    );
    let reactor = reactor();
    let target = reactor.target(config(address));
    let mut stream = submit(&target);
    let mut tokens = 0;
    let mut largest = 0;
    loop {
        // Whatever happens meanwhile, no more is read than fits the queue.
        for _ in 0..5 {
            reactor.turn(Some(std::time::Duration::from_millis(1))).unwrap();
        }
        let batch = next_batch(&reactor, &mut stream);
        largest = largest.max(batch.len());
        for event in &batch {
            if let TokenEvent::Token(token) = event {
                assert_eq!(token.i, tokens);
                tokens += 1;
            }
        }
        if batch.last().is_some_and(TokenEvent::is_terminal) {
            break;
        }
    }
    assert_eq!(tokens, TOKENS as u64);
    assert!(largest < 2000, "{largest} events waited");
    thread.join().unwrap();
}

#[test]
fn an_answer_before_the_request_is_read_counts() {
    let (address, thread) = server(
        |_, socket| {
            let mut socket = socket;
            write(&mut socket, "HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno");
            socket.shutdown(Shutdown::Write).unwrap();
            wait_for_close(&mut socket);
        },
        1,
    );
    let reactor = reactor();
    let target = reactor.target(config(address));
    let body = vec![b'x'; 64 << 20];
    let request = worker_adapters_net::Request {
        method: "POST",
        path: "/completion",
        headers: &[],
        body: Some(&body),
    };
    let sink = decoder(worker_adapters_core::StreamConfig::new("llamacpp"));
    let mut stream = target.submit(&request, sink, worker_adapters_net::Bounds::default()).unwrap();
    let events = collect(&reactor, &mut stream);
    match events.last() {
        Some(TokenEvent::Error(error)) => assert_eq!(error.status, Some(413)),
        other => panic!("{other:?}"),
    }
    thread.join().unwrap();
}

#[test]
fn a_request_that_says_it_is_the_last_is() {
    let (address, thread) = server(
        |_, mut socket| {
            read_request(&mut socket);
            write(&mut socket, HEAD);
            write(&mut socket, &chunk(STOP));
            write(&mut socket, "0\r\n\r\n");
            wait_for_close(&mut socket);
        },
        2,
    );
    let reactor = reactor();
    let target = reactor.target(config(address));
    for _ in 0..2 {
        let request = worker_adapters_net::Request {
            method: "POST",
            path: "/completion",
            headers: &[(b"Connection", b"close")],
            body: Some(b"{}"),
        };
        let sink = decoder(worker_adapters_core::StreamConfig::new("llamacpp"));
        let bounds = worker_adapters_net::Bounds::default();
        let mut stream = target.submit(&request, sink, bounds).unwrap();
        let events = collect(&reactor, &mut stream);
        assert_eq!(kinds(&events), ["started", "end"]);
        drop(stream);
        while reactor.connections() > 0 {
            reactor.turn(Some(GUARD)).unwrap();
        }
    }
    thread.join().unwrap();
}

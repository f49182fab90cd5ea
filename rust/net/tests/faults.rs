//! What a peer can do wrong, or right in an odd way, over real sockets.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use common::*;
use worker_adapters_core::StreamConfig;
use worker_adapters_core::error::{Phase, Processed};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_net::{Bounds, Request};

/// What becomes of a stream that is answered so; `close` says whether the server closes then.
fn answered(answer: &[u8], close: bool) -> (Vec<TokenEvent>, usize) {
    let rig = Rig::new();
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    socket.write_all(answer).unwrap();
    if close {
        socket.shutdown(Shutdown::Write).unwrap();
    }
    let events = rig.ended(&mut stream);
    // What is left of the body, in at most one read.
    rig.turn();
    let connections = rig.reactor.connections();
    assert_eq!(connections, rig.reactor.resting());
    drop((stream, target));
    rig.is_empty();
    (events, connections)
}

fn head(headers: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{headers}\r\n")
}

// C: the request.

#[test]
fn a_peer_that_closes_under_the_request_may_have_seen_it() {
    for with_reset in [false, true] {
        let rig = Rig::new();
        let target = rig.target();
        let (mut stream, socket) = rig.open(&target, StreamConfig::new("llamacpp"));
        if with_reset {
            reset(socket);
        } else {
            drop(socket);
        }
        let events = rig.ended(&mut stream);
        assert_eq!(error(&events), ("reset", "head"));
        assert_eq!(failure(&events).processed, Processed::Unknown);
        assert!(failure(&events).retriable && stream.is_sent());
        assert_eq!(rig.reactor.connections(), 0);
    }
}

#[test]
fn a_peer_that_resets_a_long_request_is_a_reset() {
    let rig = Rig::new();
    let target = rig.target();
    let body = vec![b'x'; 64 << 20];
    let request = Request { method: "POST", path: "/", headers: &[], body: Some(&body) };
    let sink = decoder(StreamConfig::new("llamacpp"));
    let mut stream = target.submit(&request, sink, Bounds::default()).unwrap();
    rig.until(|| stream.is_sent());
    reset(rig.accept());
    let events = rig.ended(&mut stream);
    assert_eq!(error(&events), ("reset", "write"));
    assert_eq!(failure(&events).processed, Processed::Unknown);
}

/// A connection at rest, and the server's side of it.
fn rested(rig: &Rig, target: &worker_adapters_net::Target) -> TcpStream {
    let (stream, mut socket) = rig.open(target, StreamConfig::new("llamacpp"));
    write(&mut socket, &format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
    rig.until(|| rig.reactor.resting() == 1);
    drop(stream);
    socket
}

#[test]
fn a_connection_closed_at_rest_is_replaced_unseen() {
    for with_reset in [false, true] {
        // Whether the reactor has had the time to look or not.
        for looked in [false, true] {
            let rig = Rig::new();
            let target = rig.target();
            let socket = rested(&rig, &target);
            if with_reset {
                reset(socket);
            } else {
                drop(socket);
            }
            if looked {
                rig.until(|| rig.reactor.connections() == 0);
            }
            let (mut stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
            write(&mut socket, &format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
            assert_eq!(kinds(&rig.ended(&mut stream)), ["started", "end"]);
            assert_eq!(rig.reactor.connections(), 1);
        }
    }
}

#[test]
fn a_connection_closed_after_the_write_is_a_reset() {
    let rig = Rig::new();
    let target = rig.target();
    let mut socket = rested(&rig, &target);
    let mut stream = submit(&target);
    assert_eq!(stream.phase(), Phase::Head);
    read_request(&mut socket);
    drop(socket);
    let events = rig.ended(&mut stream);
    assert_eq!(error(&events), ("reset", "head"));
    assert_eq!(failure(&events).processed, Processed::Unknown);
    assert_eq!(rig.reactor.connections(), 0);
}

#[test]
fn what_comes_at_rest_was_not_asked_for() {
    for looked in [false, true] {
        let rig = Rig::new();
        let target = rig.target();
        let mut socket = rested(&rig, &target);
        write(&mut socket, &format!("{HEAD}{}0\r\n\r\n", chunk(&token("smuggled", 1))));
        if looked {
            rig.until(|| rig.reactor.connections() == 0);
        }
        let (mut stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
        write(&mut socket, &format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
        assert_eq!(kinds(&rig.ended(&mut stream)), ["started", "end"]);
    }
}

#[test]
fn an_answer_to_half_a_request_is_heard_over_the_broken_pipe() {
    for status in [413, 401] {
        let rig = Rig::new();
        let target = rig.target();
        let body = vec![b'x'; 64 << 20];
        let request = Request { method: "POST", path: "/", headers: &[], body: Some(&body) };
        let sink = decoder(StreamConfig::new("llamacpp"));
        let mut stream = target.submit(&request, sink, Bounds::default()).unwrap();
        rig.until(|| stream.is_sent());
        let mut socket = rig.accept();
        write(&mut socket, &format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nno"));
        // The kernel answers what was not read with a reset, right behind the answer.
        drop(socket);
        let events = rig.ended(&mut stream);
        assert_eq!(failure(&events).status, Some(status), "{:?}", failure(&events));
        assert_eq!(rig.reactor.connections(), 0);
    }
}

#[test]
fn interim_responses_are_skipped_up_to_a_bound() {
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    let last = format!("{HEAD}{}0\r\n\r\n", chunk(STOP));
    let go_on = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";
    let (events, resting) = answered(format!("{go_on}{last}").as_bytes(), false);
    assert_eq!((kinds(&events), resting), (vec!["started", "end"], 1));
    let (events, resting) = answered(format!("{}{last}", interim.repeat(1000)).as_bytes(), false);
    assert_eq!((error(&events), resting), (("protocol", "head"), 0));
}

// D: the head.

#[test]
fn what_is_no_head_is_refused() {
    let many = head(&"x: 1\r\n".repeat(101));
    let large = head(&format!("x: {}\r\n", "y".repeat(65 << 10)));
    let heads = [
        many.as_str(),
        &large,
        "HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        "HTTP/1.1 200 OK\nx: y\n\n",
        "HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "hello\r\n",
        "<html>",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ];
    for head in heads {
        let (events, connections) = answered(head.as_bytes(), false);
        assert_eq!(error(&events), ("protocol", "head"), "{head:.60}");
        assert_eq!(connections, 0);
        assert!(!failure(&events).retriable);
    }
}

#[test]
fn ambiguous_framing_is_refused() {
    for headers in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "content-length: -1\r\n",
        "content-length: +5\r\n",
        "content-length: 0x5\r\n",
        "content-length: 100000000000000000000\r\n",
    ] {
        let (events, connections) = answered(head(headers).as_bytes(), false);
        assert_eq!((error(&events).0, connections), ("framing", 0), "{headers}");
    }
}

/// Status, what follows it, and how many connections are kept.
#[test]
fn a_status_has_its_meaning_and_plain_refusals_keep_the_connection() {
    for (status, detail, kept) in [
        (400, "invalid_request", 1),
        (401, "unauthorized", 1),
        (403, "forbidden", 1),
        (404, "not_found", 1),
        (405, "invalid_request", 1),
        (409, "invalid_request", 1),
        (413, "invalid_request", 1),
        (422, "invalid_request", 1),
        (408, "not_ready", 0),
        (425, "not_ready", 0),
        (429, "rate_limited", 1),
        (500, "engine_error", 1),
        (501, "unsupported", 1),
        (502, "unavailable", 1),
        (503, "unavailable", 1),
        (504, "gateway_timeout", 1),
        (301, "redirect", 0),
        (302, "redirect", 0),
        (307, "redirect", 0),
        (201, "status", 0),
        (205, "status", 0),
        (206, "status", 0),
        (299, "status", 0),
        (407, "proxy_auth", 1),
    ] {
        let answer = format!(
            "HTTP/1.1 {status} X\r\nlocation: http://u:p@evil.test/\r\ncontent-length: 2\r\n\r\nno"
        );
        let (events, connections) = answered(answer.as_bytes(), false);
        assert_eq!(kinds(&events), ["error"]);
        let failure = failure(&events);
        assert_eq!((failure.detail.as_str(), connections), (detail, kept), "{status}");
        assert_eq!(failure.status, Some(status));
    }
    let (events, connections) = answered(b"HTTP/1.1 204 None\r\n\r\n", false);
    assert_eq!((failure(&events).status, connections), (Some(204), 0));
}

#[test]
fn the_pause_an_engine_asks_for_is_told() {
    for (asked, told) in [("5", Some(5000)), ("0", Some(0)), ("-1", None), ("soon", None)] {
        let answer = format!("HTTP/1.1 429 X\r\nretry-after: {asked}\r\ncontent-length: 0\r\n\r\n");
        let (events, connections) = answered(answer.as_bytes(), false);
        assert_eq!((failure(&events).retry_after_ms, connections), (told, 1), "{asked}");
    }
}

#[test]
fn a_connection_is_used_again_after_a_refusal() {
    let rig = Rig::new();
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    for status in [503, 429, 400] {
        write(&mut socket, &format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nno"));
        assert_eq!(failure(&rig.ended(&mut stream)).status, Some(status));
        stream = submit(&target);
        assert_eq!(stream.phase(), Phase::Head);
        read_request(&mut socket);
    }
    write(&mut socket, &format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
    assert_eq!(kinds(&rig.ended(&mut stream)), ["started", "end"]);
    assert_eq!(rig.reactor.connections(), 1);
}

#[test]
fn connection_close_is_obeyed() {
    let answer = format!(
        "{}{}0\r\n\r\n",
        head("connection: close\r\ntransfer-encoding: chunked\r\n"),
        chunk(STOP)
    );
    assert_eq!(answered(answer.as_bytes(), false).1, 0);
    // And so is the close itself, in the same breath as the answer.
    let answer = format!("{HEAD}{}0\r\n\r\n", chunk(STOP));
    assert_eq!(answered(answer.as_bytes(), true).1, 0);
}

#[test]
fn what_is_no_event_stream_is_refused() {
    for kind in ["content-type: application/json\r\n", "content-type: text/html\r\n", ""] {
        let answer = format!("HTTP/1.1 200 OK\r\n{kind}content-length: 2\r\n\r\n{{}}");
        let (events, connections) = answered(answer.as_bytes(), false);
        assert_eq!((error(&events).0, connections), ("content_type", 0), "{kind}");
    }
    for kind in ["text/event-stream;", "text/event-stream;charset=x"] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{STOP}",
            STOP.len()
        );
        assert_eq!(kinds(&answered(answer.as_bytes(), false).0), ["started", "end"]);
    }
    let answer = head("content-encoding: gzip\r\ncontent-length: 9\r\n");
    assert_eq!(error(&answered(answer.as_bytes(), false).0).0, "content_encoding");
}

// E: the body.

#[test]
fn a_body_that_ends_without_the_finish_signal_is_truncated() {
    let whole = token("a", 1) + &token("b", 2);
    for (body, tokens) in [
        // In mid-event, in mid-JSON, in mid-UTF-8 and between events.
        (whole.as_bytes(), 2),
        (&whole.as_bytes()[..whole.len() - 1], 1),
        (&whole.as_bytes()[..whole.len() - 10], 1),
        ("data: {\"content\":\"é".as_bytes().split_last().unwrap().1, 0),
    ] {
        let mut answer = head("").into_bytes();
        answer.extend_from_slice(body);
        let (events, connections) = answered(&answer, true);
        assert_eq!((error(&events).0, connections), ("truncated", 0));
        assert_eq!(texts(&events).len(), tokens);
        assert_eq!(failure(&events).tokens_emitted, tokens as u64);
        assert!(failure(&events).retriable);
    }
    // With the signal a close-delimited body is as good as any.
    let answer = format!("{}{whole}{STOP}", head(""));
    let (events, connections) = answered(answer.as_bytes(), true);
    assert_eq!((kinds(&events), connections), (vec!["started", "token", "token", "end"], 0));
}

#[test]
fn broken_chunks_are_told_from_missing_ones() {
    let first = chunk(&token("a", 1));
    for (rest, closes, detail) in [
        ("30\r\ndata: {", true, "truncated"),
        ("", true, "truncated"),
        ("30", true, "truncated"),
        ("zz\r\n", false, "framing"),
        ("10000000000000000\r\n", false, "framing"),
        ("1\r\nxyz", false, "framing"),
        ("-1\r\n", false, "framing"),
    ] {
        let (events, connections) = answered(format!("{HEAD}{first}{rest}").as_bytes(), closes);
        assert_eq!((error(&events).0, connections), (detail, 0), "{rest}");
        assert_eq!(texts(&events), ["a"]);
    }
    let extension = format!("{HEAD}{first}5;{}", "x".repeat(17 << 10));
    assert_eq!(error(&answered(extension.as_bytes(), false).0).0, "framing");
    // After the terminal event a fault of the framing only costs the connection.
    let (events, connections) = answered(format!("{HEAD}{}zz\r\n", chunk(STOP)).as_bytes(), false);
    assert_eq!((kinds(&events), connections), (vec!["started", "end"], 0));
}

#[test]
fn a_length_is_believed() {
    let body = token("a", 1) + STOP;
    // Longer than the body: cut off, though the finish signal decides what was lost.
    let partial = token("a", 1);
    let answer = format!("{}{partial}", head("content-length: 1000\r\n"));
    let (events, connections) = answered(answer.as_bytes(), true);
    assert_eq!((error(&events).0, connections), ("truncated", 0));
    // Shorter: it ends there.
    let answer = format!("{}{body}", head(&format!("content-length: {}\r\n", partial.len())));
    let (events, connections) = answered(answer.as_bytes(), false);
    assert_eq!((error(&events).0, connections), ("truncated", 0));
    assert_eq!(texts(&events), ["a"]);
    // Whole, and something behind it that nobody asked for.
    let answer = format!(
        "{}{body}HTTP/1.1 200 OK\r\n",
        head(&format!("content-length: {}\r\n", body.len()))
    );
    let (events, connections) = answered(answer.as_bytes(), false);
    assert_eq!((kinds(&events), connections), (vec!["started", "token", "end"], 0));
    let answer = format!("{}{body}", head(&format!("content-length: {}\r\n", body.len())));
    assert_eq!(answered(answer.as_bytes(), false).1, 1);
}

/// Waits until the peer's kernel has all that was written: a reset discards what has not been sent.
#[cfg(target_os = "linux")]
fn arrived(socket: &TcpStream) {
    let port = |address: std::net::SocketAddr| format!(":{:04X}", address.port());
    let local = port(socket.local_addr().unwrap());
    let peer = port(socket.peer_addr().unwrap());
    loop {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let unsent = table.lines().find_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let ours = fields.next()?.ends_with(&local) && fields.next()?.ends_with(&peer);
            ours.then(|| fields.nth(1).unwrap().starts_with("00000000:"))
        });
        if unsent.unwrap() {
            return;
        }
        std::thread::yield_now();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn all_that_came_before_a_reset_is_delivered() {
    for tokens in [1, 100, 1000] {
        let rig = Rig::new();
        let target = rig.target();
        let (mut stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
        write(&mut socket, HEAD);
        for i in 0..tokens {
            write(&mut socket, &chunk(&token("x", i + 1)));
        }
        arrived(&socket);
        reset(socket);
        let mut events = Vec::new();
        rig.until(|| {
            stream.take(&mut events);
            stream.is_terminal() && stream.pending() == 0
        });
        assert_eq!(error(&events), ("reset", "stream"));
        assert_eq!(texts(&events).len(), tokens);
        assert_eq!(failure(&events).tokens_emitted, tokens as u64);
        assert_eq!(rig.reactor.connections(), 0);
    }
}

#[test]
fn trailers_are_passed_over_within_their_bound() {
    let stream = format!("{HEAD}{}", chunk(STOP));
    for (trailers, kept) in [
        ("x: y\r\n".to_owned(), 1),
        ("content-length: 5\r\n".to_owned(), 1),
        (format!("x: {}\r\n", "y".repeat(17 << 10)), 0),
    ] {
        let (events, connections) =
            answered(format!("{stream}0\r\n{trailers}\r\n").as_bytes(), false);
        // The end stands: it was seen before.
        assert_eq!((kinds(&events), connections), (vec!["started", "end"], kept));
    }
}

#[test]
fn events_after_the_end_are_dropped_and_cost_the_connection() {
    let late = chunk(&token("late", 9));
    for answer in [
        format!("{HEAD}{}{late}0\r\n\r\n", chunk(STOP)),
        format!("{HEAD}{}0\r\n\r\n", chunk(&format!("{STOP}{}{STOP}", token("late", 9)))),
    ] {
        let (events, connections) = answered(answer.as_bytes(), false);
        assert_eq!((kinds(&events), connections), (vec!["started", "end"], 0));
    }
}

#[test]
fn any_cut_of_the_bytes_gives_the_same_events() {
    let mut answer = HEAD.to_owned();
    for i in 0..20 {
        answer.push_str(&chunk(&token("é\\n😀", i + 1)));
    }
    answer.push_str(&chunk(STOP));
    answer.push_str("0\r\n\r\n");
    let (whole, _) = answered(answer.as_bytes(), false);

    let rig = Rig::new();
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    for byte in answer.as_bytes() {
        socket.write_all(&[*byte]).unwrap();
        rig.turn();
    }
    let events = rig.ended(&mut stream);
    assert_eq!(texts(&events), texts(&whole));
    rig.until(|| rig.reactor.resting() == 1);
}

#[test]
fn ten_thousand_events_in_one_piece_are_as_many() {
    let frames: String = (0..10_000).map(|i| token("x", i + 1)).collect();
    let rig = Rig::new();
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    let answer = format!("{HEAD}{}{}0\r\n\r\n", chunk(&frames), chunk(STOP));
    socket.set_nonblocking(true).unwrap();
    let mut rest = answer.as_bytes();
    let mut events = Vec::new();
    rig.until(|| {
        if let Ok(size) = socket.write(rest) {
            rest = &rest[size..];
        }
        stream.take(&mut events);
        stream.is_terminal() && stream.pending() == 0
    });
    assert_eq!(texts(&events).len(), 10_000);
    assert_eq!(kinds(&events).last(), Some(&"end"));
}

/// The golden response, cut at every byte: an exact prefix of its tokens, and the right error.
#[test]
fn a_response_cut_at_any_byte_gives_a_prefix_and_never_an_end() {
    let words = ["Once", " upon", " a", " time", " é", " 😀", "\\n", " end"];
    let mut golden = HEAD.to_owned();
    // After how many bytes each event is whole.
    let mut whole = Vec::new();
    for (i, word) in words.iter().enumerate() {
        golden.push_str(&chunk(&token(word, i + 1)));
        whole.push(golden.len() - 2);
    }
    golden.push_str(&chunk(STOP));
    let finished = golden.len() - 2;
    golden.push_str("0\r\n\r\n");
    let (all, _) = answered(golden.as_bytes(), false);
    let all: Vec<String> = texts(&all).into_iter().map(str::to_owned).collect();

    let rig = Rig::new();
    let target = rig.target();
    for cut in 0..=golden.len() {
        for with_reset in [false, true] {
            let (mut stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
            socket.write_all(&golden.as_bytes()[..cut]).unwrap();
            if with_reset {
                reset(socket);
            } else {
                drop(socket);
            }
            let events = rig.ended(&mut stream);
            let tokens = whole.iter().filter(|end| **end <= cut).count();
            assert_eq!(texts(&events), all[..tokens], "cut at {cut}");
            if cut >= finished {
                assert_eq!(kinds(&events).last(), Some(&"end"), "cut at {cut}");
            } else {
                let expected = match cut {
                    _ if with_reset => "reset",
                    _ if cut < HEAD.len() => "reset",
                    _ => "truncated",
                };
                assert_eq!(error(&events).0, expected, "cut at {cut}");
                assert_eq!(failure(&events).tokens_emitted, tokens as u64);
            }
            rig.until(|| rig.reactor.connections() == 0);
        }
    }
}

//! Calls that end in one answer, with every bound to the nanosecond.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::net::{Shutdown, TcpStream};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use common::*;
use worker_adapters_core::error::{Detail, Phase, Processed, WorkerError};
use worker_adapters_net::{Call, ERROR_BODY_TIME, Request, Target};

type Answer = Result<Vec<u8>, WorkerError>;

const HEALTH: Request<'static> =
    Request { method: "GET", path: "/health", headers: &[], body: None };

fn poll(ask: Pin<&mut impl Future<Output = Answer>>) -> Option<Answer> {
    match ask.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
}

/// Turns the reactor until the answer is there.
fn finish(rig: &Rig, mut ask: Pin<&mut impl Future<Output = Answer>>) -> Answer {
    let mut answer = None;
    rig.until(|| {
        answer = poll(ask.as_mut());
        answer.is_some()
    });
    answer.unwrap()
}

/// Begins to ask, until the server has the request.
fn begin(rig: &Rig, ask: Pin<&mut impl Future<Output = Answer>>) -> TcpStream {
    assert!(poll(ask).is_none());
    rig.until(|| rig.reactor.connections() == 1);
    let mut socket = rig.accept();
    socket.set_nonblocking(true).unwrap();
    let mut byte = [0];
    rig.until(|| socket.peek(&mut byte).is_ok());
    socket.set_nonblocking(false).unwrap();
    assert!(read_request(&mut socket).starts_with("GET /health HTTP/1.1\r\n"));
    socket
}

fn answered(text: &str, close: bool, change: impl FnOnce(&mut Call)) -> (Answer, usize) {
    let rig = Rig::new();
    let target = rig.target();
    let mut call = Call::new("llamacpp");
    change(&mut call);
    let mut ask = pin!(target.ask(&HEALTH, call));
    let mut socket = begin(&rig, ask.as_mut());
    write(&mut socket, text);
    if close {
        socket.shutdown(Shutdown::Write).unwrap();
    }
    let answer = finish(&rig, ask);
    (answer, rig.reactor.connections())
}

fn ok(headers: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{headers}\r\n{body}")
}

#[test]
fn an_answer_may_be_framed_in_any_way() {
    for (text, close, kept) in [
        (ok("content-length: 2\r\n", "ok"), false, 1),
        (ok("transfer-encoding: chunked\r\n", "1\r\no\r\n1\r\nk\r\n0\r\n\r\n"), false, 1),
        (ok("", "ok"), true, 0),
        (ok("connection: close\r\ncontent-length: 2\r\n", "ok"), false, 0),
        (ok("content-length: 2\r\n", "ok and more"), false, 0),
    ] {
        let (answer, connections) = answered(&text, close, |_| ());
        assert_eq!((answer.unwrap(), connections), (b"ok".to_vec(), kept), "{text}");
    }
    let (answer, kept) = answered(&ok("content-length: 0\r\n", ""), false, |_| ());
    assert_eq!((answer.unwrap().len(), kept), (0, 1));
}

#[test]
fn what_is_no_answer_is_an_error() {
    for (text, close, detail, status) in [
        (ok("content-length: 3\r\n", "ok"), true, Detail::Truncated, Some(200)),
        (ok("transfer-encoding: chunked\r\n", "2\r\nok\r\n"), true, Detail::Truncated, Some(200)),
        (ok("transfer-encoding: chunked\r\n", "x"), false, Detail::Framing, Some(200)),
        ("hello".to_owned(), false, Detail::Protocol, None),
        (String::new(), true, Detail::Reset, None),
        (
            "HTTP/1.1 404 X\r\ncontent-length: 2\r\n\r\nno".into(),
            false,
            Detail::NotFound,
            Some(404),
        ),
        (
            "HTTP/1.1 503 X\r\ncontent-length: 2\r\n\r\nno".into(),
            false,
            Detail::Unavailable,
            Some(503),
        ),
        (
            "HTTP/1.1 302 X\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n".into(),
            false,
            Detail::Redirect,
            Some(302),
        ),
    ] {
        let error = answered(&text, close, |_| ()).0.unwrap_err();
        assert_eq!((error.detail, error.status), (detail, status), "{text}");
    }
}

#[test]
fn an_answer_is_bounded_in_size() {
    let text = ok("content-length: 10\r\n", "0123456789");
    let (answer, kept) = answered(&text, false, |call| call.max_bytes = 10);
    assert_eq!((answer.unwrap().len(), kept), (10, 1));
    let (answer, kept) = answered(&text, false, |call| call.max_bytes = 9);
    let error = answer.unwrap_err();
    assert_eq!((error.detail, kept), (Detail::BodyTooLarge, 0));
    assert!(error.message.contains("9 bytes") && !error.message.contains("0123"));
}

#[test]
fn an_answer_is_bounded_in_time() {
    for (timeout, deadline, detail) in [
        (Some(7 * SECOND), None, Detail::UnaryTimeout),
        (None, Some(7 * SECOND), Detail::Deadline),
        (Some(7 * SECOND), Some(8 * SECOND), Detail::UnaryTimeout),
        (Some(8 * SECOND), Some(7 * SECOND), Detail::Deadline),
        (Some(7 * SECOND), Some(7 * SECOND), Detail::Deadline),
    ] {
        // Silent, in mid-head, in mid-body.
        for text in ["", "HTTP/1.1 2", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n1"] {
            let rig = Rig::new();
            let target = rig.target();
            let mut call = Call::new("llamacpp");
            call.timeout = timeout;
            call.deadline = deadline.map(|after| rig.reactor.now().saturating_add(after));
            let mut ask = pin!(target.ask(&HEALTH, call));
            let mut socket = begin(&rig, ask.as_mut());
            write(&mut socket, text);
            rig.turn();
            rig.advance((7 * SECOND).saturating_sub(NANO));
            rig.turn();
            assert!(poll(ask.as_mut()).is_none());
            rig.advance(NANO);
            rig.turn();
            let error = poll(ask.as_mut()).unwrap().unwrap_err();
            // The clock over all of a call is told apart from a head that comes too slowly.
            let is_partial = text.starts_with("HTTP") && !text.contains("200");
            let slow_head = is_partial && detail == Detail::UnaryTimeout;
            let expected = if slow_head { Detail::HeaderTimeout } else { detail };
            assert_eq!(error.detail, expected, "{text}");
            assert_eq!(rig.reactor.connections(), 0);
            wait_for_close(&mut socket);
        }
    }
}

#[test]
fn a_refusal_is_not_waited_for() {
    let rig = Rig::new();
    let target = rig.target();
    let mut ask = pin!(target.ask(&HEALTH, Call::new("llamacpp")));
    let mut socket = begin(&rig, ask.as_mut());
    write(&mut socket, "HTTP/1.1 503 X\r\ncontent-length: 100\r\n\r\nno");
    let due = rig.reactor.now().saturating_add(ERROR_BODY_TIME);
    rig.until(|| rig.reactor.turn(Some(INSTANTLY)).unwrap() == Some(due));
    assert!(poll(ask.as_mut()).is_none());
    rig.advance(ERROR_BODY_TIME);
    rig.turn();
    let error = poll(ask.as_mut()).unwrap().unwrap_err();
    assert_eq!((error.detail, error.status), (Detail::Unavailable, Some(503)));
}

#[test]
fn a_deadline_that_has_passed_asks_nothing() {
    let rig = Rig::new();
    let target = rig.target();
    let mut call = Call::new("llamacpp");
    call.deadline = Some(rig.reactor.now());
    let error = poll(pin!(target.ask(&HEALTH, call))).unwrap().unwrap_err();
    assert_eq!((error.detail, error.phase), (Detail::Deadline, Phase::Queue));
    assert_eq!(error.processed, Processed::No);
    assert_eq!(rig.reactor.connections(), 0);
}

#[test]
fn a_call_that_is_dropped_closes_its_connection() {
    let rig = Rig::new();
    let target = rig.target();
    let mut ask = Box::pin(target.ask(&HEALTH, Call::new("llamacpp")));
    let mut socket = begin(&rig, ask.as_mut());
    drop(ask);
    assert_eq!(rig.reactor.stats().exchanges, 0);
    wait_for_close(&mut socket);
    drop::<Target>(target);
    rig.is_empty();
}

#[test]
fn calls_share_one_connection() {
    let rig = Rig::new();
    let target = rig.target();
    let mut first = Box::pin(target.ask(&HEALTH, Call::new("llamacpp")));
    let mut socket = begin(&rig, first.as_mut());
    for status in [200, 503, 404, 200] {
        write(&mut socket, &format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok"));
        assert_eq!(finish(&rig, first.as_mut()).is_ok(), status == 200);
        first = Box::pin(target.ask(&HEALTH, Call::new("llamacpp")));
        assert!(poll(first.as_mut()).is_none());
        read_request(&mut socket);
        assert_eq!(rig.reactor.connections(), 1);
    }
}

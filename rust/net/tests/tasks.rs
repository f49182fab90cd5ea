//! Tasks as the contract has them, and calls that end in one answer, over a reactor that turns in a
//! thread of its own.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use common::*;
use futures::executor::block_on;
use futures::future::{Either, select};
use worker_adapters_core::adapter::{CancelMethod, TokenStream};
use worker_adapters_core::error::{Detail, Phase, Processed, WorkerError};
use worker_adapters_core::event::{FinishReason, TokenEvent};
use worker_adapters_core::stream::StreamConfig;
use worker_adapters_core::task::Uuid;
use worker_adapters_net::{Bounds, Call, Driver, Request, Target, Tasks};

const TASK: Uuid = Uuid::from_u128(1);

/// Tasks for one address, and what moves them.
struct Client {
    tasks: Tasks,
    target: Target,
    _driver: Driver,
}

fn client(address: SocketAddr) -> Client {
    let reactor = reactor();
    let driver = reactor.spawn().unwrap();
    Client {
        tasks: Tasks::new("llamacpp"),
        target: reactor.target(config(address)),
        _driver: driver,
    }
}

impl Client {
    async fn submit(&self, task_id: Uuid) -> Result<TokenStream, WorkerError> {
        let request = Request {
            method: "POST",
            path: "/completion",
            headers: &[(b"content-type", b"application/json")],
            body: Some(b"{}"),
        };
        let decoder = decoder(StreamConfig::new("llamacpp"));
        self.tasks.submit(task_id, &self.target, &request, decoder, Bounds::default()).await
    }

    fn refusal(&self, task_id: Uuid) -> WorkerError {
        block_on(self.submit(task_id)).err().unwrap()
    }

    fn ask(&self, change: impl FnOnce(&mut Call)) -> Result<Vec<u8>, WorkerError> {
        let mut call = Call::new("llamacpp");
        change(&mut call);
        let request = Request { method: "GET", path: "/health", headers: &[], body: None };
        block_on(self.target.ask(&request, call))
    }
}

fn rest(stream: &mut TokenStream) -> Vec<TokenEvent> {
    let mut events = Vec::new();
    while block_on(stream.as_mut().next_batch(&mut events)) > 0 {}
    events
}

fn finish_reason(event: &TokenEvent) -> Option<FinishReason> {
    let TokenEvent::End(end) = event else { panic!("{}", event.kind()) };
    end.finish_reason
}

/// Sends one token, says so, and waits until the client hangs up.
fn stalls(socket: &mut TcpStream, has_sent: &mpsc::Sender<()>) {
    read_request(socket);
    write(socket, HEAD);
    write(socket, &chunk(&token("a", 1)));
    has_sent.send(()).unwrap();
    wait_for_close(socket);
}

#[test]
fn a_task_comes_through_and_is_forgotten() {
    let (address, thread) = server(
        |_, mut socket| {
            read_request(&mut socket);
            write(&mut socket, HEAD);
            write(&mut socket, &chunk(&token("a", 1)));
            write(&mut socket, &chunk(&token("b", 2)));
            write(&mut socket, &chunk(STOP));
            write(&mut socket, "0\r\n\r\n");
        },
        1,
    );
    let client = client(address);
    let mut stream = block_on(client.submit(TASK)).unwrap();
    assert_eq!((stream.task_id(), client.tasks.len()), (TASK, 1));
    let events = rest(&mut stream);
    assert_eq!(kinds(&events), ["started", "token", "token", "end"]);
    assert!(stream.is_terminal());
    assert_eq!(client.tasks.cancel(TASK).method, CancelMethod::None);
    drop(stream);
    assert!(client.tasks.is_empty());
    thread.join().unwrap();
}

#[test]
fn a_task_is_cancelled_by_its_id_from_any_thread() {
    let (sender, has_sent) = mpsc::channel();
    let (address, thread) = server(move |_, mut socket| stalls(&mut socket, &sender), 1);
    let client = client(address);
    let mut stream = block_on(client.submit(TASK)).unwrap();
    has_sent.recv_timeout(GUARD).unwrap();
    let canceller = client.tasks.clone();
    let receipt = thread::spawn(move || canceller.cancel(TASK)).join().unwrap();
    assert_eq!((receipt.method, receipt.sent), (CancelMethod::Close, true));
    // The engine sees it, whether or not anybody reads on.
    thread.join().unwrap();
    assert!(!client.tasks.cancel(TASK).sent);
    let events = rest(&mut stream);
    assert_eq!(kinds(&events).last(), Some(&"end"));
    assert!(!kinds(&events).contains(&"token"), "taken back");
    assert_eq!(finish_reason(events.last().unwrap()), Some(FinishReason::Cancelled));
    assert_eq!(client.tasks.cancel(Uuid::from_u128(9)).method, CancelMethod::None);
}

#[test]
fn a_reader_that_waits_is_woken_by_a_cancel() {
    let (sender, has_sent) = mpsc::channel();
    let (address, thread) = server(move |_, mut socket| stalls(&mut socket, &sender), 1);
    let client = client(address);
    let mut stream = block_on(client.submit(TASK)).unwrap();
    let mut events = Vec::new();
    while !kinds(&events).contains(&"token") {
        block_on(stream.as_mut().next_batch(&mut events));
    }
    has_sent.recv_timeout(GUARD).unwrap();
    let reader = thread::spawn(move || rest(&mut stream));
    assert!(client.tasks.cancel(TASK).sent);
    assert_eq!(kinds(&reader.join().unwrap()), ["end"]);
    thread.join().unwrap();
}

#[test]
fn a_reader_may_read_on_inside_the_call_that_wakes_it() {
    struct Eager(Mutex<Option<TokenStream>>, mpsc::Sender<usize>);
    impl Wake for Eager {
        fn wake(self: Arc<Self>) {
            if let Some(stream) = &mut *self.0.lock().unwrap() {
                let mut events = Vec::new();
                let mut context = Context::from_waker(Waker::noop());
                let _ = stream.as_mut().poll_batch(&mut context, &mut events);
                self.1.send(events.len()).unwrap();
            }
        }
    }
    let (sender, has_sent) = mpsc::channel();
    let (address, thread) = server(move |_, mut socket| stalls(&mut socket, &sender), 1);
    let client = client(address);
    let mut stream = block_on(client.submit(TASK)).unwrap();
    let mut events = Vec::new();
    while !kinds(&events).contains(&"token") {
        block_on(stream.as_mut().next_batch(&mut events));
    }
    has_sent.recv_timeout(GUARD).unwrap();
    let (sender, read) = mpsc::channel();
    let eager = Arc::new(Eager(Mutex::new(None), sender));
    let waker = Waker::from(Arc::clone(&eager));
    let mut context = Context::from_waker(&waker);
    assert!(stream.as_mut().poll_batch(&mut context, &mut events).is_pending());
    *eager.0.lock().unwrap() = Some(stream);
    assert!(client.tasks.cancel(TASK).sent);
    assert_eq!(read.recv_timeout(GUARD), Ok(1));
    drop(eager.0.lock().unwrap().take());
    thread.join().unwrap();
}

#[test]
fn one_event_at_a_time_and_then_cancelled() {
    let (address, thread) = server(
        |_, mut socket| {
            read_request(&mut socket);
            write(&mut socket, HEAD);
            let both = token("a", 1) + &token("b", 2);
            write(&mut socket, &chunk(&both));
            wait_for_close(&mut socket);
        },
        1,
    );
    let client = client(address);
    let mut stream = block_on(client.submit(TASK)).unwrap();
    let mut next = || block_on(std::future::poll_fn(|context| stream.as_mut().poll_next(context)));
    assert_eq!(next().unwrap().kind(), "started");
    assert_eq!(next().unwrap().kind(), "token");
    // The second token has come with the first, and is taken back.
    assert!(client.tasks.cancel(TASK).sent);
    assert_eq!(finish_reason(&next().unwrap()), Some(FinishReason::Cancelled));
    assert!(next().is_none());
    assert!(next().is_none());
    thread.join().unwrap();
}

#[test]
fn a_task_that_is_cancelled_before_its_answer_is_a_stream_of_its_end() {
    let (sender, has_request) = mpsc::channel();
    let (address, thread) = server(
        move |_, mut socket| {
            read_request(&mut socket);
            sender.send(()).unwrap();
            wait_for_close(&mut socket);
        },
        1,
    );
    let client = Arc::new(client(address));
    let submitting = Arc::clone(&client);
    let submit = thread::spawn(move || {
        let mut stream = block_on(submitting.submit(TASK)).unwrap();
        rest(&mut stream)
    });
    has_request.recv_timeout(GUARD).unwrap();
    assert!(client.tasks.cancel(TASK).sent);
    let events = submit.join().unwrap();
    assert_eq!(kinds(&events), ["end"]);
    assert_eq!(finish_reason(&events[0]), Some(FinishReason::Cancelled));
    thread.join().unwrap();
}

#[test]
fn what_fails_before_the_answer_is_an_error_of_the_submit() {
    let (address, thread) = server(
        |_, mut socket| {
            read_request(&mut socket);
            let body = r#"{"error":{"message":"busy"}}"#;
            let head = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: ";
            write(&mut socket, &format!("{head}{}\r\n\r\n{body}", body.len()));
        },
        1,
    );
    let client = client(address);
    let refusal = client.refusal(TASK);
    assert_eq!((refusal.detail, refusal.status), (Detail::Unavailable, Some(503)));
    assert_eq!((refusal.retry_after_ms, &*refusal.message), (Some(1000), "busy"));
    thread.join().unwrap();
    // Nobody listens any more.
    let refusal = client.refusal(TASK);
    assert_eq!((refusal.detail, refusal.processed), (Detail::Connect, Processed::No));
    assert!(client.tasks.is_empty());
}

#[test]
fn what_fails_after_it_is_an_event() {
    let (address, thread) = server(
        |_, mut socket| {
            read_request(&mut socket);
            write(&mut socket, HEAD);
            write(&mut socket, &chunk("data: {\"error\":{\"code\":500,\"message\":\"oh\"}}\n\n"));
        },
        1,
    );
    let client = client(address);
    let events = rest(&mut block_on(client.submit(TASK)).unwrap());
    assert_eq!(kinds(&events), ["error"]);
    thread.join().unwrap();
}

#[test]
fn an_id_in_flight_is_refused_until_its_stream_is_over() {
    let (sender, has_sent) = mpsc::channel();
    let (address, thread) = server(move |_, mut socket| stalls(&mut socket, &sender), 2);
    let client = client(address);
    let first = block_on(client.submit(TASK)).unwrap();
    has_sent.recv_timeout(GUARD).unwrap();
    let refusal = client.refusal(TASK);
    assert_eq!((refusal.detail, refusal.phase), (Detail::DuplicateId, Phase::Validate));
    assert!(client.tasks.cancel(TASK).sent);
    let second = block_on(client.submit(TASK)).unwrap();
    has_sent.recv_timeout(GUARD).unwrap();
    // The first one's place has been taken; it does not take it along.
    drop(first);
    assert!(client.tasks.cancel(TASK).sent);
    drop(second);
    assert!(client.tasks.is_empty());
    thread.join().unwrap();
}

#[test]
fn a_submit_that_is_given_up_closes_its_connection() {
    let (sender, has_request) = mpsc::channel();
    let (address, thread) = server(
        move |_, mut socket| {
            read_request(&mut socket);
            sender.send(()).unwrap();
            wait_for_close(&mut socket);
        },
        1,
    );
    let client = client(address);
    let (done, is_done) = futures::channel::oneshot::channel::<()>();
    let leave = thread::spawn(move || {
        has_request.recv_timeout(GUARD).unwrap();
        done.send(()).unwrap();
    });
    let outcome = block_on(select(Box::pin(client.submit(TASK)), is_done));
    assert!(matches!(outcome, Either::Right(_)));
    drop(outcome);
    leave.join().unwrap();
    thread.join().unwrap();
    assert!(client.tasks.is_empty());
}

#[test]
fn nothing_is_taken_once_it_is_closed() {
    let (sender, has_sent) = mpsc::channel();
    let (address, thread) = server(move |_, mut socket| stalls(&mut socket, &sender), 1);
    let client = client(address);
    let mut stream = block_on(client.submit(TASK)).unwrap();
    has_sent.recv_timeout(GUARD).unwrap();
    client.tasks.close();
    client.tasks.close();
    thread.join().unwrap();
    assert_eq!(finish_reason(rest(&mut stream).last().unwrap()), Some(FinishReason::Cancelled));
    assert_eq!(client.refusal(Uuid::from_u128(2)).detail, Detail::Closed);
}

#[test]
fn a_request_that_is_no_http_is_never_sent() {
    let client = client("127.0.0.1:1".parse().unwrap());
    let request = Request { method: "GET", path: "/a b", headers: &[], body: None };
    let asked = block_on(client.target.ask(&request, Call::new("x"))).unwrap_err();
    assert_eq!((asked.detail, asked.processed), (Detail::InvalidRequest, Processed::No));
    let decoder = decoder(StreamConfig::new("x"));
    let submit = client.tasks.submit(TASK, &client.target, &request, decoder, Bounds::default());
    assert_eq!(block_on(submit).err().unwrap().phase, Phase::Validate);
    assert!(client.tasks.is_empty());
}

/// Answers one request with this.
fn answering(answer: String) -> (Client, thread::JoinHandle<()>) {
    let (address, thread) = server(
        move |_, mut socket| {
            read_request(&mut socket);
            write(&mut socket, &answer);
        },
        1,
    );
    (client(address), thread)
}

#[test]
fn an_answer_is_its_body() {
    let (client, thread) = answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned());
    assert_eq!(client.ask(|_| ()).unwrap(), b"{}");
    thread.join().unwrap();
}

#[test]
fn an_answer_that_is_none() {
    for (answer, detail, status) in [
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", Detail::NotFound, Some(404)),
        ("HTTP/1.1 503 No\r\ncontent-length: 9\r\n\r\ncut off", Detail::Unavailable, Some(503)),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut off", Detail::Truncated, Some(200)),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n12345678901",
            Detail::BodyTooLarge,
            Some(200),
        ),
        ("SMTP\r\n\r\n", Detail::Protocol, None),
        ("", Detail::Reset, None),
    ] {
        let (client, thread) = answering(answer.to_owned());
        let error = client.ask(|call| call.max_bytes = 10).unwrap_err();
        assert_eq!((error.detail, error.status), (detail, status), "{answer}");
        thread.join().unwrap();
    }
}

#[test]
fn an_answer_has_its_time() {
    let (address, thread) = server(
        |_, mut socket| {
            read_request(&mut socket);
            wait_for_close(&mut socket);
        },
        1,
    );
    let client = client(address);
    let error = client.ask(|call| call.timeout = Some(Duration::from_millis(20))).unwrap_err();
    assert_eq!((error.detail, error.retriable), (Detail::UnaryTimeout, true));
    thread.join().unwrap();
}

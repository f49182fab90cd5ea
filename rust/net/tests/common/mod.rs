//! A server that does what a test says, and a reactor turned by the test itself.
#![allow(dead_code, reason = "each test file uses what it needs")]
// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
use worker_adapters_net::origin::Origin;
use worker_adapters_net::{
    Bounds, EventStream, Reactor, ReactorConfig, Request, Target, TargetConfig,
};

/// A guard against hanging, far above what anything here takes.
pub(crate) const GUARD: Duration = Duration::from_secs(20);

pub(crate) const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                        transfer-encoding: chunked\r\n\r\n";

/// Serves one connection after the other with `serve`, which is told how many there were before.
pub(crate) fn server(
    serve: impl Fn(usize, TcpStream) + Send + 'static,
    connections: usize,
) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || {
        for index in 0..connections {
            let (socket, _) = listener.accept().unwrap();
            socket.set_read_timeout(Some(GUARD)).unwrap();
            serve(index, socket);
        }
    });
    (address, thread)
}

/// Reads a request with a content-length to its end.
pub(crate) fn read_request(socket: &mut TcpStream) -> String {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        assert_eq!(socket.read(&mut byte).unwrap(), 1, "the request ended early");
        request.push(byte[0]);
    }
    let mut head = String::from_utf8(request).unwrap();
    let length = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ").map(|n| n.parse().unwrap()));
    let mut body = vec![0; length.unwrap_or(0)];
    socket.read_exact(&mut body).unwrap();
    head.push_str(std::str::from_utf8(&body).unwrap());
    head
}

pub(crate) fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

/// An event of llama.cpp's `/completion`.
pub(crate) fn token(text: &str, number: usize) -> String {
    format!("data: {{\"content\":\"{text}\",\"stop\":false,\"tokens_predicted\":{number}}}\n\n")
}

pub(crate) const STOP: &str = "data: {\"content\":\"\",\"stop\":true,\"stop_type\":\"eos\",\
                        \"tokens_predicted\":2,\"tokens_evaluated\":3}\n\n";

pub(crate) fn write(socket: &mut TcpStream, text: &str) {
    socket.write_all(text.as_bytes()).unwrap();
}

pub(crate) fn reactor() -> Reactor {
    Reactor::new(ReactorConfig::default()).unwrap()
}

pub(crate) fn config(address: SocketAddr) -> TargetConfig {
    TargetConfig::new(Origin::parse(&format!("http://{address}")).unwrap().0)
}

pub(crate) fn decoder(config: StreamConfig) -> Box<StreamDecoder> {
    Box::new(StreamDecoder::new(Dialect::new("llamacpp", []).unwrap(), config))
}

pub(crate) fn submit(target: &Target) -> EventStream {
    submit_with(target, StreamConfig::new("llamacpp"))
}

pub(crate) fn submit_with(target: &Target, config: StreamConfig) -> EventStream {
    let request = Request {
        method: "POST",
        path: "/completion",
        headers: &[(b"content-type", b"application/json")],
        body: Some(b"{}"),
    };
    target.submit(&request, decoder(config), Bounds::default()).unwrap()
}

struct Nobody;

impl Wake for Nobody {
    fn wake(self: Arc<Self>) {}
}

/// Turns the reactor until the stream has an event; all that have come.
pub(crate) fn next_batch(reactor: &Reactor, stream: &mut EventStream) -> Vec<TokenEvent> {
    let waker = Waker::from(Arc::new(Nobody));
    let began = Instant::now();
    let mut out = Vec::new();
    loop {
        match stream.poll_batch(&mut Context::from_waker(&waker), &mut out) {
            Poll::Ready(()) => return out,
            Poll::Pending => {
                assert!(began.elapsed() < GUARD, "nothing comes");
                reactor.turn(Some(Duration::from_millis(100))).unwrap();
            }
        }
    }
}

/// All events up to the terminal one.
pub(crate) fn collect(reactor: &Reactor, stream: &mut EventStream) -> Vec<TokenEvent> {
    let mut events: Vec<TokenEvent> = Vec::new();
    while !events.last().is_some_and(TokenEvent::is_terminal) {
        events.extend(next_batch(reactor, stream));
    }
    events
}

pub(crate) fn kinds(events: &[TokenEvent]) -> Vec<&'static str> {
    events.iter().map(TokenEvent::kind).collect()
}

/// What the error is that ends these events: detail and phase.
pub(crate) fn error(events: &[TokenEvent]) -> (&'static str, &'static str) {
    match events.last() {
        Some(TokenEvent::Error(error)) => (error.detail.as_str(), error.phase.as_str()),
        other => panic!("no error but {other:?}"),
    }
}

/// Waits until the peer has closed the connection.
pub(crate) fn wait_for_close(socket: &mut TcpStream) {
    let mut rest = [0; 1024];
    loop {
        match socket.read(&mut rest) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("the connection stays open: {error}"),
        }
    }
}

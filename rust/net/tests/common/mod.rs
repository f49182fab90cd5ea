//! A server that does what a test says, and a reactor turned by the test itself.
#![allow(dead_code, reason = "each test file uses what it needs")]
// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;
use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::error::{Phase, WorkerError};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
use worker_adapters_core::time;
use worker_adapters_net::origin::Origin;
use worker_adapters_net::resolver::{Resolve, SystemResolver};
use worker_adapters_net::{
    Bounds, Clock, EventStream, Reactor, ReactorConfig, Request, Sink, Target, TargetConfig,
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

/// Turns the reactor until the stream has an event; all that have come.
pub(crate) fn next_batch(reactor: &Reactor, stream: &mut EventStream) -> Vec<TokenEvent> {
    let waker = Waker::noop();
    let began = Instant::now();
    let mut out = Vec::new();
    loop {
        match stream.poll_batch(&mut Context::from_waker(waker), &mut out) {
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

/// The error that ends these events.
pub(crate) fn failure(events: &[TokenEvent]) -> &WorkerError {
    match events.last() {
        Some(TokenEvent::Error(error)) => error,
        other => panic!("no error but {other:?}"),
    }
}

/// The texts of the tokens among these events.
pub(crate) fn texts(events: &[TokenEvent]) -> Vec<&str> {
    events
        .iter()
        .filter_map(|event| match event {
            TokenEvent::Token(token) => Some(token.t.as_str()),
            _ => None,
        })
        .collect()
}

/// Closes with a reset.
pub(crate) fn reset(socket: TcpStream) {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
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

/// A clock that stands still until it is told to go on.
#[derive(Debug)]
pub(crate) struct Manual(AtomicU64);

impl Clock for Manual {
    fn now(&self) -> time::Instant {
        time::Instant::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

/// A waker that counts how often it is woken.
#[derive(Default)]
pub(crate) struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Count {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A reactor whose time is the test's, and a server that is the test itself: nothing here runs on
/// another thread, so that every moment is exact.
pub(crate) struct Rig {
    pub(crate) reactor: Reactor,
    pub(crate) listener: TcpListener,
    clock: Arc<Manual>,
}

pub(crate) const INSTANTLY: Duration = Duration::ZERO;
pub(crate) const NANO: Duration = Duration::from_nanos(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

impl Rig {
    pub(crate) fn new() -> Self {
        Self::resolving(Arc::new(SystemResolver))
    }

    pub(crate) fn resolving(resolve: Arc<dyn Resolve>) -> Self {
        let clock = Arc::new(Manual(AtomicU64::new(1_000_000_000_000)));
        let mut config = ReactorConfig::default();
        config.clock = Arc::<Manual>::clone(&clock);
        config.resolve = resolve;
        Self {
            reactor: Reactor::new(config).unwrap(),
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            clock,
        }
    }

    pub(crate) fn config(&self) -> TargetConfig {
        config(self.listener.local_addr().unwrap())
    }

    pub(crate) fn target(&self) -> Target {
        self.reactor.target(self.config())
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.clock.0.fetch_add(u64::try_from(by.as_nanos()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn turn(&self) {
        self.reactor.turn(Some(INSTANTLY)).unwrap();
    }

    /// Turns the reactor until something is so.
    pub(crate) fn until(&self, mut is_so: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < GUARD, "it never comes to be");
            self.reactor.turn(Some(Duration::from_millis(10))).unwrap();
        }
    }

    pub(crate) fn accept(&self) -> TcpStream {
        self.listener.set_nonblocking(true).unwrap();
        let mut accepted = None;
        self.until(|| {
            accepted = self.listener.accept().ok();
            accepted.is_some()
        });
        let (socket, _) = accepted.unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(GUARD)).unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    /// A stream whose request the server has read.
    pub(crate) fn open(&self, target: &Target, config: StreamConfig) -> (EventStream, TcpStream) {
        self.open_sink(target, decoder(config))
    }

    pub(crate) fn open_sink(
        &self,
        target: &Target,
        sink: Box<dyn Sink>,
    ) -> (EventStream, TcpStream) {
        let stream = target.submit(&request(), sink, Bounds::default()).unwrap();
        self.until(|| stream.phase() == Phase::Head);
        let mut socket = self.accept();
        read_request(&mut socket);
        (stream, socket)
    }

    /// Asserts that the stream ends exactly `after` from now, and gives its events.
    #[track_caller]
    pub(crate) fn expires(&self, stream: &mut EventStream, after: Duration) -> Vec<TokenEvent> {
        self.turn();
        self.advance(after.saturating_sub(NANO));
        self.turn();
        assert!(!stream.is_terminal(), "it ends too early");
        self.advance(NANO);
        self.turn();
        assert!(stream.is_terminal(), "it ends too late");
        let mut events = Vec::new();
        stream.take(&mut events);
        events
    }

    /// The events of a stream up to its end, all at once.
    #[track_caller]
    pub(crate) fn ended(&self, stream: &mut EventStream) -> Vec<TokenEvent> {
        self.until(|| stream.is_terminal());
        let mut events = Vec::new();
        stream.take(&mut events);
        events
    }

    /// Nothing is left of anything.
    #[track_caller]
    pub(crate) fn is_empty(&self) {
        assert_eq!(self.reactor.stats(), worker_adapters_net::Stats::default());
    }
}

pub(crate) fn request() -> Request<'static> {
    Request {
        method: "POST",
        path: "/completion",
        headers: &[(b"content-type", b"application/json")],
        body: Some(b"{}"),
    }
}

/// A configuration with the clocks that `set` sets.
pub(crate) fn clocks(set: impl FnOnce(&mut worker_adapters_core::Clocks)) -> StreamConfig {
    let mut config = StreamConfig::new("llamacpp");
    set(&mut config.clocks);
    config
}

pub(crate) fn count() -> (Arc<Count>, Waker) {
    let count = Arc::new(Count::default());
    (Arc::clone(&count), Waker::from(count))
}

//! How exchanges are waited for, given up and dropped, from wherever and whenever.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use common::*;
use worker_adapters_core::StreamConfig;
use worker_adapters_core::error::Phase;
use worker_adapters_core::event::TokenEvent;
use worker_adapters_net::origin::Origin;
use worker_adapters_net::resolver::Resolve;
use worker_adapters_net::tls::{TlsOptions, client_config};
use worker_adapters_net::{
    Bounds, Driver, EventStream, QUEUE_EVENTS, Request, Stats, Target, TargetConfig,
};

fn plain() -> StreamConfig {
    StreamConfig::new("llamacpp")
}

fn poll(stream: &mut EventStream, waker: &Waker) -> Option<Vec<TokenEvent>> {
    let mut out = Vec::new();
    match stream.poll_batch(&mut Context::from_waker(waker), &mut out) {
        Poll::Ready(()) => Some(out),
        Poll::Pending => None,
    }
}

/// Wakes a thread that waits for it.
#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

impl Bell {
    fn wait(&self) {
        let rung = self.0.lock().unwrap();
        let (mut rung, timeout) = self.1.wait_timeout_while(rung, GUARD, |rung| !*rung).unwrap();
        assert!(!timeout.timed_out(), "nobody is woken");
        *rung = false;
    }
}

/// All events of a stream that somebody else's thread moves on.
fn wait(stream: &mut EventStream) -> Vec<TokenEvent> {
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    let mut events: Vec<TokenEvent> = Vec::new();
    while !events.last().is_some_and(TokenEvent::is_terminal) {
        match poll(stream, &waker) {
            Some(batch) => events.extend(batch),
            None => bell.wait(),
        }
    }
    events
}

// Waking.

#[test]
fn whoever_waits_is_woken_once_for_all_that_came() {
    let rig = Rig::new();
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, plain());
    let (count, waker) = count();
    assert!(poll(&mut stream, &waker).is_none());
    // A head is no event.
    write(&mut socket, HEAD);
    rig.until(|| stream.status() == Some(200));
    assert_eq!(count.get(), 0);
    let tokens: String = (0..3).map(|i| chunk(&token("x", i + 1))).collect();
    write(&mut socket, &tokens);
    rig.until(|| stream.pending() == 4);
    assert_eq!(count.get(), 1);
    // Who has been woken and has not come back is left in peace.
    write(&mut socket, &chunk(&token("x", 4)));
    rig.until(|| stream.pending() == 5);
    assert_eq!(count.get(), 1);
    assert_eq!(poll(&mut stream, &waker).unwrap().len(), 5);
    // Nor is one who came, took, and does not wait.
    write(&mut socket, &chunk(&token("x", 5)));
    rig.until(|| stream.pending() == 1);
    assert_eq!(count.get(), 1);
    // But of the end everybody is told.
    write(&mut socket, &chunk(STOP));
    rig.until(|| stream.is_terminal());
    assert_eq!(count.get(), 2);
    assert_eq!(kinds(&poll(&mut stream, &waker).unwrap()), ["token", "end"]);
    // After it there is nothing, at once.
    assert!(poll(&mut stream, &waker).unwrap().is_empty());
    write(&mut socket, "0\r\n\r\n");
    rig.until(|| rig.reactor.resting() == 1);
    assert_eq!(count.get(), 2);
}

#[test]
fn only_the_last_waker_is_woken() {
    let rig = Rig::new();
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, plain());
    let ((first, one), (second, other)) = (count(), count());
    assert!(poll(&mut stream, &one).is_none());
    assert!(poll(&mut stream, &other).is_none());
    write(&mut socket, &format!("{HEAD}{}", chunk(&token("x", 1))));
    rig.until(|| stream.pending() > 0);
    assert_eq!((first.get(), second.get()), (0, 1));
}

#[test]
fn a_head_is_waited_for_alone() {
    let rig = Rig::new();
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, plain());
    let (count, waker) = count();
    let mut context = Context::from_waker(&waker);
    assert!(stream.poll_head(&mut context).is_pending());
    write(&mut socket, HEAD);
    rig.until(|| count.get() == 1);
    assert!(stream.poll_head(&mut context).is_ready());
    assert!(stream.poll_beyond(0, &mut context).is_pending());
    write(&mut socket, &chunk(&token("x", 1)));
    rig.until(|| count.get() == 2);
    assert!(stream.poll_beyond(0, &mut context).is_ready());
    assert_eq!(stream.pending(), 2);

    // The head of a refusal is told of when its body has been read.
    let (mut stream, mut socket) = rig.open(&target, plain());
    assert!(stream.poll_head(&mut context).is_pending());
    write(&mut socket, "HTTP/1.1 400 No\r\ncontent-length: 2\r\n\r\n");
    rig.until(|| stream.status() == Some(400));
    assert!(stream.poll_head(&mut context).is_pending());
    write(&mut socket, "no");
    rig.until(|| count.get() == 3);
    assert!(stream.poll_head(&mut context).is_ready() && stream.is_terminal());
}

#[test]
fn a_waker_may_come_right_back() {
    /// Takes what there is inside the call that wakes it.
    struct Eager(Mutex<Option<EventStream>>, mpsc::Sender<Vec<TokenEvent>>);
    impl Wake for Eager {
        fn wake(self: Arc<Self>) {
            if let Some(stream) = &mut *self.0.lock().unwrap() {
                self.1.send(poll(stream, Waker::noop()).unwrap()).unwrap();
            }
        }
    }
    let rig = Rig::new();
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, plain());
    let (sender, receiver) = mpsc::channel();
    let eager = Arc::new(Eager(Mutex::new(None), sender));
    assert!(poll(&mut stream, &Waker::from(Arc::clone(&eager))).is_none());
    *eager.0.lock().unwrap() = Some(stream);
    write(&mut socket, &format!("{HEAD}{}", chunk(&token("x", 1))));
    let mut batch = Err(mpsc::TryRecvError::Empty);
    rig.until(|| {
        batch = receiver.try_recv();
        batch.is_ok()
    });
    assert_eq!(kinds(&batch.unwrap()), ["started", "token"]);
    let stream = eager.0.lock().unwrap().take();
    drop(stream);
}

#[test]
fn a_waker_that_panics_keeps_nobody_else_from_being_woken() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker that panics");
        }
    }
    let rig = Rig::new();
    let target = rig.target();
    let (mut bad, mut bad_socket) = rig.open(&target, plain());
    let (mut good, mut good_socket) = rig.open(&target, plain());
    let (count, waker) = count();
    assert!(poll(&mut bad, &Waker::from(Arc::new(Panics))).is_none());
    assert!(poll(&mut good, &waker).is_none());
    for socket in [&mut bad_socket, &mut good_socket] {
        write(socket, &format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
    }
    rig.until(|| bad.is_terminal() && good.is_terminal());
    assert_eq!(count.get(), 1);
    assert_eq!(kinds(&rig.ended(&mut bad)), ["started", "end"]);
}

#[test]
fn dropping_a_waker_may_drop_another_stream() {
    /// What a task is: it is kept by its waker alone, and keeps a stream.
    struct Task(#[expect(dead_code, reason = "only dropped")] Mutex<EventStream>);
    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    let rig = Rig::new();
    let target = rig.target();
    let other = Rig::new();
    let elsewhere = rig.reactor.target(other.config());
    let task = || Waker::from(Arc::new(Task(Mutex::new(submit(&elsewhere)))));
    let mut stream = submit(&target);
    rig.until(|| stream.phase() == Phase::Head);
    assert!(poll(&mut stream, &task()).is_none());
    assert_eq!(rig.reactor.stats().exchanges, 2);
    // Replaced.
    assert!(poll(&mut stream, &task()).is_none());
    assert_eq!(rig.reactor.stats().exchanges, 2);
    let mut context_of = task();
    assert!(stream.poll_beyond(0, &mut Context::from_waker(&context_of)).is_pending());
    context_of = Waker::noop().clone();
    drop(context_of);
    // Dropped with what it waits for.
    drop(stream);
    assert_eq!(rig.reactor.stats().exchanges, 0);
    drop(rig.accept());
    // Dropped by a turn, with an exchange that only waited for the end of its body.
    let (mut stream, mut socket) = rig.open(&target, plain());
    assert!(poll(&mut stream, &task()).is_none());
    write(&mut socket, &format!("{HEAD}{}", chunk(STOP)));
    rig.until(|| stream.is_terminal());
    drop(stream);
    assert_eq!(rig.reactor.stats().exchanges, 2);
    write(&mut socket, "0\r\n\r\n");
    rig.until(|| rig.reactor.stats().exchanges == 0);
}

// Giving up.

/// A name server that answers when it is told to.
#[derive(Default)]
struct Slow(Bell);

impl Resolve for Slow {
    fn resolve(&self, _: &str, _: u16) -> std::io::Result<Vec<SocketAddr>> {
        self.0.wait();
        Ok(Vec::new())
    }
}

/// A stream in some phase, and all that keeps it there.
struct Staged {
    name: &'static str,
    rig: Rig,
    stream: EventStream,
    /// Holds a place, or the server's end.
    holder: Option<EventStream>,
    socket: Option<TcpStream>,
    slow: Arc<Slow>,
}

fn staged(name: &'static str) -> Staged {
    let slow = Arc::new(Slow::default());
    let rig = Rig::resolving(Arc::<Slow>::clone(&slow));
    let mut config = rig.config();
    let (mut holder, mut socket) = (None, None);
    let mut body: &[u8] = b"{}";
    let long = vec![b'x'; 64 << 20];
    let phase = match name {
        "queue" => {
            config.max_exchanges = 1;
            Phase::Queue
        }
        "resolve" => {
            config = TargetConfig::new(Origin::parse("http://engine.test:80").unwrap().0);
            Phase::Resolve
        }
        "connect" => Phase::Connect,
        "tls" => {
            config.tls = Some(client_config(&TlsOptions::default()).unwrap());
            Phase::Tls
        }
        "write" => {
            body = &long;
            Phase::Write
        }
        _ => Phase::Head,
    };
    let target = rig.reactor.target(config);
    if name == "queue" {
        let (stream, peer) = rig.open(&target, plain());
        (holder, socket) = (Some(stream), Some(peer));
    }
    let request = Request { method: "POST", path: "/", headers: &[], body: Some(body) };
    let stream = target.submit(&request, decoder(plain()), Bounds::default()).unwrap();
    rig.until(|| stream.phase() == phase && (phase != Phase::Write || stream.is_sent()));
    if !matches!(name, "queue" | "resolve" | "connect") {
        let mut peer = rig.accept();
        if phase == Phase::Head {
            read_request(&mut peer);
        }
        let answer = match name {
            "first token" => HEAD.to_owned(),
            "stream" => format!("{HEAD}{}", chunk(&token("x", 1))),
            "paused" => {
                let frames: String = (0..2000).map(|i| token("x", i + 1)).collect();
                format!("{HEAD}{}", chunk(&frames))
            }
            "drain" => format!("{HEAD}{}{}", chunk(&token("x", 1)), chunk(STOP)),
            _ => String::new(),
        };
        write(&mut peer, &answer);
        rig.until(|| match name {
            "first token" => stream.status().is_some(),
            "stream" => stream.pending() > 0,
            "paused" => stream.pending() >= QUEUE_EVENTS,
            "drain" => stream.is_terminal(),
            _ => true,
        });
        rig.turn();
        socket = Some(peer);
    }
    Staged { name, rig, stream, holder, socket, slow }
}

impl Staged {
    /// Nothing is left behind, on either side.
    fn finish(mut self) {
        drop(self.stream);
        if self.name == "drain" && self.rig.reactor.connections() > 0 {
            // The end of the body is waited for, but not for long.
            self.rig.advance(SECOND);
            self.rig.turn();
        }
        drop(self.holder);
        assert_eq!(self.rig.reactor.stats(), Stats::default(), "{}", self.name);
        if let Some(socket) = &mut self.socket {
            wait_for_close(socket);
        }
        self.slow.0.clone_wake();
    }
}

impl Bell {
    fn clone_wake(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

const PHASES: [&str; 10] = [
    "queue",
    "resolve",
    "connect",
    "tls",
    "write",
    "head",
    "first token",
    "stream",
    "paused",
    "drain",
];

#[test]
fn dropping_in_any_phase_leaves_nothing() {
    for name in PHASES {
        staged(name).finish();
    }
}

#[test]
fn cancelling_in_any_phase_ends_the_stream_once() {
    for name in PHASES {
        let mut staged = staged(name);
        let (count, waker) = count();
        let was_running = name != "drain";
        if !was_running || staged.stream.pending() == 0 {
            let _ = staged.stream.poll_beyond(0, &mut Context::from_waker(&waker));
        }
        // From another thread, with nobody turning the reactor.
        thread::scope(|scope| {
            scope.spawn(|| assert_eq!(staged.stream.cancel(), was_running, "{name}"));
        });
        assert!(staged.stream.is_terminal());
        assert!(!staged.stream.cancel());
        let mut events = Vec::new();
        assert!(staged.stream.take(&mut events));
        // No token comes after cancelling, whatever had been queued.
        assert_eq!(kinds(&events), ["end"], "{name}");
        assert!(!staged.stream.take(&mut events));
        let unused = usize::from(staged.holder.is_some());
        assert_eq!(staged.rig.reactor.connections(), unused, "{name}");
        if name == "head" || name == "queue" {
            assert_eq!(count.get(), 1, "{name}");
        }
        staged.finish();
    }
}

#[test]
fn cancelling_lets_the_next_one_in() {
    let rig = Rig::new();
    let mut config = rig.config();
    config.max_exchanges = 1;
    let target = rig.reactor.target(config);
    let (mut first, _socket) = rig.open(&target, plain());
    let waiting = submit(&target);
    assert_eq!(waiting.phase(), Phase::Queue);
    first.cancel();
    assert_eq!(waiting.phase(), Phase::Connect);
}

#[test]
fn events_that_were_taken_one_by_one_are_taken_back_too() {
    use worker_adapters_core::Stream;
    let rig = Rig::new();
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, plain());
    let tokens: String = (0..3).map(|i| chunk(&token("x", i + 1))).collect();
    write(&mut socket, &format!("{HEAD}{tokens}"));
    rig.until(|| stream.pending() == 4);
    let next = |stream: &mut EventStream| {
        std::pin::Pin::new(stream).poll_next(&mut Context::from_waker(Waker::noop()))
    };
    assert!(matches!(next(&mut stream), Poll::Ready(Some(TokenEvent::Started(_)))));
    assert_eq!(stream.pending(), 3);
    assert!(stream.cancel());
    assert!(matches!(next(&mut stream), Poll::Ready(Some(TokenEvent::End(_)))));
    assert!(matches!(next(&mut stream), Poll::Ready(None)));
}

// Targets.

#[test]
fn streams_outlive_the_callers_target() {
    let rig = Rig::new();
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, plain());
    drop(target);
    write(&mut socket, &format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
    assert_eq!(kinds(&rig.ended(&mut stream)), ["started", "end"]);
    drop(stream);
    rig.is_empty();
    wait_for_close(&mut socket);
}

#[test]
fn no_connection_is_left_to_the_next_target() {
    let rig = Rig::new();
    let other = Rig::new();
    let target = rig.target();
    let (stream, mut socket) = rig.open(&target, plain());
    write(&mut socket, &format!("{HEAD}{}", chunk(STOP)));
    rig.until(|| stream.is_terminal());
    drop(stream);
    // It still waits for the end of the body; the target goes, and another one comes.
    drop(target);
    rig.is_empty();
    wait_for_close(&mut socket);
    let elsewhere = rig.reactor.target(other.config());
    let stream = submit(&elsewhere);
    rig.until(|| stream.phase() == Phase::Head);
    read_request(&mut other.accept());
    drop((stream, elsewhere));
    rig.is_empty();
}

// Threads.

fn answer(socket: &mut TcpStream, tokens: usize) {
    read_request(socket);
    write(socket, HEAD);
    for i in 0..tokens {
        write(socket, &chunk(&token("x", i + 1)));
    }
    write(socket, &format!("{}0\r\n\r\n", chunk(STOP)));
}

#[test]
fn a_thread_moves_streams_on_for_readers_on_others() {
    let (address, server) = server(|_, mut socket| answer(&mut socket, 500), 8);
    let reactor = reactor();
    let driver = reactor.spawn().unwrap();
    let mut config = config(address);
    config.max_idle = 0;
    let target = reactor.target(config);
    thread::scope(|scope| {
        for _ in 0..8 {
            let target = target.clone();
            scope.spawn(move || {
                let events = wait(&mut submit(&target));
                assert_eq!(texts(&events).len(), 500);
            });
        }
    });
    server.join().unwrap();
    drop(driver);
    drop(target);
    assert_eq!(reactor.stats(), Stats::default());
}

#[test]
fn a_driver_stops_and_another_goes_on() {
    let rig_reactor = reactor();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = rig_reactor.target(config(listener.local_addr().unwrap()));
    let mut stream = submit(&target);
    let driver = rig_reactor.spawn().unwrap();
    let (mut socket, _) = listener.accept().unwrap();
    read_request(&mut socket);
    drop(driver);
    // With nobody to read it, nothing comes.
    write(&mut socket, &format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
    assert_eq!(stream.status(), None);
    let _driver = rig_reactor.spawn().unwrap();
    assert_eq!(kinds(&wait(&mut stream)), ["started", "end"]);
}

#[test]
fn a_driver_may_be_dropped_by_whom_it_wakes() {
    struct Last(Mutex<Option<Driver>>, mpsc::Sender<()>);
    impl Wake for Last {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
            self.1.send(()).unwrap();
        }
    }
    let (address, server) = server(|_, mut socket| answer(&mut socket, 1), 1);
    let reactor = reactor();
    let target = reactor.target(config(address));
    let mut stream = submit(&target);
    let (sender, receiver) = mpsc::channel();
    let last = Arc::new(Last(Mutex::new(None), sender));
    let waker = Waker::from(Arc::clone(&last));
    assert!(poll(&mut stream, &waker).is_none());
    *last.0.lock().unwrap() = Some(reactor.spawn().unwrap());
    receiver.recv_timeout(GUARD).unwrap();
    // The reactor is free: whoever comes next can turn it.
    collect(&reactor, &mut stream);
    server.join().unwrap();
}

#[test]
fn a_turn_that_waits_is_ended_by_a_kick_a_submit_and_a_reader() {
    let reactor = reactor();
    let (sender, receiver) = mpsc::channel();
    let turning = reactor.clone();
    let thread =
        thread::spawn(move || while turning.turn(None).is_ok() && sender.send(()).is_ok() {});
    reactor.kick();
    receiver.recv_timeout(GUARD).unwrap();
    let (address, server) = server(|_, mut socket| answer(&mut socket, 2000), 1);
    let target = reactor.target(config(address));
    let mut stream = submit(&target);
    let events = wait(&mut stream);
    assert_eq!(texts(&events).len(), 2000);
    server.join().unwrap();
    drop(receiver);
    reactor.kick();
    thread.join().unwrap();
}

#[test]
fn a_clock_set_from_outside_is_heard_by_a_turn_that_waits_for_a_later_one() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reactor = reactor();
    let _driver = reactor.spawn().unwrap();
    let target = reactor.target(config(listener.local_addr().unwrap()));
    let within = |time: Duration| clocks(|clocks| clocks.first_token = Some(time));
    let _patient = submit_with(&target, within(Duration::from_secs(3600)));
    let mut hasty = submit_with(&target, within(Duration::from_millis(50)));
    assert_eq!(error(&wait(&mut hasty)).0, "first_token");
}

#[test]
fn a_cancel_at_the_moment_of_the_end_gives_one_end() {
    // More of them by hand.
    let rounds = std::env::var("WORKER_ADAPTERS_CANCELS").map_or(4_000, |set| set.parse().unwrap());
    let (address, server) = server(
        |_, mut socket| {
            // One request after the other, as long as the client keeps the connection.
            let mut request = [0; 1024];
            while socket.read(&mut request).is_ok_and(|size| size > 0) {
                let answer = format!("{HEAD}{}{}0\r\n\r\n", chunk(&token("x", 1)), chunk(STOP));
                let _ = socket.write_all(answer.as_bytes());
            }
        },
        rounds,
    );
    let reactor = reactor();
    let driver = reactor.spawn().unwrap();
    let target = reactor.target(config(address));
    let mut cancelled = 0;
    for round in 0..rounds {
        let mut stream = submit(&target);
        let mut events = Vec::new();
        // From before the request until after the answer.
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_micros((round * 7 % 500) as u64) {
            stream.take(&mut events);
        }
        let before = events.len();
        let was_running = stream.cancel();
        cancelled += usize::from(was_running);
        stream.take(&mut events);
        // Not one token after it has returned, and one end, whoever was first.
        assert_eq!(texts(&events[before..]).len(), 0);
        assert_eq!(events.iter().filter(|event| event.is_terminal()).count(), 1);
        assert!(events.last().unwrap().is_terminal() && !stream.take(&mut events));
    }
    assert!(cancelled > 0, "it was always over");
    drop((driver, target));
    assert_eq!(reactor.stats(), Stats::default());
    while !server.is_finished() {
        drop(TcpStream::connect(address));
    }
}

#[test]
fn streams_are_cancelled_and_dropped_while_they_are_read() {
    let (address, server) = server(
        |_, mut socket| {
            // Not everybody comes as far as a request; the others are told more than they want.
            if socket.read(&mut [0; 1024]).is_ok_and(|size| size > 0) {
                let _ = socket.write_all(HEAD.as_bytes());
                let tokens = chunk(&token("x", 1)).repeat(100);
                while socket.write_all(tokens.as_bytes()).is_ok() {}
            }
        },
        200,
    );
    let reactor = reactor();
    let driver = reactor.spawn().unwrap();
    let target = reactor.target(config(address));
    for i in 0..200 {
        let mut stream = submit(&target);
        if i % 4 > 0 {
            let bell = Arc::new(Bell::default());
            if poll(&mut stream, &Waker::from(Arc::clone(&bell))).is_none() {
                bell.wait();
            }
        }
        if i % 2 == 0 {
            assert!(stream.cancel());
            let mut events = Vec::new();
            stream.take(&mut events);
            assert_eq!(kinds(&events), ["end"]);
        }
    }
    // Those dropped before they were connected have never been seen by the server.
    drop(driver);
    assert_eq!(reactor.stats(), Stats::default());
    while !server.is_finished() {
        drop(TcpStream::connect(address));
    }
    drop::<Target>(target);
}

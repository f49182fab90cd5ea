//! Streams through the reactor of `worker-adapters-net`, without Python: what the native data plane
//! costs before anything is handed over to another language.
//!
//! ```text
//! reactor_client PORT PATH STREAMS [driver=embedded|thread] [seconds=S] [gather=US]
//! ```
//!
//! `embedded` turns the reactor in the thread that reads the events, `thread` in one of its own.

mod common;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use common::{Arguments, Outcome, Tally, decoder};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_net::origin::Origin;
use worker_adapters_net::{
    Bounds, Driver, EventStream, Reactor, ReactorConfig, Request, Target, TargetConfig,
};

/// Which streams have something to take.
#[derive(Debug)]
struct Ready {
    streams: Mutex<Vec<usize>>,
    reader: Thread,
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, Vec<usize>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct StreamWaker {
    ready: Arc<Ready>,
    at: usize,
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let was_empty = {
            let mut streams = self.ready.lock();
            streams.push(self.at);
            streams.len() == 1
        };
        if was_empty {
            self.ready.reader.unpark();
        }
    }
}

struct Stream {
    events: EventStream,
    waker: Waker,
    has_begun: bool,
    is_over: bool,
}

impl Stream {
    fn submit(target: &Target, path: &str, ready: &Arc<Ready>, at: usize) -> Outcome<Self> {
        let request = Request { method: "POST", path, headers: &[], body: Some(b"{}") };
        let events = target.submit(&request, Box::new(decoder()?), Bounds::default())?;
        let waker = Waker::from(Arc::new(StreamWaker { ready: Arc::clone(ready), at }));
        Ok(Self { events, waker, has_begun: false, is_over: false })
    }

    /// Takes what has come and asks to be woken for more; whether it was the last to begin.
    fn advance(&mut self, tally: &Tally, batch: &mut Vec<TokenEvent>) -> Outcome<bool> {
        let mut all_begun = false;
        let mut context = Context::from_waker(&self.waker);
        while !self.is_over && self.events.poll_batch(&mut context, batch).is_ready() {
            if !self.has_begun {
                self.has_begun = true;
                all_begun = tally.begin();
            }
            match batch.last() {
                Some(TokenEvent::Error(error)) => return Err(error.to_string().into()),
                Some(last) => self.is_over = last.is_terminal(),
                None => return Err("a stream has lost its end".into()),
            }
            tally.count(batch);
        }
        Ok(all_begun)
    }
}

/// Waits until a stream may have something to take.
fn wait(reactor: &Reactor, driver: Option<&Driver>, gather: Duration) -> Outcome {
    const AT_LEAST: Duration = Duration::from_millis(10);
    if !gather.is_zero() {
        thread::sleep(gather);
    }
    if driver.is_some() {
        thread::park_timeout(AT_LEAST);
    } else {
        reactor.turn(Some(AT_LEAST))?;
    }
    Ok(())
}

fn main() -> Outcome {
    let arguments = Arguments::read()?;
    let gather = Duration::from_micros(arguments.number("gather"));
    let seconds = arguments.number("seconds");
    let tally = Tally::new(arguments.streams);
    let reactor = Reactor::new(ReactorConfig::default())?;
    let driver = match arguments.option("driver") {
        Some("thread") => Some(reactor.spawn()?),
        _ => None,
    };
    let (origin, _) = Origin::parse(&format!("http://127.0.0.1:{}", arguments.port))?;
    let mut config = TargetConfig::new(origin);
    config.max_exchanges = arguments.streams;
    let target = reactor.target(config);
    let ready = Arc::new(Ready { streams: Mutex::default(), reader: thread::current() });
    let mut streams = Vec::with_capacity(arguments.streams);
    let mut batch = Vec::new();
    let (mut left, mut until) = (arguments.streams, None);
    let mut woken = Vec::new();
    while left > 0 && until.is_none_or(|until| Instant::now() < until) {
        for at in streams.len()..arguments.streams.min(streams.len() + 256) {
            streams.push(Stream::submit(&target, &arguments.path, &ready, at)?);
            woken.push(at);
        }
        for at in woken.drain(..) {
            let Some(stream) = streams.get_mut(at).filter(|stream| !stream.is_over) else {
                continue;
            };
            if stream.advance(&tally, &mut batch)? && seconds > 0 {
                until = Some(Instant::now() + Duration::from_secs(seconds));
            }
            if stream.is_over {
                left -= 1;
            }
        }
        if ready.lock().is_empty() && left > 0 {
            wait(&reactor, driver.as_ref(), gather)?;
        }
        std::mem::swap(&mut *ready.lock(), &mut woken);
    }
    tally.print();
    Ok(())
}

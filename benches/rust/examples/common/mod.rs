//! What the example clients share: their command line, their decoder, and when CPU is counted.
#![allow(dead_code, reason = "each client uses what it needs")]

use std::collections::HashMap;
use std::error::Error;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::http::ResponseHead;
use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
use worker_adapters_core::time::Instant;

/// Any failure of a benchmark ends it.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// `PORT PATH STREAMS [NAME=VALUE ...]`, as the floor takes them.
#[derive(Clone, Debug)]
pub(crate) struct Arguments {
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) streams: usize,
    options: HashMap<String, String>,
}

impl Arguments {
    /// Reads the command line.
    pub(crate) fn read() -> Outcome<Self> {
        let mut words = std::env::args().skip(1);
        let mut next = || words.next().ok_or("usage: PORT PATH STREAMS [NAME=VALUE ...]");
        let (port, path, streams) = (next()?.parse()?, next()?, next()?.parse()?);
        let options = words
            .filter_map(|word| {
                word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
            })
            .collect();
        Ok(Self { port, path, streams, options })
    }

    /// An option's value.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// An option that is a number; 0 when it is not given.
    pub(crate) fn number(&self, name: &str) -> u64 {
        self.option(name).and_then(|value| value.parse().ok()).unwrap_or(0)
    }
}

/// What has happened so far: CPU and tokens are counted from when every stream has begun.
#[derive(Debug)]
pub(crate) struct Tally {
    streams: usize,
    begun: AtomicUsize,
    tokens: AtomicU64,
    from: OnceLock<(Duration, Duration, u64)>,
}

fn clock(id: ClockId) -> Duration {
    clock_gettime(id).try_into().unwrap_or_default()
}

/// The time, as the decoder wants to be told it.
pub(crate) fn now() -> Instant {
    Instant::default().saturating_add(clock(ClockId::Monotonic))
}

impl Tally {
    /// A tally of `streams` streams.
    pub(crate) fn new(streams: usize) -> Self {
        Self {
            streams,
            begun: AtomicUsize::new(0),
            tokens: AtomicU64::new(0),
            from: OnceLock::new(),
        }
    }

    /// A stream has begun; whether it was the last to.
    pub(crate) fn begin(&self) -> bool {
        let is_last = self.begun.fetch_add(1, Ordering::Relaxed) + 1 == self.streams;
        if is_last {
            let tokens = self.tokens.load(Ordering::Relaxed);
            let _ =
                self.from.set((clock(ClockId::ProcessCPUTime), clock(ClockId::Monotonic), tokens));
        }
        is_last
    }

    /// Counts the tokens of `events` and empties it.
    pub(crate) fn count(&self, events: &mut Vec<TokenEvent>) {
        let tokens = events.iter().filter(|event| matches!(event, TokenEvent::Token(_))).count();
        events.clear();
        self.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// Prints CPU, time and tokens since then as JSON.
    #[expect(clippy::print_stdout, reason = "the result")]
    pub(crate) fn print(&self) {
        let cpu = clock(ClockId::ProcessCPUTime);
        let wall = clock(ClockId::Monotonic);
        let tokens = self.tokens.load(Ordering::Relaxed);
        let (cpu_from, wall_from, tokens_from) = self.from.get().copied().unwrap_or_default();
        println!(
            "{{\"cpu_s\":{:.6},\"wall_s\":{:.6},\"tokens\":{}}}",
            cpu.saturating_sub(cpu_from).as_secs_f64(),
            wall.saturating_sub(wall_from).as_secs_f64(),
            tokens - tokens_from
        );
    }
}

/// A stream's decoder, with the clocks that an adapter would give it.
pub(crate) fn decoder() -> Outcome<StreamDecoder> {
    let mut config = StreamConfig::new("openai");
    config.clocks.first_token = Some(Duration::from_secs(30));
    config.clocks.token_gap = Some(Duration::from_secs(20));
    config.clocks.idle = Some(Duration::from_secs(20));
    config.clocks.deadline = Some(now().saturating_add(Duration::from_secs(600)));
    Ok(StreamDecoder::new(Dialect::new("openai", [])?, config))
}

/// One stream's decoder, its events counted and thrown away.
#[derive(Debug)]
pub(crate) struct Reader {
    decoder: StreamDecoder,
    events: Vec<TokenEvent>,
    has_begun: bool,
}

impl Reader {
    /// The reader of an answer that is an event stream.
    pub(crate) fn new() -> Outcome<Self> {
        let mut decoder = decoder()?;
        let mut events = Vec::new();
        let now = now();
        decoder.dispatched(now);
        let headers: &[(&[u8], &[u8])] = &[(b"content-type", b"text/event-stream")];
        decoder.head(&ResponseHead { status: 200, headers }, now, &mut events);
        Ok(Self { decoder, events, has_begun: false })
    }

    /// Decodes a piece of the body; whether this stream was the last to begin.
    pub(crate) fn feed(&mut self, piece: &[u8], tally: &Tally) -> bool {
        self.decoder.feed(piece, now(), &mut self.events);
        tally.count(&mut self.events);
        !std::mem::replace(&mut self.has_begun, true) && tally.begin()
    }

    /// Fails unless the stream has had its end.
    pub(crate) fn finish(&self) -> Outcome {
        if self.decoder.is_terminal() { Ok(()) } else { Err("a stream did not end".into()) }
    }
}

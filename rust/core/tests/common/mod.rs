//! What the replay tests share: the repository's files, the ways to cut bytes into reads, and a
//! stream from reads to events.

// Each suite uses its part.
#![allow(dead_code)]

use std::path::PathBuf;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;
use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::http::ResponseHead;
use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
use worker_adapters_core::time::Instant;

/// A file of the repository's `tests/` folder.
pub(crate) fn tests_path(relative: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../tests", relative].iter().collect()
}

/// The rows of a JSON lines file.
pub(crate) fn rows(relative: &str) -> Vec<Value> {
    let path = tests_path(relative);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.split('\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The bytes of a base64 field.
pub(crate) fn bytes(row: &Value, field: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(row[field].as_str().unwrap()).unwrap()
}

/// Pseudo-random numbers (SplitMix64): the same cuts on every run.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

/// The places at which to cut once: all of them in short data, in long data those next to a line
/// end and some at random.
pub(crate) fn split_places(data: &[u8], all_up_to: usize, rng: &mut Rng) -> Vec<usize> {
    if data.len() <= all_up_to {
        return (0..=data.len()).collect();
    }
    let ends = (0..data.len()).filter(|at| matches!(data[*at], b'\r' | b'\n'));
    let mut places: Vec<usize> =
        ends.flat_map(|end| end.saturating_sub(1)..=(end + 2).min(data.len())).collect();
    places.dedup();
    while places.len() > 150 {
        let at = rng.below(places.len());
        places.swap_remove(at);
    }
    places.extend((0..50).map(|_| rng.below(data.len() + 1)));
    places
}

/// Cuts `data` at the places, which must be sorted.
pub(crate) fn cut<'d>(data: &'d [u8], places: &[usize]) -> Vec<&'d [u8]> {
    let mut reads = Vec::with_capacity(places.len() + 1);
    let mut from = 0;
    for &place in places {
        reads.push(&data[from..place]);
        from = place;
    }
    reads.push(&data[from..]);
    reads
}

/// Calls `each` with the data whole, byte by byte, cut in two at every place (in data longer than
/// `all_up_to` at sampled places), and cut at random places.
pub(crate) fn every_chunking<'d>(
    data: &'d [u8],
    all_up_to: usize,
    mut each: impl FnMut(&[&'d [u8]]),
) {
    let mut rng = Rng(data.len() as u64);
    each(&[data]);
    each(&data.chunks(1).collect::<Vec<_>>());
    for place in split_places(data, all_up_to, &mut rng) {
        each(&cut(data, &[place]));
    }
    for round in 0..20 {
        let count = [1, 2, 3, 8, 64][round % 5];
        let mut places: Vec<usize> = (0..count).map(|_| rng.below(data.len() + 1)).collect();
        places.sort_unstable();
        each(&cut(data, &places));
    }
}

/// The sizes of the reads, for a failure message.
pub(crate) fn sizes(reads: &[&[u8]]) -> Vec<usize> {
    reads.iter().map(|read| read.len()).take(16).collect()
}

/// The head of a stream, as far as a decoder looks at it.
const STREAM_HEAD: ResponseHead<'static> =
    ResponseHead { status: 200, headers: &[(b"Content-Type", b"text/event-stream")] };

/// Options of a dialect.
pub(crate) type Options<'o> = &'o [(&'o str, &'o str)];

/// Decodes the reads of one response, all at the same instant.
pub(crate) fn decode_stream(
    engine: &str,
    reads: &[&[u8]],
    complete: bool,
) -> (Vec<TokenEvent>, StreamDecoder) {
    decode_with(engine, &[], 200, reads, complete)
}

/// As [`decode_stream`], with options of the dialect, of an answer with this status.
pub(crate) fn decode_with(
    dialect: &str,
    options: Options<'_>,
    status: u16,
    reads: &[&[u8]],
    complete: bool,
) -> (Vec<TokenEvent>, StreamDecoder) {
    let now = Instant::from_secs_f64(0.0);
    let config = StreamConfig::new(dialect);
    let dialect = Dialect::new(dialect, options.iter().copied()).unwrap();
    let mut decoder = StreamDecoder::new(dialect, config);
    let mut events = Vec::new();
    decoder.dispatched(now);
    decoder.head(&ResponseHead { status, ..STREAM_HEAD }, now, &mut events);
    for read in reads {
        decoder.feed(read, now, &mut events);
    }
    decoder.finish(complete, now, &mut events);
    (events, decoder)
}

/// An event as `{kind, data}`.
pub(crate) fn plain(event: &TokenEvent) -> Value {
    let mut out = Vec::new();
    event.write_json(&mut out);
    serde_json::from_slice(&out).unwrap()
}

/// The event log, one JSON object a line, for a failure message.
pub(crate) fn log_of(events: &[TokenEvent]) -> String {
    let lines: Vec<String> = events.iter().map(|event| plain(event).to_string()).collect();
    lines.join("\n")
}

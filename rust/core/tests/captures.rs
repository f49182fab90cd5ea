//! Every recorded stream, cut in many ways, gives exactly the events committed beside it.
//!
//! The expected events come from `tests/captures/derive_events.py`, which shares no code with the
//! decoder. `docs/captures.md` tells what each class of capture is expected to give, and why.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use common::{decode_stream, every_chunking, log_of, plain, rows, sizes, tests_path};
use serde_json::Value;
use worker_adapters_core::event::TokenEvent;

/// Larger bodies are cut around their line ends and at random places only. Without optimisation
/// every split of every body takes minutes.
const ALL_SPLITS_UP_TO: usize = if cfg!(debug_assertions) { 2 << 10 } else { 6 << 10 };

struct Capture {
    name: String,
    engine: &'static str,
    chunks: Vec<Vec<u8>>,
    complete: bool,
}

/// Undoes HTTP/1.1 chunked coding: the chunks, and whether the last-chunk came.
fn dechunk(mut raw: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut chunks = Vec::new();
    while let Some(end) = raw.windows(2).position(|pair| pair == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&raw[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return (chunks, true);
        }
        let rest = &raw[end + 2..];
        chunks.push(rest[..size.min(rest.len())].to_vec());
        raw = rest.get(size + 2..).unwrap_or_default();
    }
    (chunks, false)
}

fn dialect_of(path: &str) -> &'static str {
    match path.split('?').next() {
        Some("/completion" | "/v1/stream") => "llamacpp",
        Some("/v1/completions" | "/v1/chat/completions" | "/v1/messages" | "/v1/responses") => {
            "openai"
        }
        other => panic!("no dialect for {other:?}"),
    }
}

/// All streaming captures: those with expected events.
fn captures() -> Vec<Capture> {
    let folder = tests_path("captures/llamacpp");
    let mut captures = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let Some(name) = file.strip_suffix(".events.jsonl") else { continue };
        let http = std::fs::read(folder.join(format!("{name}.http"))).unwrap();
        let body = http.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let request = std::fs::read(folder.join(format!("{name}.request"))).unwrap();
        let target = request.split(|byte| *byte == b' ').nth(1).unwrap();
        let (chunks, complete) = dechunk(&http[body..]);
        captures.push(Capture {
            name: name.to_owned(),
            engine: dialect_of(std::str::from_utf8(target).unwrap()),
            chunks,
            complete,
        });
    }
    captures.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(captures.len(), 71);
    captures
}

/// The event without what no expectation holds: times, and messages that the library words.
fn comparable(event: &TokenEvent, want: &Value) -> Value {
    let mut event = plain(event);
    let data = event["data"].as_object_mut().unwrap();
    for timed in ["decode_ms", "decode_time_ms", "latency_first_token_ms"] {
        data.remove(timed);
    }
    if let Some(Value::String(message)) = data.remove("message") {
        assert!(!message.is_empty());
        let quoted = want["data"].get("message");
        if let Some(quoted) = quoted.filter(|quoted| message.contains(quoted.as_str().unwrap())) {
            data.insert("message".into(), quoted.clone());
        }
    }
    event
}

fn check(name: &str, events: &[TokenEvent]) {
    let want = rows(&format!("captures/llamacpp/{name}.events.jsonl"));
    let log = || log_of(events);
    for (at, (event, want)) in events.iter().zip(&want).enumerate() {
        assert_eq!(comparable(event, want), *want, "{name}, event {at}; got\n{}", log());
    }
    assert_eq!(events.len(), want.len(), "{name}; got\n{}", log());
}

#[test]
fn every_capture_in_every_chunking() {
    for Capture { name, engine, chunks, complete } in captures() {
        let body = chunks.concat();
        let whole = decode_stream(engine, &[&body], complete).0;
        check(&name, &whole);
        let same = |reads: &[&[u8]]| {
            let got = decode_stream(engine, reads, complete).0;
            assert!(got == whole, "{name} in reads of {:?}; got\n{}", sizes(reads), log_of(&got));
        };
        same(&chunks.iter().map(Vec::as_slice).collect::<Vec<_>>());
        every_chunking(&body, ALL_SPLITS_UP_TO, same);
    }
}

#[test]
fn cut_off_at_every_byte_the_events_are_a_prefix_and_one_terminal() {
    for Capture { name, engine, chunks, .. } in captures() {
        if !["completion_stream_greedy", "v1_chat_stream_usage"].contains(&name.as_str()) {
            continue;
        }
        let body = chunks.concat();
        let full = decode_stream(engine, &[&body], true).0;
        assert_eq!(full.last().unwrap().kind(), "end");
        // `end` needs all of the frame that carries the finish signal. `[DONE]` alone counts
        // without its blank line, for there are servers that leave it out.
        let signal: &[u8] = if engine == "openai" { b"data: [DONE]" } else { b"\"stop\":true" };
        let at = body.windows(signal.len()).position(|part| part == signal).unwrap();
        let needed = if engine == "openai" { at + signal.len() } else { body.len() };
        for length in 0..=body.len() {
            let (events, decoder) = decode_stream(engine, &[&body[..length]], true);
            let log = || format!("{name} cut at {length}; got\n{}", log_of(&events));
            let (last, before) = events.split_last().unwrap();
            assert!(full.starts_with(before), "{}", log());
            if length >= needed {
                assert!(events == full, "{}", log());
                continue;
            }
            let TokenEvent::Error(error) = last else { panic!("{}", log()) };
            assert_eq!(error.code.as_str(), "WORKER_RESET", "{}", log());
            assert_eq!(error.detail.as_str(), "truncated", "{}", log());
            let n = |event: &TokenEvent| match event {
                TokenEvent::Token(token) => u64::from(token.n),
                _ => 0,
            };
            assert_eq!(error.tokens_emitted, before.iter().map(n).sum::<u64>(), "{}", log());
            assert_eq!(error.tokens_emitted, decoder.tokens_emitted(), "{}", log());
        }
    }
}

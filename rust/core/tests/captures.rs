//! Every recorded answer, cut in many ways, gives exactly the events committed beside it.
//!
//! The expected events come from `tests/captures/derive_events`, which shares no code with the
//! decoder. `docs/captures.md` tells what each class of capture is expected to give, and why.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::collections::BTreeMap;

use common::{decode_with, every_chunking, log_of, plain, rows, sizes, tests_path};
use serde_json::Value;
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::stream::StreamDecoder;

const ENGINES: [&str; 5] = ["llamacpp", "sglang", "tgi", "triton", "vllm"];

/// Larger bodies are cut around their line ends and at random places only. Without optimisation
/// every split of every body takes minutes.
const ALL_SPLITS_UP_TO: usize = if cfg!(debug_assertions) { 1 << 10 } else { 6 << 10 };

/// With everything that a dialect can tell of a token.
const DETAILS: [(&str, &str); 2] = [("token_ids", "true"), ("logprobs", "true")];

struct Capture {
    /// `ENGINE/NAME`.
    name: String,
    dialect: &'static str,
    options: Vec<(&'static str, &'static str)>,
    status: u16,
    chunks: Vec<Vec<u8>>,
    complete: bool,
}

impl Capture {
    fn decode(&self, reads: &[&[u8]]) -> (Vec<TokenEvent>, StreamDecoder) {
        decode_with(self.dialect, &self.options, self.status, reads, self.complete)
    }

    fn file(&self, extension: &str) -> String {
        format!("captures/{}.{extension}", self.name)
    }
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

/// The status of the final answer, whether its body is chunked, and the body.
fn answer(mut raw: &[u8]) -> (u16, bool, &[u8]) {
    loop {
        let end = raw.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = std::str::from_utf8(&raw[..end]).unwrap().to_ascii_lowercase();
        raw = &raw[end + 4..];
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        if status >= 200 {
            return (status, head.contains("transfer-encoding: chunked"), raw);
        }
    }
}

fn dialect_of(engine: &str, path: &str) -> (&'static str, Vec<(&'static str, &'static str)>) {
    let route = path.split('?').next().unwrap();
    match (engine, route) {
        (_, "/v1/completions" | "/v1/chat/completions" | "/v1/messages" | "/v1/responses") => {
            ("openai", Vec::new())
        }
        ("llamacpp", "/completion" | "/v1/stream") => ("llamacpp", Vec::new()),
        ("sglang", "/generate") => ("sglang", Vec::new()),
        ("tgi", "/generate_stream") => ("tgi", Vec::new()),
        ("triton", _) => match route.split('/').nth(3).unwrap() {
            "tensorrt_llm_bls_accum" | "tensorrt_llm" => ("triton", vec![("text", "accumulated")]),
            _ => ("triton", vec![("text", "delta")]),
        },
        other => panic!("no dialect for {other:?}"),
    }
}

/// All captures with expected events.
fn captures() -> Vec<Capture> {
    let mut captures = Vec::new();
    for engine in ENGINES {
        let folder = tests_path(&format!("captures/{engine}"));
        for entry in std::fs::read_dir(&folder).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            let Some(name) = file.strip_suffix(".events.jsonl") else { continue };
            let http = std::fs::read(folder.join(format!("{name}.http"))).unwrap();
            let request = std::fs::read(folder.join(format!("{name}.request"))).unwrap();
            let target = request.split(|byte| *byte == b' ').nth(1).unwrap();
            let (dialect, options) = dialect_of(engine, std::str::from_utf8(target).unwrap());
            let (status, is_chunked, body) = answer(&http);
            let (chunks, complete) =
                if is_chunked { dechunk(body) } else { (vec![body.to_vec()], true) };
            let name = format!("{engine}/{name}");
            captures.push(Capture { name, dialect, options, status, chunks, complete });
        }
    }
    captures.sort_by(|a, b| a.name.cmp(&b.name));
    captures
}

fn streams() -> Vec<Capture> {
    captures().into_iter().filter(|capture| capture.status == 200).collect()
}

#[test]
fn all_captures_are_here() {
    let mut counts = BTreeMap::new();
    for capture in captures() {
        let engine = capture.name.split('/').next().unwrap().to_owned();
        *counts.entry((engine, capture.status == 200)).or_insert(0) += 1;
    }
    let counts: Vec<_> =
        counts.iter().map(|((engine, is_stream), n)| (engine.as_str(), *is_stream, *n)).collect();
    let expected = [
        ("llamacpp", false, 26),
        ("llamacpp", true, 71),
        ("sglang", false, 13),
        ("sglang", true, 35),
        ("tgi", false, 3),
        ("tgi", true, 27),
        ("triton", false, 44),
        ("triton", true, 59),
        ("vllm", false, 97),
        ("vllm", true, 171),
    ];
    assert_eq!(counts, expected);
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

fn check(file: &str, events: &[TokenEvent]) {
    let want = rows(file);
    let log = || log_of(events);
    for (at, (event, want)) in events.iter().zip(&want).enumerate() {
        assert_eq!(comparable(event, want), *want, "{file}, event {at}; got\n{}", log());
    }
    assert_eq!(events.len(), want.len(), "{file}; got\n{}", log());
}

#[test]
fn every_stream_in_every_chunking() {
    for capture in streams() {
        let name = &capture.name;
        let body = capture.chunks.concat();
        let whole = capture.decode(&[&body]).0;
        check(&capture.file("events.jsonl"), &whole);
        let same = |reads: &[&[u8]]| {
            let got = capture.decode(reads).0;
            assert!(got == whole, "{name} in reads of {:?}; got\n{}", sizes(reads), log_of(&got));
        };
        same(&capture.chunks.iter().map(Vec::as_slice).collect::<Vec<_>>());
        every_chunking(&body, ALL_SPLITS_UP_TO, same);
    }
}

#[test]
fn details_of_tokens() {
    let mut count = 0;
    for mut capture in streams() {
        let file = capture.file("details.jsonl");
        if tests_path(&file).exists() {
            capture.options.extend(DETAILS);
            let body = capture.chunks.concat();
            let whole = capture.decode(&[&body]).0;
            check(&file, &whole);
            let bytes: Vec<_> = body.chunks(1).collect();
            assert!(capture.decode(&bytes).0 == whole, "{}", capture.name);
            count += 1;
        }
    }
    assert_eq!(count, 84);
}

#[test]
fn an_answer_with_an_error_status_is_one_error() {
    for capture in captures().into_iter().filter(|capture| capture.status != 200) {
        let reads: Vec<_> = capture.chunks.iter().map(Vec::as_slice).collect();
        let events = capture.decode(&reads).0;
        let want = rows(&capture.file("events.jsonl"));
        let log = || format!("{}; got\n{}", capture.name, log_of(&events));
        let ([event], [want]) = (events.as_slice(), want.as_slice()) else { panic!("{}", log()) };
        let got = comparable(event, want);
        for (key, value) in want["data"].as_object().unwrap() {
            assert_eq!(&got["data"][key], value, "{key} of {}", log());
        }
    }
}

#[test]
fn sglang_finds_its_mode_out_as_if_it_had_been_told() {
    for capture in streams() {
        if capture.dialect != "sglang" {
            continue;
        }
        let mode = if capture.name.contains("0520inc") { "delta" } else { "cumulative" };
        let body = capture.chunks.concat();
        let options = [&DETAILS[..], &[("text", mode)]].concat();
        let told = decode_with("sglang", &options, 200, &[&body], capture.complete).0;
        let found = decode_with("sglang", &DETAILS, 200, &[&body], capture.complete).0;
        assert!(found == told, "{} {mode}; got\n{}", capture.name, log_of(&found));
    }
}

/// One golden stream per dialect, and the frame that ends it.
const GOLDEN: [(&str, &str); 7] = [
    ("llamacpp/completion_stream_greedy", "\"stop\":true"),
    ("llamacpp/v1_chat_stream_usage", "data: [DONE]"),
    ("vllm/vllm032-chat-contusage-stream", "data: [DONE]"),
    ("sglang/sglang0520-generate-regex-utf8-cut-stream", "data: [DONE]"),
    ("sglang/sglang0520inc-generate-stop-stream", "data: [DONE]"),
    ("tgi/tgi337-stream-keep-alive", "\"generated_text\":\""),
    // The end is that of the body, which never comes here.
    ("triton/llmapi_stream_split_utf8", ""),
];

#[test]
fn cut_off_at_every_byte_the_events_are_a_prefix_and_one_terminal() {
    let mut count = 0;
    for mut capture in streams() {
        let name = capture.name.clone();
        let Some((_, signal)) = GOLDEN.iter().find(|(golden, _)| *golden == name) else { continue };
        count += 1;
        let body = capture.chunks.concat();
        let full = capture.decode(&[&body]).0;
        assert_eq!(full.last().unwrap().kind(), "end");
        // `end` needs all of the frame that carries the finish signal. `[DONE]` alone counts
        // without its blank line, for there are servers that leave it out.
        let needed = if signal.is_empty() {
            capture.complete = false;
            usize::MAX
        } else {
            let signal = signal.as_bytes();
            let at = body.windows(signal.len()).position(|part| part == signal).unwrap();
            if signal.ends_with(b"]") { at + signal.len() } else { body.len() }
        };
        for length in 0..=body.len() {
            let (events, decoder) = capture.decode(&[&body[..length]]);
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
    assert_eq!(count, GOLDEN.len());
}

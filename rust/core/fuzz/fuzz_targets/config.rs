//! What callers configure: tasks as JSON, patterns of an egress policy, options of a dialect. What
//! is accepted is written and read again as the same; nothing panics.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::egress::{EgressPolicy, Ranges};
use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
use worker_adapters_core::task::{Extensions, TaskRequest};
use worker_adapters_core::time::Instant;
use worker_adapters_fuzz::assert_law;

static NO_EXTENSIONS: LazyLock<Extensions> = LazyLock::new(Extensions::default);
static EVERY_EXTENSION: LazyLock<Extensions> = LazyLock::new(|| Extensions::all([]));

fn check_task(json: &[u8]) {
    let plain = TaskRequest::from_json(json, &NO_EXTENSIONS);
    let by_serde = serde_json::from_slice::<TaskRequest>(json);
    assert_eq!(plain.as_ref().ok(), by_serde.as_ref().ok());
    let extended = TaskRequest::from_json(json, &EVERY_EXTENSION);
    assert!(plain.is_err() || extended.is_ok(), "an extension takes something away");
    let Ok(task) = extended else { return };
    let written = task.to_json();
    assert_eq!(TaskRequest::from_json(written.as_bytes(), &EVERY_EXTENSION), Ok(task));
}

fn check_policy(text: &str) {
    let ranges = Ranges::default();
    let Ok(policy) = EgressPolicy::new(text.lines(), ranges) else { return };
    let patterns: Vec<String> = policy.patterns().collect();
    assert_eq!(EgressPolicy::new(&patterns, ranges), Ok(policy), "{patterns:?}");
}

fn check_dialect(text: &str) {
    let mut lines = text.lines();
    let name = lines.next().unwrap_or_default();
    let options: Vec<(&str, &str)> =
        lines.by_ref().map_while(|line| line.split_once('=')).collect();
    let Ok(dialect) = Dialect::new(name, options) else { return };
    let mut decoder = StreamDecoder::new(dialect, StreamConfig::new(name));
    let mut events = Vec::new();
    for line in text.lines() {
        let frame = format!("data: {line}\n\n");
        decoder.feed(frame.as_bytes(), Instant::default(), &mut events);
    }
    decoder.finish(true, Instant::default(), &mut events);
    assert_law(&events);
}

fuzz_target!(|data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    match (which % 3, std::str::from_utf8(rest)) {
        (0, _) => check_task(rest),
        (1, Ok(text)) => check_policy(text),
        (2, Ok(text)) => check_dialect(text),
        _ => {}
    }
});

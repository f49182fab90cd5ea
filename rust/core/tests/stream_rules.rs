//! The rules of a stream that no capture shows: every row of `stream_rules.jsonl` in every
//! chunking.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use common::{decode_with, every_chunking, log_of, plain, rows, sizes};
use serde_json::{Map, Value};
use worker_adapters_core::event::TokenEvent;

fn data_of(event: &TokenEvent) -> Map<String, Value> {
    let Value::Object(mut data) = plain(event)["data"].take() else { panic!("data is an object") };
    for timed in ["decode_ms", "decode_time_ms", "latency_first_token_ms"] {
        data.remove(timed);
    }
    data
}

/// Whether the event is what the row says; of an error, as far as it says.
fn is_as(event: &TokenEvent, want: &Value) -> bool {
    let data = data_of(event);
    let wanted = want["data"].as_object().unwrap();
    event.kind() == want["kind"]
        && if event.kind() == "error" {
            wanted.iter().all(|(key, value)| data.get(key) == Some(value))
        } else {
            data == *wanted
        }
}

#[test]
fn every_rule_in_every_chunking() {
    for row in rows("vectors/stream_rules.jsonl") {
        let (name, engine) = (&row["name"], row["engine"].as_str().unwrap());
        let body = row["body"].as_str().unwrap().as_bytes();
        let complete = row.get("complete").is_none_or(|complete| *complete == true);
        let want = row["events"].as_array().unwrap();
        let options: Vec<(&str, &str)> = row.get("options").map_or_else(Vec::new, |options| {
            let options = options.as_object().unwrap();
            options.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap())).collect()
        });
        let decode = |reads: &[&[u8]]| decode_with(engine, &options, 200, reads, complete);
        let (whole, decoder) = decode(&[body]);
        let log = log_of(&whole);
        assert_eq!(whole.len(), want.len(), "{name}; got\n{log}");
        for (event, want) in whole.iter().zip(want) {
            assert!(is_as(event, want), "{name}: expected {want}; got\n{log}");
        }
        let count = |key| row.get(key).map_or(0, |count| count.as_u64().unwrap());
        assert_eq!(decoder.dropped_after_end(), count("dropped_after_end"), "{name}\n{log}");
        assert_eq!(decoder.dropped_choices(), count("dropped_choices"), "{name}\n{log}");
        every_chunking(body, 2048, |reads| {
            let got = decode(reads).0;
            assert!(got == whole, "{name} in reads of {:?}; got\n{}", sizes(reads), log_of(&got));
        });
    }
}

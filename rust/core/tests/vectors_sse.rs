//! Every conformance vector of the event stream format in every chunking, and the decoder against
//! a slow literal reading of the standard on hostile input.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;
#[path = "common/reference_sse.rs"]
mod reference_sse;

use common::{Rng, bytes, cut, every_chunking, rows, sizes};
use proptest::collection::vec;
use proptest::prelude::*;
use reference_sse::{Parsed, parse};
use serde_json::Value;
use worker_adapters_core::sse::{SseDecoder, SseItem};

/// Long vectors are cut around their line ends and at random places only.
const ALL_SPLITS_UP_TO: usize = 4096;

fn decode(reads: &[&[u8]]) -> Parsed {
    let mut decoder = SseDecoder::new();
    let mut events = Vec::new();
    let mut unknown = Vec::new();
    for read in reads {
        let fed = decoder.feed(read, |item| match item {
            SseItem::Event(event) => {
                let [name, data, id] = [event.event, event.data, event.id].map(str::to_owned);
                events.push((name, data, id, event.retry));
            }
            SseItem::UnknownLine(line) => unknown.push(line.to_owned()),
        });
        fed.unwrap();
    }
    decoder.finish();
    assert_eq!(unknown, decoder.unknown_lines());
    Parsed {
        events,
        last_event_id: decoder.last_event_id().to_owned(),
        retry: decoder.retry(),
        unknown_lines: unknown,
        eof_pending: decoder.eof_pending().map(str::to_owned),
        eof_partial: decoder.eof_partial().map(str::to_owned),
    }
}

/// Panics where the vector says otherwise. `"*"` of a vector is not compared.
fn check(row: &Value, got: &Parsed, how: &str) {
    let name = &row["name"];
    let same = |want: &Value, have: Value, what: &str| {
        assert!(*want == "*" || *want == have, "{name} {how}: {what} {have}, expected {want}");
    };
    let expect = row["expect"].as_array().unwrap();
    assert_eq!(got.events.len(), expect.len(), "{name} {how}: {:?}", got.events);
    for (event, want) in got.events.iter().zip(expect) {
        same(&want["event"], event.0.as_str().into(), "event");
        same(&want["data"], event.1.as_str().into(), "data");
        same(&want["id"], event.2.as_str().into(), "id");
        same(&want["retry"], event.3.into(), "retry");
    }
    same(&row["end_id"], got.last_event_id.as_str().into(), "end_id");
    same(&row["end_retry"], got.retry.into(), "end_retry");
    same(&row["eof_pending"], got.eof_pending.clone().into(), "eof_pending");
    same(&row["eof_partial"], got.eof_partial.clone().into(), "eof_partial");
    same(&row["unknown_lines"], got.unknown_lines.clone().into(), "unknown_lines");
}

#[test]
fn every_vector_in_every_chunking() {
    let rows = rows("vectors/sse.jsonl");
    assert_eq!(rows.len(), 135);
    for row in rows {
        assert_eq!(row["chunks"], "any");
        let data = bytes(&row, "input_b64");
        check(&row, &parse(&data), "by the reference");
        every_chunking(&data, ALL_SPLITS_UP_TO, |reads| {
            check(&row, &decode(reads), &format!("in reads of {:?}", sizes(reads)));
        });
    }
}

/// What decides anything: line ends, colons, spaces, field names and near misses of them, byte
/// order marks, NUL, digits, and UTF-8 sound, cut off, overlong and out of range.
const PIECES: [&[u8]; 52] = [
    b"\n",
    b"\n",
    b"\n\n",
    b"\r",
    b"\r",
    b"\r\n",
    b"\r\n\r\n",
    b"\r\r",
    b":",
    b": ",
    b" ",
    b"  ",
    b"data",
    b"data:",
    b"data: ",
    b"data: x\n",
    b"data: x\n\n",
    b"data:\n",
    b"event: e\n",
    b"event",
    b"event:",
    b"id: 7\n",
    b"id",
    b"id\n",
    b"id: a\0b\n",
    b"retry: 10\n",
    b"retry",
    b"retry: 1x\n",
    b"retry:0\n",
    b"dat",
    b"Data: y\n",
    b"datax: y\n",
    b"error: {}\n",
    b"[DONE]",
    b": comment\n",
    b"\0",
    b"0",
    b"9",
    b"\xef\xbb\xbf",
    b"\xef",
    b"\xef\xbb",
    b"\xbb\xbf",
    "é".as_bytes(),
    "🙂".as_bytes(),
    b"\xf0\x9f",
    b"\xe2\x82",
    b"\x80",
    b"\xff",
    b"\xc0\x8a",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    "\u{2028}".as_bytes(),
];

fn streams() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => (0..PIECES.len()).prop_map(|at| PIECES[at].to_vec()),
        1 => vec(any::<u8>(), 0..4),
    ];
    vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_decoder_equals_the_reference_in_any_chunking(stream in streams(), seed: u64) {
        let want = parse(&stream);
        prop_assert_eq!(&decode(&[&stream]), &want);
        prop_assert_eq!(&decode(&stream.chunks(1).collect::<Vec<_>>()), &want);
        let mut rng = Rng(seed);
        for count in [1, 2, 5] {
            let mut places: Vec<usize> = (0..count).map(|_| rng.below(stream.len() + 1)).collect();
            places.sort_unstable();
            let reads = cut(&stream, &places);
            prop_assert_eq!(&decode(&reads), &want, "in reads of {:?}", sizes(&reads));
        }
    }
}

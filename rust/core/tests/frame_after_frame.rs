//! What a frame means must not depend on what the decoder learnt from the frames before it.
//!
//! Frames that repeat the one before take a short cut through the decoder. Here real frames are
//! damaged in every place and decoded twice: behind frames of their kind, and first in a stream,
//! where no short cut is. Both must find the same text or the same fault.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use common::{bytes, decode_with, log_of, rows};
use worker_adapters_core::event::{TokenDetail, TokenEvent};

/// Frames as engines send them, several of a kind.
const FRAMES: [(&str, [&str; 3]); 15] = [
    (
        "llamacpp",
        [
            r#"{"index":0,"content":" there","tokens":[369],"stop":false,"id_slot":-1,"tokens_predicted":1,"tokens_evaluated":8}"#,
            r#"{"index":0,"content":" was","tokens":[372],"stop":false,"id_slot":-1,"tokens_predicted":2,"tokens_evaluated":8}"#,
            r#"{"index":0,"content":"é\n\"","tokens":[179],"stop":false,"id_slot":-1,"tokens_predicted":10,"tokens_evaluated":8}"#,
        ],
    ),
    (
        "llamacpp",
        [
            r#"{"content":"a","stop":false}"#,
            r#"{"content":"","stop":false}"#,
            r#"{"content":"bc","stop":false}"#,
        ],
    ),
    (
        "llamacpp",
        [
            r#"{"tokens_predicted":1,"tokens":[1.5],"content":"a","stop":false}"#,
            r#"{"tokens_predicted":2,"tokens":[-3],"content":"b","stop":false}"#,
            r#"{"tokens_predicted":3,"tokens":[],"content":"c","stop":false}"#,
        ],
    ),
    (
        "openai",
        [
            r#"{"choices":[{"text":" there","index":0,"logprobs":null,"finish_reason":null}],"model":"m"}"#,
            r#"{"choices":[{"text":" was","index":0,"logprobs":null,"finish_reason":null}],"model":"m"}"#,
            r#"{"choices":[{"text":"\ud83d\ude42","index":0,"logprobs":null,"finish_reason":null}],"model":"m"}"#,
        ],
    ),
    (
        "openai",
        [
            r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"content":" hello"}}],"model":"m"}"#,
            r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"!"}}],"model":"m"}"#,
            r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"content":" x\\"}}],"model":"m"}"#,
        ],
    ),
    (
        "openai",
        [
            r#"{"choices":[{"index":0,"delta":{"reasoning":"h","reasoning_content":null}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"reasoning":"i","reasoning_content":null}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"reasoning":"jk","reasoning_content":null}}]}"#,
        ],
    ),
    (
        "openai",
        [
            r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"completion_tokens":1}}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"b"}}],"usage":{"completion_tokens":2}}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"c"}}],"usage":{"completion_tokens":4}}"#,
        ],
    ),
    // The same token again: its details must not get lost because nothing else differs.
    (
        "openai",
        [
            r#"{"choices":[{"index":0,"text":"a","token_ids":[7,8]}]}"#,
            r#"{"choices":[{"index":0,"text":"a","token_ids":[7,8]}]}"#,
            r#"{"choices":[{"index":0,"text":"b","token_ids":[7,8]}]}"#,
        ],
    ),
    (
        "openai",
        [
            r#"{"choices":[{"index":0,"text":"a","logprobs":{"tokens":["a","b"],"token_logprobs":[0,-1]}}]}"#,
            r#"{"choices":[{"index":0,"text":"a","logprobs":{"tokens":["a","b"],"token_logprobs":[0,-1]}}]}"#,
            r#"{"choices":[{"index":0,"text":"b","logprobs":{"tokens":["a","b"],"token_logprobs":[0,-1]}}]}"#,
        ],
    ),
    (
        "openai",
        [
            r#"{"choices":[{"index":0,"delta":{"role":null,"content":"a"},"logprobs":null,"token_ids":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{"role":null,"content":"b"},"logprobs":null,"token_ids":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{"role":null,"content":"c"},"logprobs":null,"token_ids":null}]}"#,
        ],
    ),
    (
        "llamacpp",
        [
            r#"{"content":"a","tokens":[7],"stop":false,"tokens_predicted":1,"completion_probabilities":[{"id":7,"prob":1.0}]}"#,
            r#"{"content":"a","tokens":[7],"stop":false,"tokens_predicted":2,"completion_probabilities":[{"id":7,"prob":1.0}]}"#,
            r#"{"content":"b","tokens":[7],"stop":false,"tokens_predicted":3,"completion_probabilities":[{"id":7,"prob":1.0}]}"#,
        ],
    ),
    (
        "tgi",
        [
            r#"{"index":1,"token":{"id":13,"text":" a","logprob":-0.5,"special":false},"generated_text":null,"details":null}"#,
            r#"{"index":2,"token":{"id":14,"text":" b","logprob":-1,"special":false},"generated_text":null,"details":null}"#,
            r#"{"index":10,"token":{"id":2,"text":"é\n","logprob":-1.5e-7,"special":false},"generated_text":null,"details":null}"#,
        ],
    ),
    (
        "tgi",
        [
            r#"{"token":{"id":13,"text":" a","logprob":-0.5,"special":false},"generated_text":null,"details":null}"#,
            r#"{"token":{"id":14,"text":" b","logprob":-1.0,"special":false},"generated_text":null,"details":null}"#,
            r#"{"token":{"id":2,"text":"c","logprob":0,"special":false},"generated_text":null,"details":null}"#,
        ],
    ),
    (
        "tgi",
        [
            r#"{"index":1,"token":{"id":1,"text":"<s>","logprob":-0.5,"special":true},"top_tokens":[{"id":1,"text":"a","logprob":-1}]}"#,
            r#"{"index":2,"token":{"id":1,"text":"a","logprob":-0.5,"special":true},"top_tokens":[{"id":1,"text":"a","logprob":-1}]}"#,
            r#"{"index":3,"token":{"id":1,"text":"b","logprob":-0.5,"special":true},"top_tokens":[{"id":1,"text":"a","logprob":-1}]}"#,
        ],
    ),
    (
        "tgi",
        [
            r#"{"token":{"special":false,"logprob":-1,"text":"a","id":1},"index":"x"}"#,
            r#"{"token":{"special":false,"logprob":-1,"text":"b","id":2},"index":"x"}"#,
            r#"{"token":{"special":false,"logprob":-1,"text":"c","id":3},"index":"x"}"#,
        ],
    ),
];

type Pairs = &'static [(&'static str, &'static str)];

/// With and without what a dialect can tell of a token beside its text.
const OPTIONS: [Pairs; 3] =
    [&[], &[("token_ids", "true"), ("logprobs", "true")], &[("token_ids", "true")]];

/// What is put in the place of a byte, or before it. The whole values aim at fields.
const DAMAGE: [&[u8]; 28] = [
    b"",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b" ",
    b"0",
    b"1",
    b"9",
    b"-",
    b".",
    b"e",
    b"n",
    b"\t",
    b"\0",
    b"\xff",
    b"\xc3",
    "é".as_bytes(),
    b"\\u0041",
    b"\\ud800",
    b"\\x",
    b"\",\"content\":\"Z",
    b"null",
    b"\"error\":{\"message\":\"x\",\"code\":500},",
];

/// What a frame came to, apart from numbering: a text with its channel, or the end's or error's
/// word; and what it tells of tokens.
type Means = Vec<(String, TokenDetail)>;

/// What the frames came to, and how many tokens had been emitted after them.
fn meaning(events: &[TokenEvent]) -> (Means, u64) {
    let mut emitted = 0;
    let means = events.iter().filter_map(|event| match event {
        TokenEvent::Token(token) => {
            emitted += u64::from(token.n);
            let text = format!("{} {:?}", token.channel, token.t.as_str());
            Some((text, token.detail.as_deref().cloned().unwrap_or_default()))
        }
        TokenEvent::End(end) => {
            Some((format!("end {:?}", end.finish_reason), TokenDetail::default()))
        }
        TokenEvent::Error(error) => Some((error.detail.to_string(), TokenDetail::default())),
        _ => None,
    });
    (means.collect(), emitted)
}

/// Whether a frame came to the same behind others as alone. Tokens of frames that showed no text
/// add to the next event, and with them what was told of them.
fn is_same(behind: &Means, alone: &Means) -> bool {
    behind.len() == alone.len()
        && behind.iter().zip(alone).all(|((text, detail), (wanted, least))| {
            text == wanted
                && detail.ids.ends_with(&least.ids)
                && detail.logprobs.ends_with(&least.logprobs)
        })
}

fn stream_of(frames: &[&[u8]]) -> Vec<u8> {
    frames.iter().flat_map(|frame| [b"data: ", *frame, b"\n\n"].concat()).collect()
}

fn decode(engine: &str, options: &[(&str, &str)], frames: &[&[u8]]) -> Vec<TokenEvent> {
    decode_with(engine, options, 200, &[&stream_of(frames)], true).0
}

/// Decodes `frame` first in a stream and behind `before`, and compares.
fn compare(engine: &str, options: &[(&str, &str)], before: &[&[u8]], frame: &[u8]) {
    let (fresh, _) = meaning(&decode(engine, options, &[frame]));
    let prefix = decode(engine, options, before);
    let (told, emitted_before) = meaning(&prefix[..prefix.len() - 1]);
    let events = decode(engine, options, &[before, &[frame]].concat());
    let (means, emitted) = meaning(&events);
    let what = || format!("{:?}; got\n{}", String::from_utf8_lossy(frame), log_of(&events));
    assert_eq!(means[..told.len()], told, "{}", what());
    let behind = means[told.len()..].to_vec();
    assert!(is_same(&behind, &fresh), "{fresh:?}: {}", what());
    assert!(emitted >= emitted_before, "{}", what());
}

/// Every kind of frames, with and without details.
fn each_kind() -> impl Iterator<Item = ((&'static str, [&'static str; 3]), Pairs)> {
    FRAMES.into_iter().flat_map(|frames| {
        // In TGI's frames ids and log probabilities stand side by side.
        let options = OPTIONS.into_iter().take(if frames.0 == "tgi" { 3 } else { 2 });
        options.map(move |options| (frames, options))
    })
}

#[test]
fn a_damaged_frame_means_the_same_behind_others() {
    for ((engine, [one, two, last]), options) in each_kind() {
        let before = [one.as_bytes(), two.as_bytes()];
        let frame = last.as_bytes();
        compare(engine, options, &before, frame);
        for at in 0..=frame.len() {
            compare(engine, options, &before, &frame[..at]);
            for damage in DAMAGE {
                let inserted = [&frame[..at], damage, &frame[at..]].concat();
                compare(engine, options, &before, &inserted);
                if at < frame.len() {
                    let replaced = [&frame[..at], damage, &frame[at + 1..]].concat();
                    compare(engine, options, &before, &replaced);
                }
            }
        }
    }
}

#[test]
fn a_damaged_frame_is_not_learnt_from() {
    // The frame behind a damaged but still valid one is read as if it came first.
    for ((engine, [one, two, last]), options) in each_kind() {
        let frame = two.as_bytes();
        for at in 0..frame.len() {
            for damage in DAMAGE {
                let damaged = [&frame[..at], damage, &frame[at + 1..]].concat();
                let alone = decode(engine, options, &[&damaged]);
                let TokenEvent::Error(error) = alone.last().unwrap() else { continue };
                if error.detail.as_str() == "truncated" {
                    compare(engine, options, &[one.as_bytes(), &damaged], last.as_bytes());
                }
            }
        }
    }
}

#[test]
fn a_json_vector_means_the_same_behind_itself_and_behind_a_text() {
    for row in rows("vectors/json_fields.jsonl") {
        let document = bytes(&row, "doc_b64");
        if document.len() > 60_000 || document.contains(&b'\n') || document.contains(&b'\r') {
            continue; // several data lines, or nothing new for its size
        }
        let text: &[u8] = br#"{"choices":[{"text":"a"}]}"#;
        compare("openai", &[], &[text, text], &document);
        let alone = decode("openai", &[], &[&document]);
        if matches!(alone.last(), Some(TokenEvent::Error(error)) if error.detail.as_str() == "truncated")
        {
            compare("openai", &[], &[&document, &document], &document);
        }
    }
}

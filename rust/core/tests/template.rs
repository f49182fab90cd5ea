//! A frame is read the same whether or not the frame before it was like it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use proptest::prelude::*;
use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
use worker_adapters_core::time::Instant;

struct Case {
    engine: &'static str,
    /// The frame that a template is learnt from.
    like: &'static str,
    /// A frame of the same meaning in another shape.
    unlike: &'static str,
}

const CASES: [Case; 4] = [
    Case {
        engine: "llamacpp",
        like: r#"{"index":0,"content":" a","tokens":[369],"stop":false,"id_slot":-1,"tokens_predicted":1,"tokens_evaluated":8}"#,
        unlike: r#"{"tokens_predicted":1,"content":" a","stop":false,"tokens_evaluated":8}"#,
    },
    Case {
        engine: "openai",
        like: r#"{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":" a"},"finish_reason":null}]}"#,
        unlike: r#"{"model":"m","choices":[{"delta":{"content":" a"}}]}"#,
    },
    Case {
        engine: "openai",
        like: r#"{"id":"c","model":"m","choices":[{"text":" a","index":0,"finish_reason":null}],"usage":null}"#,
        unlike: r#"{"model":"m","choices":[{"text":" a"}]}"#,
    },
    Case {
        engine: "openai",
        like: r#"{"model":"m","choices":[{"index":0,"delta":{"reasoning_content":" a","content":null}}]}"#,
        unlike: r#"{"model":"m","choices":[{"delta":{"reasoning":" a"}}]}"#,
    },
];

/// The events of `frame` after `first`, as JSON, and whether the stream is over.
fn events_after(engine: &str, first: &str, frame: &str) -> (Vec<String>, bool) {
    let dialect = Dialect::new(engine, []).unwrap();
    let mut decoder = StreamDecoder::new(dialect, StreamConfig::new(engine));
    let mut events = Vec::new();
    for data in [first, frame] {
        assert!(!decoder.is_terminal());
        events.clear();
        let event = format!("data: {data}\n\n");
        decoder.feed(event.as_bytes(), Instant::default(), &mut events);
    }
    let json = |event: &TokenEvent| {
        let mut out = Vec::new();
        event.write_json(&mut out);
        String::from_utf8(out).unwrap()
    };
    (events.iter().map(json).collect(), decoder.is_terminal())
}

#[derive(Clone, Debug)]
enum Edit {
    Replace(prop::sample::Index, u8),
    Insert(prop::sample::Index, u8),
    Delete(prop::sample::Index),
    Cut(prop::sample::Index),
    Text(String),
    Number(u64),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let byte = prop_oneof![
        prop::sample::select(b"\"\\{}[],:0123456789-+.eEnulltruefas u".to_vec()),
        0x20..0x7F_u8,
    ];
    let edit = prop_oneof![
        (any::<prop::sample::Index>(), byte.clone()).prop_map(|(at, byte)| Edit::Replace(at, byte)),
        (any::<prop::sample::Index>(), byte).prop_map(|(at, byte)| Edit::Insert(at, byte)),
        any::<prop::sample::Index>().prop_map(Edit::Delete),
        any::<prop::sample::Index>().prop_map(Edit::Cut),
        "[ -~é中🙂]{0,12}".prop_map(Edit::Text),
        any::<u64>().prop_map(Edit::Number),
    ];
    prop::collection::vec(edit, 1..4)
}

fn edited(frame: &str, edits: &[Edit]) -> Option<String> {
    let mut frame = frame.to_owned();
    for edit in edits {
        match edit {
            Edit::Text(text) => frame = frame.replacen("\" a\"", &format!("\"{text}\""), 1),
            Edit::Number(number) => {
                frame = frame.replacen("predicted\":1", &format!("predicted\":{number}"), 1);
            }
            Edit::Replace(at, byte) | Edit::Insert(at, byte) if !frame.is_empty() => {
                let at = at.index(frame.len());
                let end = at + usize::from(matches!(edit, Edit::Replace(..)));
                if frame.is_char_boundary(at) && frame.is_char_boundary(end) {
                    frame.replace_range(at..end, &char::from(*byte).to_string());
                }
            }
            Edit::Delete(at) if !frame.is_empty() => {
                let at = at.index(frame.len());
                if frame.is_char_boundary(at) && frame.is_char_boundary(at + 1) {
                    frame.remove(at);
                }
            }
            Edit::Cut(at) if !frame.is_empty() => {
                let at = at.index(frame.len());
                if frame.is_char_boundary(at) {
                    frame.truncate(at);
                }
            }
            _ => return None,
        }
    }
    Some(frame)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_came_before_makes_no_difference(
        case in 0..CASES.len(),
        edits in edits(),
    ) {
        let Case { engine, like, unlike } = &CASES[case];
        if let Some(frame) = edited(like, &edits) {
            prop_assert_eq!(
                events_after(engine, like, &frame),
                events_after(engine, unlike, &frame),
                "{}", frame
            );
        }
    }
}

#[test]
fn equal_frames_are_tokens_after_either() {
    for Case { engine, like, unlike } in &CASES {
        for first in [like, unlike] {
            let next = like.replace("predicted\":1", "predicted\":2");
            let (events, is_over) = events_after(engine, first, &next);
            assert_eq!((events.len(), is_over), (1, false), "{engine}: {events:?}");
            assert!(events[0].contains(r#""t":" a","i":1"#), "{events:?}");
        }
    }
}

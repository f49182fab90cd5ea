//! `metrics` events: what they say, and that a slow reader gets the newest and every token.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fmt::Write as _;

use proptest::prelude::*;
use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::event::{Metrics, TokenEvent};
use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
use worker_adapters_core::time::Instant;

const NOW: Instant = Instant::from_nanos(0);

fn decoder(metrics: &str) -> StreamDecoder {
    let dialect = Dialect::new("llamacpp", [("metrics", metrics)]).unwrap();
    StreamDecoder::new(dialect, StreamConfig::new("llamacpp"))
}

fn progress(read: u64) -> String {
    format!(
        "data: {{\"index\":0,\"content\":\"\",\"tokens\":[0],\"stop\":false,\"tokens_predicted\":0,\
         \"prompt_progress\":{{\"total\":200,\"cache\":50,\"processed\":{read},\"time_ms\":3.9}}}}\n\n"
    )
}

fn token(number: u64) -> String {
    format!(
        "data: {{\"content\":\"t{number}\",\"stop\":false,\"tokens_predicted\":{number},\"timings\":\
         {{\"cache_n\":50,\"prompt_n\":150,\"prompt_ms\":4.2,\"predicted_n\":{number},\
         \"predicted_ms\":{number}.75}}}}\n\n"
    )
}

const LAST: &str = "data: {\"content\":\"\",\"stop\":true,\"stop_type\":\"limit\",\
                    \"timings\":{\"cache_n\":50,\"prompt_n\":150,\"predicted_n\":9}}\n\n";

fn fed(decoder: &mut StreamDecoder, bytes: &str) -> Vec<TokenEvent> {
    let mut events = Vec::new();
    decoder.feed(bytes.as_bytes(), NOW, &mut events);
    events
}

fn kinds(events: &[TokenEvent]) -> Vec<&'static str> {
    events.iter().map(TokenEvent::kind).collect()
}

fn json(event: &TokenEvent) -> serde_json::Value {
    let mut out = Vec::new();
    event.write_data_json(&mut out);
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn progress_is_told_while_the_prompt_is_read() {
    let mut decoder = decoder("true");
    decoder.dispatched(NOW);
    let events = fed(&mut decoder, &progress(120));
    assert_eq!(kinds(&events), ["started", "metrics"]);
    assert_eq!(
        json(&events[1]),
        serde_json::json!({
            "tokens_in": 200, "cached_tokens_in": 50, "tokens_in_read": 120, "kv_warmth": 0.25,
            "prefill_ms": 3,
        })
    );
    assert_eq!(decoder.tokens_emitted(), 0);
}

#[test]
fn timings_are_told_after_their_token() {
    let mut decoder = decoder("true");
    decoder.dispatched(NOW);
    let events = fed(&mut decoder, &token(1));
    assert_eq!(kinds(&events), ["started", "token", "metrics"]);
    assert_eq!(
        json(&events[2]),
        serde_json::json!({
            "tokens_in": 200, "cached_tokens_in": 50, "tokens_in_read": 200, "kv_warmth": 0.25,
            "prefill_ms": 4, "tokens_out": 1, "latency_decode_ms": 1, "latency_first_token_ms": 0,
        })
    );
}

#[test]
fn the_last_frame_s_timings_are_no_event() {
    let mut decoder = decoder("true");
    assert_eq!(kinds(&fed(&mut decoder, &token(1))).len(), 3);
    assert_eq!(kinds(&fed(&mut decoder, LAST)), ["end"]);
    assert_eq!(decoder.metrics_dropped(), 0);
}

#[test]
fn whoever_does_not_want_them_gets_none() {
    for mut decoder in [
        decoder("false"),
        StreamDecoder::new(Dialect::new("llamacpp", []).unwrap(), StreamConfig::new("llamacpp")),
    ] {
        let all = format!("{}{}{LAST}", progress(200), token(1));
        assert_eq!(kinds(&fed(&mut decoder, &all)), ["started", "token", "end"]);
        assert_eq!(decoder.metrics_dropped(), 0);
    }
}

#[test]
fn numbers_that_make_no_sense_are_left_out() {
    let mut decoder = decoder("true");
    let odd = "data: {\"content\":\"\",\"prompt_progress\":{\"total\":0,\"cache\":7,\
               \"processed\":null,\"time_ms\":-1e300}}\n\n";
    let events = fed(&mut decoder, odd);
    assert_eq!(json(&events[1]), serde_json::json!({"tokens_in": 0, "cached_tokens_in": 7}));
    let more = "data: {\"content\":\"\",\"prompt_progress\":true}\n\n";
    assert_eq!(json(&fed(&mut decoder, more)[0]), serde_json::json!({}));
    let null = "data: {\"content\":\"a\",\"prompt_progress\":null,\"timings\":null}\n\n";
    assert_eq!(kinds(&fed(&mut decoder, null)), ["token"]);
}

#[test]
fn one_that_nobody_has_taken_gives_way_to_the_next() {
    let mut decoder = decoder("true");
    let mut all = String::new();
    for number in 1..=256 {
        all.push_str(&token(number));
    }
    let events = fed(&mut decoder, &all);
    assert_eq!(events.len(), 1 + 256 + 1);
    assert!(matches!(&events[257], TokenEvent::Metrics(last) if last.tokens_out == Some(256)));
    assert_eq!(decoder.metrics_dropped(), 255);
}

proptest! {
    /// However the bytes are cut and whenever the reader comes.
    #[test]
    fn no_token_is_lost_and_every_report_is_delivered_or_counted(
        frames in prop::collection::vec(any::<bool>(), 1..60),
        reads in prop::collection::vec((1usize..400, any::<bool>()), 1..100),
    ) {
        let (mut body, mut tokens, mut reports) = (String::new(), 0, 0);
        for (at, is_token) in frames.iter().enumerate() {
            reports += 1;
            if *is_token {
                tokens += 1;
                body.push_str(&token(tokens));
            } else {
                let _ = write!(body, "{}", progress(at as u64));
            }
        }
        let mut decoder = decoder("true");
        let (mut waiting, mut taken): (Vec<TokenEvent>, Vec<TokenEvent>) = Default::default();
        let (mut rest, mut reads) = (body.as_bytes(), reads.into_iter().cycle());
        while !rest.is_empty() {
            let (size, takes) = reads.next().unwrap();
            let (read, later) = rest.split_at(size.min(rest.len()));
            decoder.feed(read, NOW, &mut waiting);
            rest = later;
            let undelivered = waiting.iter().filter(|event| event.kind() == "metrics").count();
            prop_assert!(undelivered <= 1);
            if takes {
                taken.append(&mut waiting);
            }
        }
        let newest = taken.iter().chain(&waiting).rev().find_map(|event| match event {
            TokenEvent::Metrics(metrics) => Some(**metrics),
            _ => None,
        });
        let last_is_token = frames.last() == Some(&true);
        taken.append(&mut waiting);
        let newest = newest.filter(|_| last_is_token).map(|it: Metrics| it.tokens_out);
        prop_assert!(newest.is_none_or(|out| out == Some(tokens)));
        let texts: Vec<String> = taken.iter().filter_map(|event| match event {
            TokenEvent::Token(token) => Some(token.t.to_string()),
            _ => None,
        }).collect();
        let sent: Vec<String> = (1..=tokens).map(|number| format!("t{number}")).collect();
        prop_assert_eq!(texts, sent);
        let delivered = taken.iter().filter(|event| event.kind() == "metrics").count() as u64;
        prop_assert_eq!(delivered + decoder.metrics_dropped(), reports);
    }
}

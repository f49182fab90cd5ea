//! The event stream decoder against the WHATWG's rules read line by line, in any cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use worker_adapters_core::sse::{SseDecoder, SseItem};
use worker_adapters_fuzz::Rng;

#[path = "../../tests/common/reference_sse.rs"]
mod reference_sse;

use reference_sse::{Parsed, parse};

fn decode(reads: &[&[u8]]) -> (Parsed, u64) {
    let mut decoder = SseDecoder::new();
    let mut parsed = Parsed::default();
    for read in reads {
        let fed = decoder.feed(read, |item| match item {
            SseItem::Event(event) => {
                let [name, data, id] = [event.event, event.data, event.id].map(str::to_owned);
                parsed.events.push((name, data, id, event.retry));
            }
            SseItem::UnknownLine(line) => parsed.unknown_lines.push(line.to_owned()),
        });
        fed.expect("inputs are smaller than the limit");
    }
    decoder.finish();
    decoder.last_event_id().clone_into(&mut parsed.last_event_id);
    parsed.retry = decoder.retry();
    parsed.eof_pending = decoder.eof_pending().map(str::to_owned);
    parsed.eof_partial = decoder.eof_partial().map(str::to_owned);
    (parsed, decoder.utf8_replaced())
}

/// What is handed out until the decoder gives up, and whether it does.
fn decode_within(limit: usize, reads: &[&[u8]]) -> (Vec<String>, bool) {
    let mut decoder = SseDecoder::with_max_event_bytes(limit);
    let mut seen = Vec::new();
    let mut fed = Ok(());
    for read in reads {
        fed = decoder.feed(read, |item| {
            if let SseItem::Event(event) = item {
                assert!(event.data.len() <= 3 * limit, "one byte may become U+FFFD");
                seen.push(event.data.to_owned());
            }
        });
    }
    (seen, fed.is_err())
}

fuzz_target!(|data: &[u8]| {
    let Some((&seed, stream)) = data.split_first() else { return };
    let wanted = parse(stream);
    let whole = decode(&[stream]);
    assert_eq!(whole.0, wanted);
    let reads = Rng::new(seed).cut(stream);
    assert_eq!(decode(&reads), whole);
    // A small limit is kept alike in any cut.
    if seed < 64 {
        let limit = usize::from(seed);
        assert_eq!(decode_within(limit, &reads), decode_within(limit, &[stream]));
    }
});

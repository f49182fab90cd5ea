//! The event stream decoder against the WHATWG's rules read line by line, in any cut.

#![no_main]

use std::iter;

use libfuzzer_sys::fuzz_target;
use worker_adapters_core::sse::{SseDecoder, SseEvent, SseItem};
use worker_adapters_fuzz::Rng;

#[path = "../../tests/common/reference_sse.rs"]
mod reference_sse;

use reference_sse::{Event, Parsed, parse};

fn assert_same(event: SseEvent<'_>, wanted: Option<&Event>) {
    let (name, data, id, retry) = wanted.expect("an event too many");
    assert_eq!((event.event, event.data, event.id), (&**name, &**data, &**id));
    assert_eq!(event.retry, *retry);
}

/// Panics unless the decoder says what is wanted. Returns how much malformed UTF-8 it replaced.
fn decode<'r>(reads: impl Iterator<Item = &'r [u8]>, wanted: &Parsed) -> u64 {
    let mut decoder = SseDecoder::new();
    let mut events = wanted.events.iter();
    let mut unknown_lines = wanted.unknown_lines.iter();
    for read in reads {
        let fed = decoder.feed(read, |item| match item {
            SseItem::Event(event) => assert_same(event, events.next()),
            SseItem::UnknownLine(line) => {
                assert_eq!(Some(line), unknown_lines.next().map(String::as_str));
            }
        });
        fed.expect("inputs are smaller than the limit");
    }
    assert!(events.next().is_none() && unknown_lines.next().is_none(), "something is missing");
    decoder.finish();
    assert_eq!(decoder.last_event_id(), wanted.last_event_id);
    assert_eq!(decoder.retry(), wanted.retry);
    assert_eq!(decoder.eof_pending(), wanted.eof_pending.as_deref());
    assert_eq!(decoder.eof_partial(), wanted.eof_partial.as_deref());
    decoder.utf8_replaced()
}

/// How many of the wanted events are handed out until the decoder gives up, and whether it does.
fn decode_within<'r>(
    limit: usize,
    reads: impl Iterator<Item = &'r [u8]>,
    wanted: &[Event],
) -> (usize, bool) {
    let mut decoder = SseDecoder::with_max_event_bytes(limit);
    let mut events = wanted.iter();
    let mut fed = Ok(());
    for read in reads {
        fed = decoder.feed(read, |item| {
            if let SseItem::Event(event) = item {
                assert!(event.data.len() <= 3 * limit, "one byte may become U+FFFD");
                assert_same(event, events.next());
            }
        });
    }
    (wanted.len() - events.len(), fed.is_err())
}

fuzz_target!(|data: &[u8]| {
    let Some((&seed, stream)) = data.split_first() else { return };
    let wanted = parse(stream);
    let replaced = decode(iter::once(stream), &wanted);
    assert_eq!(decode(Rng::new(seed).cut(stream), &wanted), replaced);
    // A small limit is kept alike in any cut.
    if seed < 64 {
        let limit = usize::from(seed);
        let whole = decode_within(limit, iter::once(stream), &wanted.events);
        assert_eq!(decode_within(limit, Rng::new(seed).cut(stream), &wanted.events), whole);
    }
});

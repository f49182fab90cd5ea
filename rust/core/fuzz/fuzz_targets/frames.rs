//! Bodies in every dialect: the law of a stream, in any cut, with and without the decoder's short
//! cut for frames that resemble the one before.

#![no_main]

use std::iter;

use libfuzzer_sys::fuzz_target;
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::http::ResponseHead;
use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
use worker_adapters_core::time::Instant;
use worker_adapters_fuzz::{Rng, assert_law, dialect};

fn decode<'r>(which: u8, reads: impl Iterator<Item = &'r [u8]>, complete: bool) -> Vec<TokenEvent> {
    let (name, parser) = dialect(which);
    let mut decoder = StreamDecoder::new(parser, StreamConfig::new(name));
    let mut events = Vec::new();
    let headers: [(&[u8], &[u8]); 1] = [(b"Content-Type", b"text/event-stream")];
    let head = ResponseHead { status: 200, headers: &headers };
    decoder.head(&head, Instant::default(), &mut events);
    for read in reads {
        decoder.feed(read, Instant::default(), &mut events);
    }
    decoder.finish(complete, Instant::default(), &mut events);
    events
}

/// The same body with ever more spaces before each frame's brace: no frame resembles another.
fn no_two_alike(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut frames = 0;
    for line in body.split_inclusive(|byte| matches!(byte, b'\r' | b'\n')) {
        let value = line.strip_prefix(b"data:");
        let value = value.map(|value| value.strip_prefix(b" ").unwrap_or(value));
        match value {
            Some(value) if value.starts_with(b"{") => {
                frames += 1;
                out.extend_from_slice(b"data: ");
                out.resize(out.len() + frames, b' ');
                out.extend_from_slice(value);
            }
            _ => out.extend_from_slice(line),
        }
    }
    out
}

/// Without the texts of errors, which tell offsets.
fn without_messages(mut events: Vec<TokenEvent>) -> Vec<TokenEvent> {
    for event in &mut events {
        if let TokenEvent::Error(error) = event {
            error.message.clear();
        }
    }
    events
}

fuzz_target!(|data: &[u8]| {
    let Some((&[which, seed], body)) = data.split_first_chunk() else { return };
    let complete = seed & 1 == 0;
    let whole = decode(which, iter::once(body), complete);
    assert_law(&whole);
    assert_eq!(decode(which, Rng::new(seed).cut(body), complete), whole);
    let slowly = decode(which, iter::once(&*no_two_alike(body)), complete);
    assert_eq!(without_messages(slowly), without_messages(whole));
});

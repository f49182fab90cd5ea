//! The reader of HTTP/1.1 responses: the same in any cut, chunks as the slow reference reads them.

#![no_main]

use std::iter;

use libfuzzer_sys::fuzz_target;
use worker_adapters_fuzz::Rng;
use worker_adapters_net::http1::{Fault, Item, Limits, ResponseReader};

#[path = "../../../net/tests/common/reference_chunks.rs"]
mod reference_chunks;

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Names and values.
type Headers = Vec<(Vec<u8>, Vec<u8>)>;

/// All that a reader says of a response.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    head: Option<(u16, Headers)>,
    body: Vec<u8>,
    fault: Option<Fault>,
    complete: bool,
    close_delimited: bool,
    keeps_alive: bool,
    /// Bytes that were left after the end.
    left: usize,
}

fn read<'r>(head_request: bool, limits: Limits, reads: impl Iterator<Item = &'r [u8]>) -> Seen {
    let mut reader = ResponseReader::new(head_request, limits);
    let mut seen = Seen::default();
    'reads: for read in reads {
        let mut input = read;
        loop {
            match reader.next(&mut input) {
                Ok(Item::NeedMore) => {
                    assert!(input.is_empty());
                    break;
                }
                Ok(Item::Head(head)) => {
                    assert!(seen.head.is_none(), "a second head");
                    assert!((200..=999).contains(&head.status));
                    let headers: Headers =
                        head.headers().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
                    assert!(headers.len() <= limits.headers);
                    seen.head = Some((head.status, headers));
                }
                Ok(Item::Body(piece)) => {
                    assert!(seen.head.is_some() && !piece.is_empty());
                    seen.body.extend_from_slice(piece);
                }
                Ok(Item::End) => {
                    seen.left += input.len();
                    break;
                }
                Err(fault) => {
                    seen.fault = Some(fault);
                    break 'reads;
                }
            }
        }
    }
    seen.close_delimited = reader.is_close_delimited();
    seen.keeps_alive = reader.keeps_alive();
    seen.fault = seen.fault.or(reader.eof().err());
    seen.complete = reader.is_complete();
    assert_eq!(seen.complete, seen.fault.is_none());
    seen
}

fuzz_target!(|data: &[u8]| {
    let Some((&[seed, setup], response)) = data.split_first_chunk() else { return };
    let small = Limits {
        head_bytes: 64,
        headers: 4,
        interim_responses: 2,
        chunk_extension_bytes: 8,
        trailer_bytes: 16,
    };
    if setup & 4 == 0 {
        let limits = if setup & 2 == 0 { Limits::default() } else { small };
        let head_request = setup & 1 == 1;
        let whole = read(head_request, limits, iter::once(response));
        let cut = read(head_request, limits, Rng::new(seed).cut(response));
        assert_eq!(cut, whole);
        return;
    }
    // A chunked body.
    let (data, end) = reference_chunks::parse(response);
    let seen = read(false, Limits::default(), [HEAD, response].into_iter());
    assert_eq!((seen.body, seen.fault), (data, end.err()));
    assert_eq!(seen.left, end.map_or(0, |taken| response.len() - taken));
});

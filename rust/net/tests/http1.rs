//! The HTTP/1.1 reader against RFC 9112, its limits, and every way to cut its input.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "common/reference_chunks.rs"]
mod reference_chunks;

use std::fmt::Write as _;

use proptest::prelude::*;
use worker_adapters_core::error::Detail;
use worker_adapters_net::http1::{
    Fault, InvalidRequest, Item, Limits, ResponseReader, write_request,
};

/// A final head: its status and its headers.
type HeadSeen = (u16, Vec<(Vec<u8>, Vec<u8>)>);

/// All that a reader says of a response.
#[derive(Debug, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "one for each question to the reader")]
struct Seen {
    head: Option<HeadSeen>,
    body: Vec<u8>,
    fault: Option<Fault>,
    complete: bool,
    close_delimited: bool,
    keeps_alive: bool,
    partial_head: bool,
    /// Bytes that were left after the end.
    left: usize,
}

/// Feeds `pieces`, then the close if `eof`.
fn read<'a>(mut reader: ResponseReader, pieces: impl Iterator<Item = &'a [u8]>, eof: bool) -> Seen {
    let mut seen = Seen::default();
    'pieces: for mut input in pieces {
        loop {
            match reader.next(&mut input) {
                Ok(Item::NeedMore) => {
                    assert!(input.is_empty());
                    break;
                }
                Ok(Item::Head(head)) => {
                    assert!(seen.head.is_none(), "a second head");
                    let headers = head.headers().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
                    seen.head = Some((head.status, headers));
                }
                Ok(Item::Body(piece)) => {
                    assert!(!piece.is_empty());
                    seen.body.extend_from_slice(piece);
                }
                Ok(Item::End) => {
                    seen.left += input.len();
                    break;
                }
                Err(fault) => {
                    seen.fault = Some(fault);
                    break 'pieces;
                }
            }
        }
    }
    seen.partial_head = reader.has_partial_head();
    if let Some(fault) = seen.fault {
        assert_eq!(reader.next(&mut &b"HTTP/1.1 200 OK\r\n\r\n"[..]).err(), Some(fault));
        assert_eq!(reader.eof(), Err(fault), "a failed reader stays failed");
    } else if eof {
        seen.fault = reader.eof().err();
    }
    seen.complete = reader.is_complete();
    seen.close_delimited = reader.is_close_delimited();
    seen.keeps_alive = reader.keeps_alive();
    seen
}

fn reader() -> ResponseReader {
    ResponseReader::new(false, Limits::default())
}

fn whole(response: &[u8]) -> Seen {
    read(reader(), std::iter::once(response), false)
}

/// A complete response that leaves nothing behind.
#[track_caller]
fn good(response: impl AsRef<[u8]>) -> Seen {
    let seen = whole(response.as_ref());
    assert_eq!((seen.fault, seen.complete, seen.left), (None, true, 0), "{seen:?}");
    seen
}

#[track_caller]
fn bad(response: impl AsRef<[u8]>, fault: Fault) {
    let seen = whole(response.as_ref());
    assert_eq!(seen.fault, Some(fault), "{seen:?}");
    assert!(!seen.complete && !seen.keeps_alive);
}

fn with_headers(headers: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{headers}\r\n")
}

fn chunked(body: &str) -> String {
    with_headers("Transfer-Encoding: chunked\r\n") + body
}

#[test]
fn a_body_of_known_length() {
    let seen =
        good("HTTP/1.1 200 OK\r\nContent-Type:  text/plain \t\r\nCONTENT-LENGTH: 5\r\n\r\nhello");
    let headers = vec![
        (b"Content-Type".to_vec(), b"text/plain".to_vec()),
        (b"CONTENT-LENGTH".to_vec(), b"5".to_vec()),
    ];
    assert_eq!(seen.head, Some((200, headers)));
    assert_eq!(seen.body, b"hello");
    assert!(seen.keeps_alive && !seen.close_delimited);
    assert_eq!(good(with_headers("Content-Length: 0\r\n")).body, b"");
}

#[test]
fn headers_are_found_in_any_case_and_never_shown() {
    let mut input: &[u8] = b"HTTP/1.1 200\r\nX-Key: hunter2\r\nx-key: second\r\nEmpty:\r\n\r\n";
    let mut reader = reader();
    let item = reader.next(&mut input).unwrap();
    let shown = format!("{item:?}");
    assert_eq!(shown, "Head { status: 200, headers: 3 }");
    let Item::Head(head) = item else { panic!("{shown}") };
    assert_eq!(head.header("x-kEY"), Some(&b"hunter2"[..]));
    assert_eq!(head.header("empty"), Some(&b""[..]));
    assert_eq!(head.header("absent"), None);
    let body = Item::Body(b"generated text");
    assert_eq!(format!("{body:?}"), "Body(14 bytes)");
    assert_eq!(format!("{reader:?}"), "ResponseReader { state: \"body\", .. }");
}

#[test]
fn bodies_are_borrowed_from_the_input() {
    let response = chunked("5\r\nhello\r\n");
    let mut input = response.as_bytes();
    let mut reader = reader();
    assert!(matches!(reader.next(&mut input), Ok(Item::Head(_))));
    let Ok(Item::Body(piece)) = reader.next(&mut input) else { panic!("no body") };
    assert!(response.as_bytes().as_ptr_range().contains(&piece.as_ptr()));
}

#[test]
fn chunks_extensions_and_trailers() {
    let seen =
        good(chunked("5\r\nhello\r\n1;a=\"b\";c\r\n \r\n0A \t;x\r\n0123456789\r\n000\r\n\r\n"));
    assert_eq!(seen.body, b"hello 0123456789");
    assert!(seen.keeps_alive);
    let trailed = good(chunked("1\r\nx\r\n0\r\nContent-Length: 7\r\nX:\r\n\r\n"));
    assert_eq!(trailed.body, b"x");
    assert!(trailed.keeps_alive, "a trailer says nothing of framing");
    assert_eq!(good(with_headers("transfer-encoding: CHUNKED\r\n") + "0\r\n\r\n").body, b"");
}

#[test]
fn malformed_chunks() {
    for body in [
        "\r\n",
        "x\r\n",
        "-1\r\n",
        "+1\r\n",
        "0x1\r\n",
        " 1\r\n",
        ";a\r\n",
        "1 \r\n",
        "1\t\r\n",
        "1\n",
        "1\rx",
        "1 2\r\n",
        "1_0\r\n",
        "1;a\n",
        "1;a\0\r\n",
        "1;\x7f\r\n",
        "1;a\rb\r\n",
        "1\r\nab",
        "1\r\na\n",
        "1\r\na\rb",
        "1\r\na0\r\n\r\n",
        "10000000000000000\r\n",
        "00000000000000001\r\n",
        "ffffffffffffffffffff\r\n",
        "0\n",
        "0\r\n\n",
        "0\r\n\rx",
        "0\r\n: x\r\n",
        "0\r\nname\r\n",
        "0\r\nname : x\r\n",
        "0\r\n folded\r\n",
        "0\r\na: b\n",
        "0\r\na: b\0\r\n",
        "0\r\na: b\rc",
        "0\r\na: b\r\n\tc\r\n",
        "0\r\nHTTP/1.1 200 OK\r\n",
        "0;\r\r\n",
        "é\r\n",
    ] {
        bad(chunked(body), Fault::Framing);
    }
    let huge = whole(chunked("ffffffffffffffff\r\nabc").as_bytes());
    assert_eq!((huge.fault, huge.body), (None, b"abc".to_vec()), "2^64 - 1 is still a size");
}

#[test]
fn a_body_that_only_the_close_ends() {
    let response = with_headers("Connection: keep-alive\r\n") + "hello";
    let open = whole(response.as_bytes());
    assert_eq!((open.complete, open.close_delimited), (false, true));
    let closed = read(reader(), std::iter::once(response.as_bytes()), true);
    assert_eq!((closed.fault, closed.complete, closed.keeps_alive), (None, true, false));
    assert_eq!(closed.body, b"hello");
}

#[test]
fn statuses_without_a_body() {
    for status in [204, 304] {
        let head = |headers| format!("HTTP/1.1 {status} X\r\n{headers}\r\n");
        assert!(good(head("")).keeps_alive);
        let seen = good(head("Content-Length: 5\r\n"));
        assert_eq!(seen.keeps_alive, status == 304, "a 204 with a length may lie");
        assert!(good(head("Content-Length: 0\r\n")).keeps_alive);
        bad(head("Content-Length: x\r\n"), Fault::Framing);
    }
    let response = with_headers("Content-Length: 5\r\n");
    let head = ResponseReader::new(true, Limits::default());
    let seen = read(head, std::iter::once(response.as_bytes()), false);
    assert!(seen.complete && seen.keeps_alive);
    // 205 is framed like any other (RFC 9112, section 6.3).
    assert_eq!(good("HTTP/1.1 205 X\r\nContent-Length: 1\r\n\r\nx").body, b"x");
}

#[test]
fn ambiguous_or_malformed_framing() {
    for headers in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: 5,\r\n",
        "Content-Length:\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: 5.0\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 100000000000000000000\r\n",
        "Content-Length: \u{0665}\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding:\r\n",
    ] {
        bad(with_headers(headers), Fault::Framing);
        bad(format!("HTTP/1.1 103 X\r\n{headers}\r\n"), Fault::Framing);
    }
    bad("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Fault::Framing);
    let largest = whole(with_headers("Content-Length: 18446744073709551615\r\n").as_bytes());
    assert_eq!(largest.fault, None);
    let same = "Content-Length: 5\r\nContent-Length: 05, 5\r\n";
    assert_eq!(good(with_headers(same) + "hello").body, b"hello");
}

#[test]
fn what_is_not_an_http1_head() {
    for head in [
        "<html>",
        "hello",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        " HTTP/1.1 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "HTTP/0.9 200 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "HTTP/2 200\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\0\0\u{12}\u{4}",
        "HTTP/1.1\r\n\r\n",
        "HTTP/1.1 \r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 +20 OK\r\n\r\n",
        "HTTP/1.1 200\tOK\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "HTTP/1.1 200 OK\n",
        "HTTP/1.1 200 OK\r\r\n",
        "HTTP/1.1 200 OK\r\na: b\n",
        "HTTP/1.1 200 OK\r\na: b\r\n\n",
        "HTTP/1.1 200 OK\r\na: b\r\n c\r\n",
        "HTTP/1.1 200 OK\r\n a: b\r\n",
        "HTTP/1.1 200 OK\r\na: b\r\n\tc: d\r\n\r\n",
        "HTTP/1.1 200 OK\r\na : b\r\n",
        "HTTP/1.1 200 OK\r\na\t: b\r\n",
        "HTTP/1.1 200 OK\r\n: b\r\n",
        "HTTP/1.1 200 OK\r\na\r\n",
        "HTTP/1.1 200 OK\r\na: \0\r\n",
        "HTTP/1.1 200 OK\r\na: b\rc\r\n",
        "HTTP/1.1 200 OK\r\na: \u{1}\r\n",
        "HTTP/1.1 200 OK\r\na: \u{7f}\r\n",
        "HTTP/1.1 200 OK\r\na\0: b\r\n",
        "HTTP/1.1 200 OK\r\nä: b\r\n",
        "HTTP/1.1 200 OK\r\n(a): b\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    ] {
        // None of these waits for the blank line.
        bad(head, Fault::Protocol);
    }
}

#[test]
fn what_a_head_may_look_like() {
    for head in [
        "HTTP/1.1 200\r\n",
        "HTTP/1.1 200 \r\n",
        "HTTP/1.1 200 Alles in Ördnung\r\n",
        "HTTP/1.1 999 OK\r\n",
        "HTTP/1.1 200 OK\r\nx: ä\r\nx:y\r\n!#$%&'*+-.^_`|~: \t\r\n",
    ] {
        good(format!("{head}Content-Length: 0\r\n\r\n"));
    }
}

#[test]
fn interim_responses_are_skipped_up_to_their_limit() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 X\r\nA: b\r\n\r\n";
    let last = with_headers("Content-Length: 2\r\n") + "ok";
    let seen = good(interim.repeat(8) + &last);
    assert_eq!((seen.head.map(|(status, _)| status), seen.body), (Some(200), b"ok".to_vec()));
    bad(interim.repeat(8) + "HTTP/1.1 103 X\r\n\r\n", Fault::Protocol);
    bad("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000), Fault::Protocol);
}

#[test]
fn an_alert_of_tls_is_told_from_other_nonsense() {
    // A fatal unexpected_message, whose number is that of a line feed.
    let alert = [21, 3, 1, 0, 2, 2, 10];
    bad(alert, Fault::Tls);
    bad(&alert[..1], Fault::Tls);
    bad("HTTP/1.1 103 Early Hints\r\n\r\n\x15\x03", Fault::Tls);
    bad("H\x15", Fault::Protocol);
}

#[test]
fn a_partial_head_is_told_from_none() {
    let partial = |response: &str| whole(response.as_bytes()).partial_head;
    assert!(!partial(""));
    assert!(partial("H"));
    assert!(partial("HTTP/1.1 200 OK\r\n\r"));
    assert!(!partial("HTTP/1.1 100 Continue\r\n\r\n"));
    assert!(partial("HTTP/1.1 100 Continue\r\n\r\nH"));
    assert!(!partial("HTTP/1.1 200 OK\r\n\r\n"));
    let mut reader = reader();
    for byte in b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n".chunks(1) {
        reader.next(&mut &byte[..]).unwrap();
    }
    assert!(!reader.has_partial_head(), "a head that was kept is whole");
}

#[test]
fn head_limits_at_and_past() {
    let head = |bytes: usize| {
        let empty = with_headers("Content-Length: 0\r\nx: \r\n");
        empty.replace("x: ", &format!("x: {}", "y".repeat(bytes - empty.len())))
    };
    let limit = Limits::default().head_bytes;
    assert_eq!(limit, 65_536);
    good(head(limit));
    bad(head(limit + 1), Fault::Protocol);
    bad("HTTP/1.1 200 ".to_owned() + &"x".repeat(limit), Fault::Protocol);
    for size in [1, 7, 4096] {
        let pieces = |bytes| read(reader(), head(bytes).as_bytes().chunks(size), false);
        assert!(pieces(limit).complete);
        assert_eq!(pieces(limit + 1).fault, Some(Fault::Protocol));
    }
    // Each head for itself.
    good(head(limit).replace("200 OK", "100 OK") + &head(limit));

    let lines = |count| {
        let mut lines = String::from("Content-Length: 0\r\n");
        (1..count).for_each(|n| write!(lines, "{n}:\r\n").unwrap());
        with_headers(&lines)
    };
    good(lines(100));
    bad(lines(101), Fault::Protocol);
    good(with_headers(&("a:\r\n".repeat(99) + "content-length:0\r\n")));
}

#[test]
fn chunk_limits_at_and_past() {
    let extension =
        |bytes: usize| chunked(&format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(bytes - 1)));
    let padding = |bytes: usize| chunked(&format!("0{};\r\n\r\n", " ".repeat(bytes - 1)));
    let trailer =
        |bytes: usize| chunked(&format!("0\r\na:{}\r\nb:\r\n\r\n", "t".repeat(bytes - 8)));
    for response in [extension, padding, trailer] as [fn(usize) -> String; 3] {
        good(response(16_384));
        bad(response(16_385), Fault::Framing);
    }
    // Each size line for itself.
    let line = format!("1;{}\r\nx\r\n", "e".repeat(16_383));
    assert_eq!(good(chunked(&(line.repeat(3) + "0\r\n\r\n"))).body, b"xxx");
}

#[test]
fn other_limits_hold_too() {
    let limits = Limits {
        head_bytes: 40,
        headers: 1,
        interim_responses: 0,
        chunk_extension_bytes: 0,
        trailer_bytes: 0,
    };
    let read = |response: &str| {
        let reader = ResponseReader::new(false, limits);
        read(reader, std::iter::once(response.as_bytes()), false).fault
    };
    assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), None);
    assert_eq!(read("HTTP/1.1 200 OK\r\na:\r\nb:\r\n\r\n"), Some(Fault::Protocol));
    assert_eq!(read("HTTP/1.1 100 OK\r\n\r\n"), Some(Fault::Protocol));
    let head = "HTTP/1.1 200\r\nTransfer-Encoding:chunked\r\n\r\n";
    assert_eq!((head.len(), read(head)), (43, Some(Fault::Protocol)));
    let none = Limits { head_bytes: 0, ..limits };
    let mut reader = ResponseReader::new(false, none);
    assert_eq!(reader.next(&mut &b"H"[..]).err(), Some(Fault::Protocol));
}

#[test]
fn what_keeps_a_connection() {
    let body = "Content-Length: 2\r\n\r\nok";
    let keeps = |version: &str, connection: &str| {
        good(format!("HTTP/{version} 200 OK\r\n{connection}{body}")).keeps_alive
    };
    assert!(keeps("1.1", ""));
    assert!(keeps("1.1", "Connection: foo\r\n"));
    assert!(!keeps("1.1", "Connection: close\r\n"));
    assert!(!keeps("1.1", "connection: foo ,CLOSE\r\n"));
    assert!(!keeps("1.1", "Connection: keep-alive\r\nConnection: close\r\n"));
    assert!(!keeps("1.0", ""));
    assert!(keeps("1.0", "Connection: Keep-Alive\r\n"));
    assert!(!keeps("1.0", "Connection: keep-alive, close\r\n"));
    let closed = with_headers(body.trim_end_matches("\r\n\r\nok")) + "\r\nok";
    let closed = read(reader(), std::iter::once(closed.as_bytes()), true);
    assert_eq!((closed.fault, closed.complete, closed.keeps_alive), (None, true, false));
}

#[test]
fn surplus_is_left_and_ends_the_connection() {
    let surplus = b"HTTP/1.1 200 OK\r\n\r\nsmuggled";
    for response in [with_headers("Content-Length: 2\r\n") + "ok", chunked("2\r\nok\r\n0\r\n\r\n")]
    {
        let one = [response.as_bytes(), surplus].concat();
        for seen in [whole(&one), read(reader(), [response.as_bytes(), surplus].into_iter(), false)]
        {
            assert_eq!((seen.body, seen.fault), (b"ok".to_vec(), None));
            assert_eq!((seen.complete, seen.left), (true, surplus.len()));
            assert!(!seen.keeps_alive);
        }
    }
}

#[test]
fn a_cut_is_seen_at_every_byte() {
    let response =
        chunked("4\r\nWiki\r\n7;x=\"y\"\r\npedia i\r\nB\r\nn \r\nchunks.\r\n0\r\nA: b\r\n\r\n");
    let body = b"Wikipedia in \r\nchunks.";
    for cut in 0..response.len() {
        let seen = read(reader(), std::iter::once(&response.as_bytes()[..cut]), true);
        assert_eq!((seen.fault, seen.complete), (Some(Fault::Truncated), false), "{cut}");
        assert!(body.starts_with(&seen.body), "{cut}");
        assert!(!seen.keeps_alive);
    }
    let seen = read(reader(), std::iter::once(response.as_bytes()), true);
    assert_eq!((seen.fault, seen.complete), (None, true));
    assert_eq!(seen.body, body);

    let response = with_headers("Content-Length: 5\r\n") + "hello";
    for cut in 0..response.len() {
        let seen = read(reader(), std::iter::once(&response.as_bytes()[..cut]), true);
        assert_eq!(seen.fault, Some(Fault::Truncated), "{cut}");
    }
}

#[test]
fn faults_have_words() {
    assert_eq!(Fault::Protocol.detail(), Detail::Protocol);
    assert_eq!(Fault::Framing.detail(), Detail::Framing);
    assert_eq!(Fault::Truncated.detail(), Detail::Truncated);
}

#[test]
fn public_types_cross_threads() {
    fn assert<T: Send + Sync>() {}
    assert::<ResponseReader>();
    assert::<Item<'_, '_>>();
    assert::<Fault>();
    assert::<InvalidRequest>();
}

/// Good and bad responses, as parts that a strategy also joins at random.
fn corpus() -> Vec<Vec<u8>> {
    let golden = "4\r\nWiki\r\n7;x=\"y\"\r\npedia i\r\nB\r\nn \r\nchunks.\r\n0\r\nA: b\r\n\r\n";
    [
        chunked(golden),
        chunked(golden) + "surplus",
        "HTTP/1.1 100 Continue\r\n\r\n".to_owned() + &chunked(golden),
        with_headers("Content-Length: 5\r\n") + "hello",
        with_headers("Content-Length: 5\r\n") + "hello, surplus",
        with_headers("Connection: close\r\n") + "until the close",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx".to_owned(),
        "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(16) + &with_headers(""),
        "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(17),
        "HTTP/1.1 101 Switching\r\n\r\n".to_owned(),
        with_headers("Content-Length: 5\r\nContent-Length: 6\r\n"),
        with_headers("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        with_headers("a: b\r\n c: d\r\n"),
        with_headers("a : b\r\n"),
        with_headers("a: \0\r\n"),
        with_headers("a: b\n"),
        with_headers(&"a:\r\n".repeat(100)),
        with_headers(&"a:\r\n".repeat(101)),
        "HTTP/1.1 200 OK\n\n".to_owned(),
        "<html>not http</html>".to_owned(),
        "HTTP/2 200\r\n\r\n".to_owned(),
        chunked("5\r\nhello0\r\n\r\n"),
        chunked("5\r\nhel"),
        chunked("10000000000000000\r\nx"),
        chunked("3\r\nabc\r\nzz\r\n"),
        chunked("1 ;ext\r\na\r\n1 \r\nb"),
        chunked("0\r\nbad trailer\r\n\r\n"),
        chunked("0\r\nA: b\r\n C\r\n\r\n"),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect()
}

/// `bytes` in pieces of the given sizes, the rest in one.
fn cut<'a>(mut bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for size in sizes {
        let (piece, rest) = bytes.split_at((*size).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}

#[test]
fn one_byte_at_a_time_and_every_single_cut_say_the_same() {
    for response in corpus() {
        let expected = read(reader(), std::iter::once(&response[..]), true);
        assert_eq!(read(reader(), response.chunks(1), true), expected, "{response:?}");
        for at in 0..=response.len() {
            let (a, b) = response.split_at(at);
            assert_eq!(read(reader(), [a, b].into_iter(), true), expected, "{at} {response:?}");
        }
    }
}

#[derive(Clone, Debug)]
enum Part {
    Chunk(Vec<u8>, bool, String),
    Raw(Vec<u8>),
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        8 => (prop::collection::vec(any::<u8>(), 1..40), any::<bool>(), "([ \t]{0,2};[a-z=\" ]{0,8})?")
            .prop_map(|(data, upper, extension)| Part::Chunk(data, upper, extension)),
        1 => prop::sample::select(&b"0123abAB;: \t\r\n\0x"[..]).prop_map(|byte| Part::Raw(vec![byte])),
        1 => prop::sample::select(vec!["\r\n", "0\r\n", "0\r\n\r\n", "A: b\r\n"])
            .prop_map(|raw| Part::Raw(raw.into())),
    ]
}

fn coded(parts: &[Part]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        match part {
            Part::Chunk(data, upper, extension) => {
                let size = data.len();
                let size = if *upper { format!("{size:X}") } else { format!("{size:03x}") };
                out.extend_from_slice(format!("{size}{extension}\r\n").as_bytes());
                out.extend_from_slice(data);
                out.extend_from_slice(b"\r\n");
            }
            Part::Raw(raw) => out.extend_from_slice(raw),
        }
    }
    out
}

proptest! {
    #[test]
    fn any_cut_says_the_same(
        response in prop::sample::select(corpus()),
        noise in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        sizes in prop::collection::vec(0_usize..20, 0..40),
    ) {
        let mut response = response;
        if let Some((at, byte)) = noise {
            let at = at.index(response.len());
            response[at] = byte;
        }
        let expected = read(reader(), std::iter::once(&response[..]), true);
        let seen = read(reader(), cut(&response, &sizes).into_iter(), true);
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn chunks_decode_as_the_slow_reference_does(
        parts in prop::collection::vec(part(), 0..12),
        last in any::<bool>(),
        sizes in prop::collection::vec(0_usize..30, 0..40),
    ) {
        let mut body = coded(&parts);
        if last {
            body.extend_from_slice(b"0\r\n\r\n");
        }
        let (data, end) = reference_chunks::parse(&body);
        let response = [chunked("").as_bytes(), &body].concat();
        let seen = read(reader(), cut(&response, &sizes).into_iter(), true);
        prop_assert_eq!(seen.body, data);
        prop_assert_eq!(seen.fault, end.err());
        prop_assert_eq!(seen.complete, end.is_ok());
        prop_assert_eq!(seen.left, end.map_or(0, |taken| body.len() - taken));
    }
}

#[test]
fn requests_are_written() {
    let mut out = b"before ".to_vec();
    let headers: [(&[u8], &[u8]); 2] = [(b"Accept", b"text/event-stream"), (b"X-Empty", b"")];
    write_request(&mut out, "POST", "/v1/x?y=%20", "h:8000", &headers, Some(12)).unwrap();
    let expected = "before POST /v1/x?y=%20 HTTP/1.1\r\nHost: h:8000\r\nAccept: text/event-stream\r\n\
                    X-Empty: \r\nContent-Length: 12\r\n\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    let mut out = Vec::new();
    write_request(&mut out, "GET", "/", "[::1]", &[], None).unwrap();
    assert_eq!(out, b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n");
}

#[test]
fn requests_cannot_be_split() {
    let mut out = Vec::new();
    let mut refuse = |method: &str, target: &str, host: &str, header: (&str, &str), expected| {
        let header = (header.0.as_bytes(), header.1.as_bytes());
        let refused = write_request(&mut out, method, target, host, &[header], Some(1));
        assert_eq!(refused, Err(expected));
        assert!(out.is_empty());
    };
    for evil in ["\r\n", "\r", "\n", "\0", "é", "\u{7f}", "\x1b"] {
        let evil = &format!("a{evil}b");
        refuse(evil, "/", "h", ("a", "b"), InvalidRequest::Method);
        refuse("GET", evil, "h", ("a", "b"), InvalidRequest::Target);
        refuse("GET", "/", evil, ("a", "b"), InvalidRequest::Host);
        refuse("GET", "/", "h", (evil, "b"), InvalidRequest::HeaderName);
        refuse("GET", "/", "h", ("a", evil), InvalidRequest::HeaderValue);
    }
    refuse("", "/", "h", ("a", "b"), InvalidRequest::Method);
    refuse("GET", "", "h", ("a", "b"), InvalidRequest::Target);
    refuse("GET", "/a b", "h", ("a", "b"), InvalidRequest::Target);
    refuse("GET", "/", "", ("a", "b"), InvalidRequest::Host);
    refuse("GET", "/", "h", ("", "b"), InvalidRequest::HeaderName);
    refuse("GET", "/", "h", ("a:", "b"), InvalidRequest::HeaderName);
    refuse("GET", "/", "h", ("a ", "b"), InvalidRequest::HeaderName);
    for own in ["Host", "content-length", "Transfer-Encoding"] {
        refuse("GET", "/", "h", (own, "b"), InvalidRequest::HeaderName);
    }
}

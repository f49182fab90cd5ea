//! The little of HTTP that the meaning of a response depends on.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::error::Detail;

/// The longest pause that an engine may ask for, in milliseconds.
pub const MAX_RETRY_AFTER_MS: u64 = 60_000;

/// Status and headers of a response, borrowed from the transport.
#[derive(Clone, Copy)]
pub struct ResponseHead<'h> {
    /// The status code.
    pub status: u16,
    /// Names and values; names in any case.
    pub headers: &'h [(&'h [u8], &'h [u8])],
}

// Header values may hold secrets.
impl fmt::Debug for ResponseHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseHead").field("status", &self.status).finish_non_exhaustive()
    }
}

impl<'h> ResponseHead<'h> {
    /// The first header of that name, trimmed; None when it is absent or not UTF-8.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'h str> {
        let (_, value) =
            self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()))?;
        std::str::from_utf8(value).ok().map(str::trim)
    }

    /// Why the body of this 200 cannot be read as an event stream, if it cannot.
    pub(crate) fn event_stream_fault(&self) -> Option<(Detail, &'static str)> {
        let encoding = self.header("content-encoding").unwrap_or("identity");
        if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
            let message = "the body is compressed though the request refused that";
            return Some((Detail::ContentEncoding, message));
        }
        let content_type = self.header("content-type").unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("text/event-stream") {
            let message = "the answer is no event stream (content-type is not text/event-stream)";
            return Some((Detail::ContentType, message));
        }
        None
    }
}

/// How long the engine asks to wait, in milliseconds and at most [`MAX_RETRY_AFTER_MS`]:
/// `retry-after-ms`, else `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3).
///
/// A date is counted from the answer's own `Date`, where it has one: both are of one clock, however
/// wrong that is. Else it is counted from `received`, when the answer came by the wall clock; with
/// neither it says nothing. A date that has passed is no pause.
#[must_use]
pub fn retry_after_ms(head: &ResponseHead<'_>, received: Option<SystemTime>) -> Option<u64> {
    let number = |name| head.header(name).and_then(digits);
    number("retry-after-ms")
        .or_else(|| number("retry-after").map(|seconds| seconds.saturating_mul(1000)))
        .or_else(|| {
            let pause = date(head, "retry-after")?.duration_since(date(head, "date").or(received)?);
            Some(millis(pause.unwrap_or(Duration::ZERO)))
        })
        .map(|millis| millis.min(MAX_RETRY_AFTER_MS))
}

fn date(head: &ResponseHead<'_>, name: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(head.header(name)?).ok()
}

/// Whole milliseconds, the last one begun included: who waits so long has waited long enough.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// A number of digits alone; one too large to hold is as large as can be.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(headers: &[(&[u8], &[u8])]) -> Option<Detail> {
        ResponseHead { status: 200, headers }.event_stream_fault().map(|(detail, _)| detail)
    }

    #[test]
    fn event_streams_are_told_by_content_type() {
        for good in ["text/event-stream", "Text/Event-Stream; charset=utf-8", "text/event-stream;"]
        {
            assert_eq!(fault(&[(b"Content-Type", good.as_bytes())]), None, "{good}");
        }
        for bad in ["application/json", "text/html", "", "text/event-streams"] {
            let expected = Some(Detail::ContentType);
            assert_eq!(fault(&[(b"content-type", bad.as_bytes())]), expected, "{bad}");
        }
        assert_eq!(fault(&[]), Some(Detail::ContentType));
    }

    #[test]
    fn compressed_bodies_are_refused() {
        let stream: (&[u8], &[u8]) = (b"content-type", b"text/event-stream");
        assert_eq!(fault(&[stream, (b"content-encoding", b"identity")]), None);
        assert_eq!(fault(&[stream, (b"content-encoding", b"gzip")]), Some(Detail::ContentEncoding));
    }

    #[test]
    fn retry_after_is_read_and_bounded() {
        let read = |name: &'static str, value: &'static str| {
            let headers = [(name.as_bytes(), value.as_bytes())];
            retry_after_ms(&ResponseHead { status: 429, headers: &headers }, None)
        };
        assert_eq!(read("Retry-After", "0"), Some(0));
        assert_eq!(read("Retry-After", " 5 "), Some(5_000));
        assert_eq!(read("Retry-After", "99999999999999999999999"), Some(60_000));
        assert_eq!(read("retry-after-ms", "250"), Some(250));
        for bad in ["-1", "soon", "", "1.5", "+3"] {
            assert_eq!(read("retry-after", bad), None, "{bad}");
        }
    }

    #[test]
    fn a_date_is_a_pause() {
        const AT: u64 = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT
        let read = |headers: &[(&[u8], &[u8])], received: Option<u64>| {
            let received = received.map(|secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs));
            retry_after_ms(&ResponseHead { status: 503, headers }, received)
        };
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            let asked: (&[u8], &[u8]) = (b"Retry-After", date.as_bytes());
            assert_eq!(read(&[asked], Some(AT - 5)), Some(5_000), "{date}");
            assert_eq!(read(&[asked], Some(AT)), Some(0), "{date}");
            assert_eq!(read(&[asked], Some(AT + 5)), Some(0), "{date}");
            assert_eq!(read(&[asked], Some(0)), Some(MAX_RETRY_AFTER_MS), "{date}");
            assert_eq!(read(&[asked], None), None, "{date}");
            // The server's clock is an hour off, on both its dates.
            let own: (&[u8], &[u8]) = (b"Date", b"Sun, 06 Nov 1994 08:49:30 GMT");
            assert_eq!(read(&[asked, own], Some(AT + 3_600)), Some(7_000), "{date}");
            assert_eq!(read(&[own, asked], None), Some(7_000), "{date}");
            let broken: (&[u8], &[u8]) = (b"Date", b"today");
            assert_eq!(read(&[asked, broken], Some(AT - 1)), Some(1_000), "{date}");
        }
        let fraction = SystemTime::UNIX_EPOCH + Duration::new(AT - 1, 999_999_999);
        let asked: (&[u8], &[u8]) = (b"retry-after", b"Sun, 06 Nov 1994 08:49:37 GMT");
        let head = ResponseHead { status: 503, headers: &[asked] };
        assert_eq!(retry_after_ms(&head, Some(fraction)), Some(1));
        for bad in ["Sun, 06 Nov 1994 08:49:37 CET", "Sun, 06 Nov 1994 25:49:37 GMT", "Sunday"] {
            let asked: (&[u8], &[u8]) = (b"retry-after", bad.as_bytes());
            assert_eq!(read(&[asked], Some(AT)), None, "{bad}");
        }
    }
}

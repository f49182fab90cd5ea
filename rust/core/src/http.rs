//! The little of HTTP that the meaning of a response depends on.

use std::fmt;

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
/// `retry-after-ms`, else `Retry-After` in seconds (RFC 9110, section 10.2.3).
#[must_use]
pub fn retry_after_ms(head: &ResponseHead<'_>) -> Option<u64> {
    let number = |name| head.header(name).and_then(digits);
    number("retry-after-ms")
        .or_else(|| number("retry-after").map(|seconds| seconds.saturating_mul(1000)))
        .map(|millis| millis.min(MAX_RETRY_AFTER_MS))
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
            retry_after_ms(&ResponseHead { status: 429, headers: &headers })
        };
        assert_eq!(read("Retry-After", "0"), Some(0));
        assert_eq!(read("Retry-After", " 5 "), Some(5_000));
        assert_eq!(read("Retry-After", "99999999999999999999999"), Some(60_000));
        assert_eq!(read("retry-after-ms", "250"), Some(250));
        for bad in ["-1", "soon", "", "1.5", "+3"] {
            assert_eq!(read("retry-after", bad), None, "{bad}");
        }
    }
}

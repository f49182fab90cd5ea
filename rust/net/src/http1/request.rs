//! Request heads.

use std::fmt;

use super::body::is_token;

/// Which part of a request cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidRequest {
    /// The method is not a token.
    Method,
    /// The target is empty or has a character that is not visible ASCII.
    Target,
    /// The host is empty or has a character that is not visible ASCII.
    Host,
    /// A header's name is not a token, or is one that [`write_request`] writes itself.
    HeaderName,
    /// A header's value has a character that is neither visible ASCII nor space nor tab.
    HeaderValue,
}

impl fmt::Display for InvalidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Method => "the request method is not valid",
            Self::Target => "the request target is not valid",
            Self::Host => "the request host is not valid",
            Self::HeaderName => "the name of a request header is not valid",
            Self::HeaderValue => "the value of a request header is not valid",
        })
    }
}

impl std::error::Error for InvalidRequest {}

/// Appends the head of an HTTP/1.1 request to `out`.
///
/// `host` goes into `Host` and `body_len`, in bytes, into `Content-Length`; neither these two nor
/// `Transfer-Encoding` may be among `headers`.
///
/// # Errors
///
/// [`InvalidRequest`] for what would let a value from outside end its line or be read in two ways:
/// CR, LF, NUL and other control characters, and non-ASCII. `out` is as before then.
pub fn write_request(
    out: &mut Vec<u8>,
    method: &str,
    target: &str,
    host: &str,
    headers: &[(&[u8], &[u8])],
    body_len: Option<usize>,
) -> Result<(), InvalidRequest> {
    let visible = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err(InvalidRequest::Method);
    }
    if !visible(target) {
        return Err(InvalidRequest::Target);
    }
    if !visible(host) {
        return Err(InvalidRequest::Host);
    }
    for (name, value) in headers {
        if name.is_empty() || !name.iter().copied().all(is_token) || is_written_here(name) {
            return Err(InvalidRequest::HeaderName);
        }
        if !value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
            return Err(InvalidRequest::HeaderValue);
        }
    }
    let mut put = |pieces: &[&[u8]]| pieces.iter().for_each(|piece| out.extend_from_slice(piece));
    put(&[method.as_bytes(), b" ", target.as_bytes(), b" HTTP/1.1\r\n"]);
    put(&[b"Host: ", host.as_bytes(), b"\r\n"]);
    for (name, value) in headers {
        put(&[name, b": ", value, b"\r\n"]);
    }
    if let Some(bytes) = body_len {
        put(&[b"Content-Length: ", bytes.to_string().as_bytes(), b"\r\n"]);
    }
    put(&[b"\r\n"]);
    Ok(())
}

fn is_written_here(name: &[u8]) -> bool {
    ["host", "content-length", "transfer-encoding"]
        .iter()
        .any(|own| name.eq_ignore_ascii_case(own.as_bytes()))
}

//! Requests, out of the form in which an exchange holds them.
//!
//! A request is written as HTTP/1.1 before it is known which protocol the server chooses. Reading it
//! back costs where HTTP/2 is spoken, and nothing elsewhere.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Scheme, Uri};
use http::{Method, Request, Version};

/// Headers that concern an HTTP/1.1 connection (RFC 9113, section 8.2.2).
const OF_THE_CONNECTION: [&str; 6] =
    ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// Headers whose values never enter a compression table: whoever can make requests beside ours
/// could guess them by how well they compress (RFC 7541, section 7.1).
const SECRET: [&str; 5] =
    ["authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"];

/// The head and body of an HTTP/1.1 request of ours; None where HTTP/2 cannot say the same.
pub(super) fn from_http1(request: Vec<u8>) -> Option<(Request<()>, Bytes)> {
    let end = memchr::memmem::find(&request, b"\r\n\r\n")? + 4;
    let lines = memchr::memchr_iter(b'\n', request.get(..end)?).count();
    let mut lines = vec![httparse::EMPTY_HEADER; lines];
    let mut parsed = httparse::Request::new(&mut lines);
    parsed.parse(&request).ok()?;
    let mut authority = None;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for line in parsed.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        if name == header::HOST {
            authority = Some(line.value);
        } else if !OF_THE_CONNECTION.contains(&name.as_str()) {
            let mut value = HeaderValue::from_bytes(line.value).ok()?;
            value.set_sensitive(SECRET.contains(&name.as_str()));
            headers.append(name, value);
        }
    }
    let uri = Uri::builder()
        .scheme(Scheme::HTTPS)
        .authority(authority?)
        .path_and_query(parsed.path?)
        .build()
        .ok()?;
    let mut head = Request::new(());
    *head.method_mut() = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    *head.uri_mut() = uri;
    *head.version_mut() = Version::HTTP_2;
    *head.headers_mut() = headers;
    Some((head, Bytes::from(request).slice(end..)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::write_request;

    fn written(headers: &[(&[u8], &[u8])], path: &str, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_request(&mut out, "POST", path, "engine.test:8443", headers, Some(body.len()))
            .unwrap();
        out.extend_from_slice(body);
        out
    }

    #[test]
    fn it_says_the_same() {
        let headers: [(&[u8], &[u8]); 3] =
            [(b"Content-Type", b"application/json"), (b"X-Two", b"a"), (b"x-two", b"b")];
        let (head, body) = from_http1(written(&headers, "/v1/x?a=b%20c", b"{\r\n\r\n}")).unwrap();
        assert_eq!(head.method(), Method::POST);
        assert_eq!(head.uri(), "https://engine.test:8443/v1/x?a=b%20c");
        assert_eq!(head.version(), Version::HTTP_2);
        assert_eq!(&body[..], b"{\r\n\r\n}");
        let sent: Vec<_> = head.headers().iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
        let expected: [(&str, &[u8]); 4] = [
            ("content-type", b"application/json"),
            ("x-two", b"a"),
            ("x-two", b"b"),
            ("content-length", b"6"),
        ];
        assert_eq!(sent, expected);
    }

    #[test]
    fn secrets_are_never_indexed() {
        let headers: [(&[u8], &[u8]); 4] = [
            (b"Authorization", b"Bearer hunter2"),
            (b"X-API-Key", b"hunter2"),
            (b"Cookie", b"a=hunter2"),
            (b"Accept", b"*/*"),
        ];
        let (head, _) = from_http1(written(&headers, "/", b"")).unwrap();
        for (name, value) in head.headers() {
            let is_secret = !["accept", "content-length"].contains(&name.as_str());
            assert_eq!(value.is_sensitive(), is_secret, "{name}");
        }
        assert!(!format!("{head:?}").contains("hunter2"));
    }

    #[test]
    fn what_concerns_the_connection_is_left_out() {
        let headers: [(&[u8], &[u8]); 3] =
            [(b"Connection", b"keep-alive"), (b"Keep-Alive", b"1"), (b"TE", b"gzip")];
        let (head, _) = from_http1(written(&headers, "/", b"")).unwrap();
        let names: Vec<_> = head.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["content-length"]);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert!(from_http1(Vec::new()).is_none());
        assert!(from_http1(b"GET / HTTP/1.1\r\n\r\n".to_vec()).is_none(), "no host");
        assert!(from_http1(b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec()).is_none(), "no end");
    }
}

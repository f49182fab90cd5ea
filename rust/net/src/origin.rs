//! Where an engine is: scheme, host and port of its `base_url`, and the prefix of its paths.
//!
//! URLs are read as browsers read them (the [URL Standard]), by the parser that the egress policy
//! uses: what is vetted is what is connected to. On top of it, a `base_url` must be plain; it is
//! refused for what the Python package refuses it for.
//!
//! [URL Standard]: https://url.spec.whatwg.org/

use std::fmt;

use worker_adapters_core::egress::MAX_URL_BYTES;
pub use worker_adapters_core::egress::Scheme;
use worker_adapters_core::url::{Host, ParseError, Url};

/// Scheme, host and port: what connections are kept under.
///
/// ```
/// use worker_adapters_net::origin::Origin;
///
/// let (origin, prefix) = Origin::parse("https://Engines.example:8443/llama/")?;
/// assert_eq!(origin.host(), "engines.example");
/// assert_eq!(origin.host_header(), "engines.example:8443");
/// assert_eq!(prefix, "/llama");
/// # Ok::<(), worker_adapters_net::origin::InvalidUrl>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    scheme: Scheme,
    host: String,
    port: u16,
}

/// Why a `base_url` is refused. Says what to write instead and never quotes the URL, which may hold
/// a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidUrl {
    /// Empty, or with spaces, control characters or characters beyond ASCII.
    Characters,
    /// With a backslash, which some programs take for a slash.
    Backslash,
    /// Not a URL, one of more than [`MAX_URL_BYTES`], or its host or port is not one.
    Malformed,
    /// Another scheme than http and https, or none.
    Scheme,
    /// With a user name or a password, be they empty.
    Credentials,
    /// Without a host, or with port 0.
    Host,
    /// With a query or a fragment, be they empty.
    Query,
}

impl fmt::Display for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Characters => {
                "base_url must be printable ASCII without spaces, like http://host:8080"
            }
            Self::Backslash => "base_url must not contain a backslash",
            Self::Malformed => "base_url is malformed; write http://host:8080",
            Self::Scheme => "base_url must start with http:// or https://",
            Self::Credentials => "base_url must not contain credentials; pass them as api_key",
            Self::Host => "base_url must name a host and, if any, a port from 1 to 65535",
            Self::Query => "base_url must not have a query or a fragment",
        })
    }
}

impl std::error::Error for InvalidUrl {}

impl Origin {
    /// Reads a `base_url`: its origin, and the path that every request's path is appended to,
    /// either empty or beginning with a slash and never ending with one.
    ///
    /// Host names come out in lower case and addresses in their one canonical form, whatever number
    /// notation they were written in; an IPv4-mapped IPv6 address is the IPv4 one.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] for anything but `http[s]://host[:port][/prefix]`.
    pub fn parse(base_url: &str) -> Result<(Self, String), InvalidUrl> {
        if base_url.is_empty() || !base_url.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidUrl::Characters);
        }
        if base_url.contains('\\') {
            return Err(InvalidUrl::Backslash);
        }
        if base_url.len() > MAX_URL_BYTES {
            return Err(InvalidUrl::Malformed);
        }
        let url = Url::parse(base_url).map_err(|error| match error {
            ParseError::RelativeUrlWithoutBase => InvalidUrl::Scheme,
            ParseError::EmptyHost => InvalidUrl::Host,
            _ => InvalidUrl::Malformed,
        })?;
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(InvalidUrl::Scheme),
        };
        // The standard also reads `http:host`, `http:///host` and `http://@host`.
        let authority = base_url
            .split_once("://")
            .and_then(|(_, rest)| rest.split(['/', '?', '#']).next())
            .filter(|authority| !authority.is_empty())
            .ok_or(InvalidUrl::Host)?;
        if authority.contains('@') {
            return Err(InvalidUrl::Credentials);
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_canonical().to_string(),
            None => return Err(InvalidUrl::Host),
        };
        let port = url.port().unwrap_or(scheme.default_port());
        if port == 0 {
            return Err(InvalidUrl::Host);
        }
        if base_url.contains(['?', '#']) {
            return Err(InvalidUrl::Query);
        }
        let prefix = url.path().trim_end_matches('/').to_owned();
        Ok((Self { scheme, host, port }, prefix))
    }

    /// What is spoken there.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The name or address to connect to: in lower case, an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port to connect to, never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The value of the `Host` header field.
    ///
    /// > If the port is equal to the default port for a scheme, the normal form is to omit the
    /// > port subcomponent. ([RFC 9110 §4.2.3](https://www.rfc-editor.org/rfc/rfc9110#section-4.2.3))
    #[must_use]
    pub fn host_header(&self) -> String {
        let Self { scheme, host, port } = self;
        let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
        if *port == scheme.default_port() {
            format!("{open}{host}{close}")
        } else {
            format!("{open}{host}{close}:{port}")
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host_header())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use worker_adapters_core::egress::Destination;

    use super::*;

    fn parsed(base_url: &str) -> (String, String, String) {
        let (origin, prefix) = Origin::parse(base_url).unwrap();
        (origin.to_string(), origin.host().to_owned(), prefix)
    }

    #[test]
    fn plain_urls_are_read() {
        for (base_url, origin, host, prefix) in [
            ("http://localhost:8080", "http://localhost:8080", "localhost", ""),
            ("http://localhost:8080/", "http://localhost:8080", "localhost", ""),
            ("http://localhost:8080//", "http://localhost:8080", "localhost", ""),
            ("HTTPS://API.Example.COM/v1", "https://api.example.com", "api.example.com", "/v1"),
            ("https://host:443/a/b/", "https://host", "host", "/a/b"),
            ("https://host:80", "https://host:80", "host", ""),
            ("http://host:/x", "http://host", "host", "/x"),
            ("http://host/a/../b", "http://host", "host", "/b"),
            ("http://host/@evil.example", "http://host", "host", "/@evil.example"),
            ("http://[::1]:8000/v1", "http://[::1]:8000", "::1", "/v1"),
            ("http://[2001:DB8:0::1]", "http://[2001:db8::1]", "2001:db8::1", ""),
            ("http://a_b.internal:65535", "http://a_b.internal:65535", "a_b.internal", ""),
        ] {
            let expected = (origin.to_owned(), host.to_owned(), prefix.to_owned());
            assert_eq!(parsed(base_url), expected, "{base_url}");
        }
    }

    #[test]
    fn an_address_has_one_form() {
        for base_url in [
            "http://127.1",
            "http://2130706433",
            "http://0x7f.0.0.1",
            "http://%31%32%37.0.0.1",
            "http://[::ffff:7f00:1]",
        ] {
            assert_eq!(Origin::parse(base_url).unwrap().0.host(), "127.0.0.1", "{base_url}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_a_reason() {
        use InvalidUrl as Reason;
        for (base_url, reason) in [
            ("", Reason::Characters),
            ("http://host/a b", Reason::Characters),
            (" http://host", Reason::Characters),
            ("http://host\r\nX: y", Reason::Characters),
            ("http://ho\tst", Reason::Characters),
            ("http://host/\0", Reason::Characters),
            ("http://host\u{7f}", Reason::Characters),
            ("http://h\u{f6}st", Reason::Characters),
            ("http://host\\@evil.example", Reason::Backslash),
            ("http://host:port", Reason::Malformed),
            ("http://host:65536", Reason::Malformed),
            ("http://host:-1", Reason::Malformed),
            ("http://user:pass:80", Reason::Malformed),
            ("http://[::1", Reason::Malformed),
            ("http://[fe80::1%25eth0]", Reason::Malformed),
            ("http://a%00b", Reason::Malformed),
            ("http://256.256.256.256", Reason::Malformed),
            (&format!("http://host/{}", "a".repeat(MAX_URL_BYTES)), Reason::Malformed),
            ("host", Reason::Scheme),
            ("host:8080", Reason::Scheme),
            ("//host", Reason::Scheme),
            ("ftp://host", Reason::Scheme),
            ("file:///etc/passwd", Reason::Scheme),
            ("unix:///run/engine.sock", Reason::Scheme),
            ("http://user:pass@host", Reason::Credentials),
            ("http://user@host", Reason::Credentials),
            ("http://@host", Reason::Credentials),
            ("http://:@host", Reason::Credentials),
            ("http://", Reason::Host),
            ("http:host", Reason::Host),
            ("http:/host", Reason::Host),
            ("http:///host", Reason::Host),
            ("http://host:0", Reason::Host),
            ("http://host?", Reason::Query),
            ("http://host/v1?key=1", Reason::Query),
            ("http://host#", Reason::Query),
            ("http://host/#a", Reason::Query),
            ("http://host?user@other", Reason::Query),
        ] {
            assert_eq!(Origin::parse(base_url), Err(reason), "{base_url:?}");
        }
    }

    #[test]
    fn no_reason_quotes_the_url() {
        for base_url in ["http://u:hunter2@h", "http://h:hunter2", "hunter2", "http://h?k=hunter2"]
        {
            let error = Origin::parse(base_url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }

    /// Of URLs: plain ones, addresses in any notation, and anything at all.
    const BASE_URL: &str = "https?://[a-zA-Z0-9.-]{1,12}(:[0-9]{0,5})?(/[!-~]{0,8})?\
        |https?://(0x)?[0-9a-f]{1,8}(\\.[0-9]{1,3}){0,3}\
        |https?://\\[[0-9a-f:.]{2,20}\\](:[0-9]{0,5})?\
        |(http://)?[ -~\u{e4}]{0,24}";

    proptest! {
        #[test]
        fn whatever_is_read_is_fit_for_a_request(base_url in BASE_URL) {
            let Ok((origin, prefix)) = Origin::parse(&base_url) else { return Ok(()) };
            prop_assert!(!origin.host().is_empty() && origin.port() != 0);
            prop_assert!(origin.host_header().bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(prefix.is_empty() || prefix.starts_with('/') && !prefix.ends_with('/'));
            prop_assert!(prefix.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(!prefix.contains(['?', '#', '\\']));
            // The egress policy sees the same place.
            let vetted = Destination::parse(&base_url).unwrap();
            prop_assert_eq!(
                (vetted.scheme(), vetted.host().to_string(), vetted.port()),
                (origin.scheme(), origin.host().to_owned(), origin.port())
            );
            // Reading it again changes nothing.
            let again = Origin::parse(&format!("{origin}{prefix}")).unwrap();
            prop_assert_eq!(again, (origin, prefix));
        }
    }
}

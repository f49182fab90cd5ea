//! A URL as the policy and the socket both understand it.

use std::fmt;
use std::net::IpAddr;

use url::Url;

use super::address::unmapped;
use super::denied::{Denied, Reason};

/// Longer URLs are refused unread.
pub const MAX_URL_BYTES: usize = 8192;

/// What is spoken over the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    pub(super) fn from_word(word: &str) -> Option<Self> {
        match word {
            "http" => Some(Self::Http),
            "https" => Some(Self::Https),
            _ => None,
        }
    }

    /// The port where the URL names none.
    #[must_use]
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

/// The host of a URL in its one canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name to be resolved: ASCII, lower case, Punycode.
    Name(Box<str>),
    /// An address, however it was spelled; never an IPv4-mapped one.
    Address(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Where a URL leads: scheme, host and port, and nothing that could be secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    scheme: Scheme,
    host: Host,
    port: u16,
}

impl Destination {
    /// Reads an `http` or `https` URL.
    ///
    /// # Errors
    ///
    /// [`Denied`] for anything else, for credentials in it, and for port 0.
    pub fn parse(url: &str) -> Result<Self, Denied> {
        Self::read(url, |_| true)
    }

    /// As [`parse`](Self::parse), of a scheme that is allowed.
    pub(super) fn read(url: &str, allows: impl Fn(Scheme) -> bool) -> Result<Self, Denied> {
        if url.len() > MAX_URL_BYTES {
            return Err(Reason::Parse.into());
        }
        let url = Url::parse(url).map_err(|_| Reason::Parse)?;
        let scheme = Scheme::from_word(url.scheme()).filter(|scheme| allows(*scheme));
        let scheme = scheme.ok_or(Reason::Scheme)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Reason::Userinfo.into());
        }
        let port = url.port().unwrap_or(scheme.default_port());
        if port == 0 {
            return Err(Reason::Port.into());
        }
        let host = match url.host().ok_or(Reason::Parse)? {
            url::Host::Domain(name) => Host::Name(name.into()),
            url::Host::Ipv4(address) => Host::Address(address.into()),
            url::Host::Ipv6(address) => Host::Address(unmapped(address.into())),
        };
        Ok(Self { scheme, host, port })
    }

    /// What is spoken there.
    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The name to resolve and to verify a certificate for, or the address.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// The address, where the URL has one in place of a name.
    #[must_use]
    pub const fn address(&self) -> Option<IpAddr> {
        match self.host {
            Host::Address(address) => Some(address),
            Host::Name(_) => None,
        }
    }

    /// The port, which is never 0.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, Bracketed(&self.host), self.port)
    }
}

/// A host as it stands in a URL.
pub(super) struct Bracketed<'h>(pub(super) &'h Host);

impl fmt::Display for Bracketed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            host => host.fmt(f),
        }
    }
}

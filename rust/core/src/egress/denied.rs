//! Why a connection is not made: a stable word and a sentence without anything of the URL.

use std::fmt;
use std::net::IpAddr;

use crate::words::words;

words! {
    /// Why a policy forbids a connection. Where several hold, the first in this order is told.
    Reason {
        /// Not an absolute URL with a host.
        Parse = "parse",
        /// A scheme that no rule has.
        Scheme = "scheme",
        /// Credentials in the URL.
        Userinfo = "userinfo",
        /// Port 0.
        Port = "port",
        /// The metadata service of a cloud, by its address or its name.
        IpMetadata = "ip_metadata",
        /// `169.254.0.0/16`, `fe80::/10`.
        IpLinkLocal = "ip_linklocal",
        /// `224.0.0.0/4`, `ff00::/8`.
        IpMulticast = "ip_multicast",
        /// `0.0.0.0`, `::`.
        IpUnspecified = "ip_unspecified",
        /// For documentation, measurement, protocols or the future.
        IpReserved = "ip_reserved",
        /// No rule has this scheme, host and port.
        NotInAllowlist = "not_in_allowlist",
        /// The name has no address.
        Resolve = "resolve",
        /// `127.0.0.0/8`, `::1`.
        IpLoopback = "ip_loopback",
        /// RFC 1918, `fc00::/7`.
        IpPrivate = "ip_private",
        /// `100.64.0.0/10`, shared by carriers and overlay networks.
        IpCgnat = "ip_cgnat",
        /// IPv6 with an IPv4 address inside that somebody else would unpack.
        IpEmbedding = "ip_embedding",
    }
}

impl Reason {
    pub(super) const fn at(self, address: IpAddr) -> Denied {
        Denied { reason: self, address: Some(address) }
    }

    const fn sentence(self) -> &'static str {
        match self {
            Self::Parse => "the URL is not an absolute one with a valid host",
            Self::Scheme => "the egress policy does not allow the scheme of the URL",
            Self::Userinfo => "the URL contains credentials",
            Self::Port => "the port of the URL is 0",
            Self::Resolve => "the host has no address",
            Self::IpMetadata => "the host is the metadata service of a cloud",
            Self::IpLinkLocal => "the host has a link-local address",
            Self::IpMulticast => "the host has a multicast address",
            Self::IpUnspecified => "the host has the unspecified address",
            Self::IpReserved => "the host has a reserved address",
            Self::IpLoopback => "the egress policy does not allow the host a loopback address",
            Self::IpPrivate => "the egress policy does not allow the host a private address",
            Self::IpCgnat => {
                "the egress policy does not allow the host an address of shared space (CGNAT)"
            }
            Self::IpEmbedding => {
                "the egress policy does not allow the host an address that embeds an IPv4 one"
            }
            Self::NotInAllowlist => "the egress policy does not list this scheme, host and port",
        }
    }
}

/// A connection that must not be made.
///
/// Its sentence quotes nothing of the URL but an address: a URL may hold credentials anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Denied {
    /// Why.
    pub reason: Reason,
    /// The address that is at fault, where one is.
    pub address: Option<IpAddr>,
}

impl From<Reason> for Denied {
    fn from(reason: Reason) -> Self {
        Self { reason, address: None }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.sentence())?;
        self.address.map_or(Ok(()), |address| write!(f, ": {address}"))
    }
}

impl std::error::Error for Denied {}

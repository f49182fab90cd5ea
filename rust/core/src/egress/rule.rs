//! One line of an allow-list: `scheme://host[:port]`.

use std::fmt;

use ipnet::IpNet;

use super::address::AddressClass;
use super::destination::{Bracketed, Destination, Host, Scheme};

/// Why a pattern cannot be part of a policy. Quotes nothing of it: it may be a URL with credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolicyError {
    /// The position of the pattern among those given.
    pub index: usize,
    /// What is wrong with it.
    pub kind: PolicyErrorKind,
}

/// What is wrong with a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyErrorKind {
    /// Not `http://` or `https://`.
    Scheme,
    /// Neither a number from 1 to 65535 nor `*`.
    Port,
    /// Not a name, an address, a network or `*`, or more than a host.
    Host,
    /// A network with bits set beyond its prefix.
    HostBits,
    /// A network of IPv4-mapped addresses, which are judged as IPv4.
    Mapped,
    /// An address that no policy can allow.
    Never,
    /// Plain HTTP to any host.
    PlaintextAnywhere,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            PolicyErrorKind::Scheme => "must start with http:// or https://",
            PolicyErrorKind::Port => "must have a port from 1 to 65535, *, or none",
            PolicyErrorKind::Host => {
                "must be scheme://host[:port] and no more, the host a name, an address, a network \
                 like 10.0.0.0/8 or [fd00::/8], or *"
            }
            PolicyErrorKind::HostBits => "is a network with bits set beyond its prefix",
            PolicyErrorKind::Mapped => "must be written as the IPv4 network that it maps",
            PolicyErrorKind::Never => {
                "names what is never allowed: a metadata service, or a link-local, multicast, \
                 unspecified or reserved address"
            }
            PolicyErrorKind::PlaintextAnywhere => "must name the host: * is for https alone",
        };
        write!(f, "allow[{}] {what}", self.index)
    }
}

impl std::error::Error for PolicyError {}

/// Which hosts a rule lists.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reach {
    Any,
    Name(Box<str>),
    /// One address is the network of all its bits.
    Network(IpNet),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    pub(super) scheme: Scheme,
    pub(super) reach: Reach,
    /// Any port where there is none.
    pub(super) port: Option<u16>,
}

impl Rule {
    /// The rule that lists this destination and no other.
    pub(super) fn exactly(destination: &Destination) -> Self {
        let reach = match destination.host() {
            Host::Name(name) => Reach::Name(name.clone()),
            Host::Address(address) => Reach::Network((*address).into()),
        };
        Self { scheme: destination.scheme(), reach, port: Some(destination.port()) }
    }

    pub(super) fn parse(pattern: &str) -> Result<Self, PolicyErrorKind> {
        let (scheme, rest) = pattern.split_once("://").ok_or(PolicyErrorKind::Scheme)?;
        let scheme = Scheme::from_word(&scheme.to_ascii_lowercase());
        let scheme = scheme.ok_or(PolicyErrorKind::Scheme)?;
        // These would end the host, or begin it, and leave the rest unread.
        if rest.contains(['\\', '?', '#', '@']) {
            return Err(PolicyErrorKind::Host);
        }
        let (host, port) = split_port(rest);
        let port = match port {
            None => Some(scheme.default_port()),
            Some("*") => None,
            Some(path) if path.contains('/') => return Err(PolicyErrorKind::Host),
            Some(digits) => Some(port_number(digits).ok_or(PolicyErrorKind::Port)?),
        };
        let reach = if host == "*" {
            Reach::Any
        } else if host.contains('/') {
            Reach::Network(network(host)?)
        } else {
            reach(scheme, host)?
        };
        if reach == Reach::Any && scheme == Scheme::Http {
            return Err(PolicyErrorKind::PlaintextAnywhere);
        }
        Ok(Self { scheme, reach, port })
    }
}

/// Splits a port off; the colons of IPv6 are between brackets.
fn split_port(rest: &str) -> (&str, Option<&str>) {
    match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (rest, None),
    }
}

fn port_number(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|port| plain && *port != 0)
}

/// Reads a host as a URL's host is read.
fn reach(scheme: Scheme, host: &str) -> Result<Reach, PolicyErrorKind> {
    let destination = Destination::parse(&format!("{scheme}://{host}/"));
    match destination.map_err(|_| PolicyErrorKind::Host)?.host() {
        Host::Name(name) if name.contains('*') => Err(PolicyErrorKind::Host),
        Host::Name(name) if super::address::is_metadata_name(name) => Err(PolicyErrorKind::Never),
        Host::Name(name) => Ok(Reach::Name(name.clone())),
        Host::Address(address) if AddressClass::of(*address).is_never_allowed() => {
            Err(PolicyErrorKind::Never)
        }
        Host::Address(address) => Ok(Reach::Network((*address).into())),
    }
}

fn network(host: &str) -> Result<IpNet, PolicyErrorKind> {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let network: IpNet = inner.unwrap_or(host).parse().map_err(|_| PolicyErrorKind::Host)?;
    if inner.is_some() != matches!(network, IpNet::V6(_)) {
        return Err(PolicyErrorKind::Host);
    }
    if network.addr() != network.network() {
        return Err(PolicyErrorKind::HostBits);
    }
    match network {
        IpNet::V6(v6) if v6.prefix_len() >= 96 && v6.addr().to_ipv4_mapped().is_some() => {
            Err(PolicyErrorKind::Mapped)
        }
        _ => Ok(network),
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        match &self.reach {
            Reach::Any => f.write_str("*")?,
            Reach::Name(name) => f.write_str(name)?,
            Reach::Network(network) if network.prefix_len() == network.max_prefix_len() => {
                Bracketed(&Host::Address(network.addr())).fmt(f)?;
            }
            Reach::Network(network @ IpNet::V4(_)) => network.fmt(f)?,
            Reach::Network(network @ IpNet::V6(_)) => write!(f, "[{network}]")?,
        }
        match self.port {
            None => f.write_str(":*"),
            Some(port) => write!(f, ":{port}"),
        }
    }
}

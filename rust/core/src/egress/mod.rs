//! Where an adapter may connect to: decided from a URL, the addresses of its name, and the address
//! that was connected to in the end. No sockets, no name resolution.
//!
//! A connection is made in four steps, each of which may end it:
//!
//! 1. [`EgressPolicy::check_url`] reads the URL, once, by the WHATWG rules. What it returns, the
//!    [`Destination`], is what is resolved and connected to; nobody reads the URL again.
//! 2. [`EgressPolicy::check_addresses`] judges every address the name has. One that is forbidden
//!    forbids them all: whoever gave that answer cannot be trusted with the others.
//! 3. The connection is made to one of these very addresses. The name is not asked for again.
//! 4. [`EgressPolicy::check_address`] judges the peer's address.
//!
//! ```
//! use worker_adapters_core::egress::{EgressPolicy, Ranges, Reason};
//!
//! let policy = EgressPolicy::new(["http://vllm.internal:8000", "http://10.20.0.0/16:8000"],
//!     Ranges::default())?;
//! let engine = policy.check("http://vllm.internal:8000/v1", &["10.20.1.5".parse()?])?;
//! assert_eq!(engine.port(), 8000);
//!
//! let moved = policy.check("http://vllm.internal:8000/v1", &["169.254.169.254".parse()?]);
//! assert_eq!(moved.unwrap_err().reason, Reason::IpMetadata);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;
mod denied;
mod destination;
mod rule;

use std::net::IpAddr;

use address::{AddressClass, unmapped};
pub use denied::{Denied, Reason};
pub use destination::{Destination, Host, MAX_URL_BYTES, Scheme};
pub use rule::{PolicyError, PolicyErrorKind};
use rule::{Reach, Rule};

/// Ranges that the name of an allowed host may resolve to, beside global addresses and the
/// networks that the policy lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ranges {
    /// `127.0.0.0/8` and `::1`.
    pub loopback: bool,
    /// RFC 1918, `100.64.0.0/10` (RFC 6598) and `fc00::/7` (RFC 4193).
    pub private: bool,
    /// `64:ff9b::/96` (RFC 6052): such an address is judged as the IPv4 address that it stands for.
    pub nat64: bool,
}

/// What one adapter may connect to. Immutable; share it in an `Arc`.
///
/// Whatever it allows, it never allows the addresses of cloud metadata services, nor link-local,
/// multicast, unspecified and reserved ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EgressPolicy {
    rules: Box<[Rule]>,
    ranges: Ranges,
}

impl EgressPolicy {
    /// A policy that allows what the patterns say, each `scheme://host[:port]`:
    ///
    /// * `scheme` is `http` or `https`;
    /// * `host` is a name, an address, a network (`10.20.0.0/16`, `[fd00::/8]`) or `*`. A name or `*` may resolve to global addresses, to those of a listed
    ///   network of the same scheme and port, and to what `ranges` adds; `*` is for https alone;
    /// * `port` is a number or `*`, the scheme's own where it is left out.
    ///
    /// # Errors
    ///
    /// [`PolicyError`] for a pattern that says something else, and for one that could never allow
    /// anything.
    pub fn new<S: AsRef<str>>(
        allow: impl IntoIterator<Item = S>,
        ranges: Ranges,
    ) -> Result<Self, PolicyError> {
        let rules = allow
            .into_iter()
            .enumerate()
            .map(|(index, pattern)| {
                Rule::parse(pattern.as_ref()).map_err(|kind| PolicyError { index, kind })
            })
            .collect::<Result<Box<[Rule]>, PolicyError>>()?;
        Ok(Self { rules, ranges })
    }

    /// The policy of an adapter that was given none: the scheme, host and port of its base URL, at
    /// whatever address that name has.
    ///
    /// # Errors
    ///
    /// [`Denied`] for what is no URL of an HTTP server.
    pub fn for_base_url(url: &str) -> Result<Self, Denied> {
        let rule = Rule::exactly(&Destination::parse(url)?);
        let ranges = Ranges { loopback: true, private: true, nat64: true };
        Ok(Self { rules: [rule].into(), ranges })
    }

    /// The patterns of this policy, as [`new`](Self::new) takes them.
    pub fn patterns(&self) -> impl Iterator<Item = String> {
        self.rules.iter().map(ToString::to_string)
    }

    /// The ranges it adds.
    #[must_use]
    pub const fn ranges(&self) -> Ranges {
        self.ranges
    }

    /// Judges a URL and the addresses its host has; an address in the URL is judged by itself.
    ///
    /// # Errors
    ///
    /// [`Denied`] with the first reason in the order of [`Reason`].
    pub fn check(&self, url: &str, addresses: &[IpAddr]) -> Result<Destination, Denied> {
        let destination = self.read(url)?;
        self.never_any(addresses)?;
        self.check_host(&destination)?;
        if destination.address().is_none() || !addresses.is_empty() {
            self.check_addresses(&destination, addresses)?;
        }
        Ok(destination)
    }

    /// Judges a URL before its name is resolved: what may not be connected to at any address need
    /// not be asked for.
    ///
    /// # Errors
    ///
    /// [`Denied`].
    pub fn check_url(&self, url: &str) -> Result<Destination, Denied> {
        let destination = self.read(url)?;
        self.check_host(&destination)?;
        Ok(destination)
    }

    /// Judges all addresses that the name of a destination has.
    ///
    /// # Errors
    ///
    /// [`Denied`] for one that is forbidden, or where there is none.
    pub fn check_addresses(
        &self,
        destination: &Destination,
        addresses: &[IpAddr],
    ) -> Result<(), Denied> {
        if addresses.is_empty() {
            return Err(Reason::Resolve.into());
        }
        self.never_any(addresses)?;
        addresses.iter().try_for_each(|address| self.check_address(destination, *address))
    }

    /// Judges the address that is connected to. Neither allocates nor looks at the URL again.
    ///
    /// # Errors
    ///
    /// [`Denied`].
    pub fn check_address(&self, destination: &Destination, address: IpAddr) -> Result<(), Denied> {
        let class = self.never(address)?;
        let own = destination.address();
        if !self.lists_host(destination) || own.is_some_and(|own| own != unmapped(address)) {
            return Err(Reason::NotInAllowlist.at(address));
        }
        if self.is_in_network(destination, address) {
            return Ok(());
        }
        let allowed = match class {
            AddressClass::Global => true,
            AddressClass::Loopback => self.ranges.loopback,
            AddressClass::Private | AddressClass::Shared => self.ranges.private,
            _ => false,
        };
        if allowed { Ok(()) } else { Err(class.reason().at(address)) }
    }

    /// Reads a URL, as far as it is one of a scheme that some rule has.
    fn read(&self, url: &str) -> Result<Destination, Denied> {
        Destination::read(url, |scheme| self.rules.iter().any(|rule| rule.scheme == scheme))
    }

    fn check_host(&self, destination: &Destination) -> Result<(), Denied> {
        match destination.host() {
            Host::Address(address) => self.check_address(destination, *address),
            Host::Name(name) if address::is_metadata_name(name) => Err(Reason::IpMetadata.into()),
            Host::Name(_) if self.lists_host(destination) => Ok(()),
            Host::Name(_) => Err(Reason::NotInAllowlist.into()),
        }
    }

    /// The class of an address, unless no policy can allow it.
    fn never(&self, address: IpAddr) -> Result<AddressClass, Denied> {
        let class = AddressClass::of(self.judged(address));
        if class.is_never_allowed() { Err(class.reason().at(address)) } else { Ok(class) }
    }

    fn never_any(&self, addresses: &[IpAddr]) -> Result<(), Denied> {
        addresses.iter().try_for_each(|address| self.never(*address).map(|_| ()))
    }

    fn lists_host(&self, destination: &Destination) -> bool {
        self.rules_for(destination).any(|rule| match (&rule.reach, destination.host()) {
            (Reach::Any, _) => true,
            (Reach::Name(listed), Host::Name(name)) => listed == name,
            (Reach::Network(_), Host::Address(address)) => self.has(rule, *address),
            _ => false,
        })
    }

    fn is_in_network(&self, destination: &Destination, address: IpAddr) -> bool {
        self.rules_for(destination).any(|rule| self.has(rule, address))
    }

    /// Whether a rule lists a network with this address.
    fn has(&self, rule: &Rule, address: IpAddr) -> bool {
        let Reach::Network(network) = &rule.reach else { return false };
        network.contains(&unmapped(address)) || network.contains(&self.judged(address))
    }

    fn rules_for(&self, destination: &Destination) -> impl Iterator<Item = &Rule> {
        let (scheme, port) = (destination.scheme(), destination.port());
        self.rules.iter().filter(move |rule| {
            rule.scheme == scheme && rule.port.is_none_or(|listed| listed == port)
        })
    }

    /// The address by which this one is judged.
    fn judged(&self, address: IpAddr) -> IpAddr {
        let address = unmapped(address);
        match address {
            IpAddr::V6(v6) if self.ranges.nat64 => address::nat64(v6).map_or(address, IpAddr::V4),
            _ => address,
        }
    }
}

#[cfg(test)]
mod tests;

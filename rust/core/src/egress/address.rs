//! What an address is for, by the IANA special-purpose address registries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::denied::Reason;

/// What an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressClass {
    /// A public unicast address.
    Global,
    Loopback,
    Private,
    /// RFC 6598, between carriers and their customers.
    Shared,
    /// Holds an IPv4 address for a translator or tunnel on the way.
    Embedding,
    Metadata,
    LinkLocal,
    Multicast,
    Unspecified,
    /// Documentation, benchmarks, protocol assignments, not yet given out.
    Reserved,
}

/// Metadata services of clouds. Most of them have link-local addresses, forbidden as such, but not
/// all: some would pass as private, shared or even public ones.
const METADATA: [IpAddr; 11] = [
    // AWS, Azure, Google Cloud, Oracle Cloud and others.
    v4([169, 254, 169, 254]),
    // AWS ECS tasks, EKS pods.
    v4([169, 254, 170, 2]),
    v4([169, 254, 170, 23]),
    v6(0xfd00, 0xec2, 0x23),
    // AWS, Google Cloud, Scaleway over IPv6.
    v6(0xfd00, 0xec2, 0x254),
    v6(0xfd20, 0xce, 0x254),
    v6(0xfd00, 0x42, 0x42),
    // Scaleway.
    v4([169, 254, 42, 42]),
    // Alibaba Cloud.
    v4([100, 100, 100, 200]),
    // Oracle Cloud.
    v4([192, 0, 0, 192]),
    // Azure's platform services.
    v4([168, 63, 129, 16]),
];

/// What metadata services are called, where they have names that nobody else would use.
const METADATA_NAMES: [&str; 7] = [
    "metadata.google.internal",
    "metadata.goog",
    "metadata.azure.internal",
    "metadata.tencentyun.com",
    "metadata.platformequinix.com",
    "instance-data",
    "instance-data.ec2.internal",
];

const fn v4(octets: [u8; 4]) -> IpAddr {
    let [a, b, c, d] = octets;
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// The address with these first two segments and this last one.
const fn v6(first: u16, second: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, last))
}

/// Whether a host name, in lower case, is that of a metadata service.
pub(super) fn is_metadata_name(name: &str) -> bool {
    METADATA_NAMES.contains(&name.strip_suffix('.').unwrap_or(name))
}

/// The IPv4 address in place of the IPv6 one that the operating system would connect to it by.
pub(super) const fn unmapped(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The IPv4 address that a NAT64 gateway makes of an address under the well-known prefix
/// `64:ff9b::/96`.
pub(super) const fn nat64(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Some(low(address)),
        _ => None,
    }
}

const fn low(address: Ipv6Addr) -> Ipv4Addr {
    let [.., a, b, c, d] = address.octets();
    Ipv4Addr::new(a, b, c, d)
}

impl AddressClass {
    pub(super) fn of(address: IpAddr) -> Self {
        let address = unmapped(address);
        if METADATA.contains(&address) {
            return Self::Metadata;
        }
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [0, 0, 0, 0] => Self::Unspecified,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Self::Private,
            [100, 64..=127, ..] => Self::Shared,
            [127, ..] => Self::Loopback,
            [169, 254, ..] => Self::LinkLocal,
            [224..=239, ..] => Self::Multicast,
            // This network, protocols, documentation, old 6to4 relays, benchmarks, the future.
            [0 | 240..=255, ..]
            | [192, 0, 0 | 2, _]
            | [192, 88, 99, _]
            | [198, 18..=19, ..]
            | [198, 51, 100, _]
            | [203, 0, 113, _] => Self::Reserved,
            _ => Self::Global,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        if let Some(embedded) = embedded(address) {
            // What may never be reached may not be reached by way of a translator either.
            let class = Self::of(embedded.into());
            return if class.is_never_allowed() { class } else { Self::Embedding };
        }
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Self::Unspecified,
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            [0xfc00..=0xfdff, ..] => Self::Private,
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            [0xff00..=0xffff, ..] => Self::Multicast,
            // 2000::/3 less protocol assignments (2001::/23) and documentation (2001:db8::/32,
            // 3fff::/20); nothing else has been given out.
            [0x2000 | 0x2002..=0x3ffe, ..]
            | [0x2001, 0x200..=0xdb7 | 0xdb9..=0xffff, ..]
            | [0x3fff, 0x1000..=0xffff, ..] => Self::Global,
            _ => Self::Reserved,
        }
    }

    /// Whether no policy can allow such an address.
    pub(super) const fn is_never_allowed(self) -> bool {
        matches!(
            self,
            Self::Metadata | Self::LinkLocal | Self::Multicast | Self::Unspecified | Self::Reserved
        )
    }

    /// The word for it when it is at fault. A global address is when nothing lists its host.
    pub(super) const fn reason(self) -> Reason {
        match self {
            Self::Global => Reason::NotInAllowlist,
            Self::Loopback => Reason::IpLoopback,
            Self::Private => Reason::IpPrivate,
            Self::Shared => Reason::IpCgnat,
            Self::Embedding => Reason::IpEmbedding,
            Self::Metadata => Reason::IpMetadata,
            Self::LinkLocal => Reason::IpLinkLocal,
            Self::Multicast => Reason::IpMulticast,
            Self::Unspecified => Reason::IpUnspecified,
            Self::Reserved => Reason::IpReserved,
        }
    }
}

/// The IPv4 address in an IPv6 one that is not for IPv6 hosts at all.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        // The unspecified and the loopback address look like IPv4-compatible ones.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        // 6to4.
        [0x2002, ..] => {
            let [_, _, a, b, c, d, ..] = address.octets();
            Some(Ipv4Addr::new(a, b, c, d))
        }
        // Teredo: the client's address has every bit turned round.
        [0x2001, 0, ..] => Some(Ipv4Addr::from_bits(!low(address).to_bits())),
        // IPv4-compatible, IPv4-translated (SIIT), NAT64 well known and local (RFC 8215), and
        // ISATAP under any prefix but the link's own.
        [0, 0, 0, 0, 0 | 0xffff, 0, ..]
        | [0x64, 0xff9b, 0 | 1, ..]
        | [0x2000..=0x3fff | 0xfc00..=0xfdff, _, _, _, 0 | 0x200, 0x5efe, ..] => Some(low(address)),
        _ => None,
    }
}

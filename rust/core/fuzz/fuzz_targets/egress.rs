//! The egress policy: what is vetted is what the `url` crate reads, an address gets one verdict
//! however it is spelled, and what must never be connected to is allowed by no policy.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use url::Url;
use worker_adapters_core::egress::{
    Destination, EgressPolicy, Host, MAX_URL_BYTES, Ranges, Reason,
};
use worker_adapters_net::origin::Origin;

static POLICIES: LazyLock<[EgressPolicy; 4]> = LazyLock::new(|| {
    let all = Ranges { loopback: true, private: true, nat64: true };
    let policy = |allow: &[&str], ranges| EgressPolicy::new(allow, ranges).unwrap();
    [
        policy(&["https://*:*"], Ranges::default()),
        policy(&["http://vllm.internal:8000", "http://10.20.0.0/16:*"], Ranges::default()),
        policy(&["https://*:*", "http://0.0.0.0/0:*", "http://[::/0]:*"], all),
        policy(&["http://127.0.0.1:*", "http://localhost:*", "http://[fd00::/8]:*"], all),
    ]
});

/// The verdict in one word.
fn verdict(policy: &EgressPolicy, url: &str, addresses: &[IpAddr]) -> Result<Destination, Reason> {
    policy.check(url, addresses).map_err(|denied| denied.reason)
}

/// Whether an address is of a kind that nobody may allow, by the standard library's reckoning.
fn is_never_allowed(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            address.is_link_local()
                || address.is_multicast()
                || address.is_unspecified()
                || address.is_broadcast()
                || address.is_documentation()
        }
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.is_multicast() || address.is_unspecified()
        }
    }
}

fn is_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_loopback() || address.is_private(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local(),
    }
}

/// What is read of a URL is what the `url` crate reads of it.
fn check_reading(text: &str) {
    let theirs = Url::parse(text).ok().filter(|_| text.len() <= MAX_URL_BYTES);
    let theirs = theirs.filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
            && url.port() != Some(0)
    });
    let ours = Destination::parse(text);
    assert_eq!(ours.is_ok(), theirs.is_some(), "{text:?}");
    let (Ok(ours), Some(theirs)) = (ours, theirs) else { return };
    assert_eq!(ours.scheme().to_string(), theirs.scheme());
    assert_eq!(Some(ours.port()), theirs.port_or_known_default());
    match (ours.host(), theirs.host().unwrap()) {
        (Host::Name(ours), url::Host::Domain(theirs)) => assert_eq!(&**ours, theirs),
        (Host::Address(ours), url::Host::Ipv4(theirs)) => assert_eq!(*ours, theirs),
        (Host::Address(ours), url::Host::Ipv6(theirs)) => {
            assert_eq!(*ours, IpAddr::V6(theirs).to_canonical());
        }
        _ => panic!("name or address? {text:?}"),
    }
    // A base URL leads where the policy thinks it does.
    if let Ok((origin, _)) = Origin::parse(text) {
        assert_eq!(
            (origin.scheme(), origin.host(), origin.port()),
            (ours.scheme(), ours.host().to_string().as_str(), ours.port())
        );
    }
}

fn check_verdict(policy: &EgressPolicy, text: &str, addresses: &[IpAddr]) {
    let seen = verdict(policy, text, addresses);
    let Ok(destination) = &seen else {
        assert!(seen != Err(Reason::Parse) || Destination::parse(text).is_err());
        return;
    };
    // Its one canonical spelling is judged alike, and in steps it comes to the same.
    assert_eq!(verdict(policy, &destination.to_string(), addresses), seen);
    let connected: Vec<IpAddr> =
        destination.address().into_iter().chain(addresses.iter().copied()).collect();
    assert!(!connected.is_empty(), "a name at no address");
    assert!(policy.check_url(text).is_ok());
    for address in connected {
        assert!(policy.check_address(destination, address).is_ok());
        assert!(!is_never_allowed(address), "{address}");
        assert!(
            !is_local(address)
                || policy.ranges() != Ranges::default()
                || is_listed(policy, address),
            "{address}"
        );
    }
}

/// The one network of the policies above whose ranges add nothing.
fn is_listed(policy: &EgressPolicy, address: IpAddr) -> bool {
    let is_there = matches!(address.to_canonical(), IpAddr::V4(v4) if v4.octets()[..2] == [10, 20]);
    is_there && policy.patterns().any(|pattern| pattern.contains("10.20."))
}

/// How many ways to write an address there are beside the usual one.
const SPELLINGS: u8 = 9;

/// One of the ways to write an address.
fn spelling(address: Ipv4Addr, which: u8) -> String {
    let [a, b, c, d] = address.octets();
    let (number, low, last) =
        (address.to_bits(), address.to_bits() & 0xFF_FFFF, u16::from_be_bytes([c, d]));
    match which {
        0 => format!("{number}"),
        1 => format!("{number:#x}"),
        2 => format!("0{number:o}"),
        3 => format!("{a}.{low}"),
        4 => format!("{a}.{b}.{last}"),
        5 => format!("{a:#X}.0{b:o}.{c}.{d:#x}"),
        6 => {
            let digits = a.to_string();
            format!("%{:02x}{}.{b}.{c}.{d}.", digits.as_bytes()[0], &digits[1..])
        }
        7 => format!("[::ffff:{address}]"),
        _ => format!("[::ffff:{:x}:{last:x}]", u16::from_be_bytes([a, b])),
    }
}

/// However an address is written, it is one address.
fn check_spelling(policy: &EgressPolicy, address: Ipv4Addr, which: u8) {
    let plain = verdict(policy, &format!("http://{address}:8000/"), &[]);
    let spelling = spelling(address, which);
    let seen = verdict(policy, &format!("http://{spelling}:8000/"), &[]);
    assert_eq!(seen, plain, "{spelling} is {address}");
}

fuzz_target!(|data: &[u8]| {
    let Some((v4, rest)) = data.split_first_chunk::<4>() else { return };
    let Some((v6, rest)) = rest.split_first_chunk::<16>() else { return };
    let Some((which, text)) = rest.split_first() else { return };
    let (v4, v6) = (Ipv4Addr::from(*v4), Ipv6Addr::from(*v6));
    let text = String::from_utf8_lossy(text);
    check_reading(&text);
    let policy = &POLICIES[usize::from(which & 3)];
    let addresses: &[IpAddr] = match which >> 2 & 3 {
        0 => &[],
        1 => &[v4.into()],
        2 => &[v6.into()],
        _ => &[v4.into(), v6.into()],
    };
    check_verdict(policy, &text, addresses);
    match which >> 4 {
        way @ ..SPELLINGS => check_spelling(policy, v4, way),
        _ => check_verdict(policy, &format!("http://[{v6}]:8000"), &[]),
    }
});

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

const ALL: Ranges = Ranges { loopback: true, private: true, nat64: true };
const NONE: Ranges = Ranges { loopback: false, private: false, nat64: false };

fn policy(allow: &[&str], ranges: Ranges) -> EgressPolicy {
    EgressPolicy::new(allow, ranges).unwrap()
}

fn public() -> EgressPolicy {
    policy(&["https://*:*"], NONE)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The verdict in one word.
fn word(verdict: Result<Destination, Denied>) -> &'static str {
    verdict.map_or_else(|denied| denied.reason.as_str(), |_| "ok")
}

fn class(address: &str) -> &'static str {
    word(public().check("https://name.example/", &[ip(address)]))
}

#[test]
fn the_edges_of_every_range() {
    for (addresses, reason) in [
        ("1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255", "ok"),
        ("128.0.0.0 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255", "ok"),
        ("192.0.1.0 192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0", "ok"),
        ("198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0", "ok"),
        ("223.255.255.255 168.63.129.15 168.63.129.17", "ok"),
        ("2000:: 2001:200:: 2001:db7:ffff:: 2001:db9:: 2003:: 2606:4700::1111 3ffe:ffff::", "ok"),
        ("3fff:1000:: 2606:4700::1:5efe:808:808", "ok"),
        ("0.0.0.0 ::", "ip_unspecified"),
        ("10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.0", "ip_private"),
        ("192.168.255.255 fc00:: fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ip_private"),
        ("100.64.0.0 100.127.255.255", "ip_cgnat"),
        ("127.0.0.0 127.255.255.255 ::1", "ip_loopback"),
        ("169.254.0.0 169.254.255.255 fe80:: febf:ffff::", "ip_linklocal"),
        ("224.0.0.0 239.255.255.255 ff00:: ff02::1", "ip_multicast"),
        ("0.0.0.1 0.255.255.255 192.0.0.0 192.0.0.255 192.0.2.0 192.88.99.1", "ip_reserved"),
        ("198.18.0.0 198.19.255.255 198.51.100.0 203.0.113.255 240.0.0.0", "ip_reserved"),
        ("255.255.255.255 100::1 1fff:: 4000:: 5f00:: 2001:1:: 2001:1ff::", "ip_reserved"),
        ("2001:db8:: 2001:db8:ffff:: 3fff:: 3fff:fff:: fec0:: feff:: fbff::", "ip_reserved"),
        ("169.254.169.254 169.254.170.2 100.100.100.200 192.0.0.192", "ip_metadata"),
        ("168.63.129.16 fd00:ec2::254 fd00:ec2::23 fd20:ce::254", "ip_metadata"),
        ("::127.0.0.1 ::8.8.8.8 ::ffff:0:8.8.8.8 64:ff9b::8.8.8.8", "ip_embedding"),
        ("64:ff9b::10.0.0.1 64:ff9b:1::8.8.8.8 2002:808:808::1", "ip_embedding"),
        ("2001::f7f7:f7f7 2606:4700::5efe:8.8.8.8 2606:4700::200:5efe:8.8.8.8", "ip_embedding"),
        ("::169.254.169.254 ::ffff:0:169.254.169.254 64:ff9b::168.63.129.16", "ip_metadata"),
        ("64:ff9b:1::100.100.100.200 2002:a9fe:a9fe::1 2001::5601:5601", "ip_metadata"),
        ("2606:4700::5efe:169.254.169.254", "ip_metadata"),
        ("64:ff9b::169.254.1.1", "ip_linklocal"),
        ("64:ff9b::", "ip_unspecified"),
    ] {
        for address in addresses.split(' ') {
            assert_eq!(class(address), reason, "{address}");
        }
    }
}

#[test]
fn patterns_read_back_as_they_are_shown() {
    for (pattern, shown) in [
        ("https://LLM.example.com", "https://llm.example.com:443"),
        ("http://llm.example.com", "http://llm.example.com:80"),
        ("HTTPS://*:*", "https://*:*"),
        ("https://*", "https://*:443"),
        ("http://127.1:8080", "http://127.0.0.1:8080"),
        ("http://[0:0::1]:8080", "http://[::1]:8080"),
        ("http://[::ffff:10.1.2.3]", "http://10.1.2.3:80"),
        ("http://10.20.0.0/16:8000", "http://10.20.0.0/16:8000"),
        ("http://10.20.0.0/16", "http://10.20.0.0/16:80"),
        ("http://[fd12::/16]:*", "http://[fd12::/16]:*"),
        ("http://[fd12::/112]", "http://[fd12::/112]:80"),
        ("https://bücher.example", "https://xn--bcher-kva.example:443"),
        ("http://10.0.0.1/32", "http://10.0.0.1:80"),
    ] {
        let read = policy(&[pattern], NONE);
        assert_eq!(read.patterns().collect::<Vec<_>>(), [shown]);
        assert_eq!(policy(&[shown], NONE), read, "{shown}");
    }
}

#[test]
fn patterns_that_cannot_be_meant() {
    use PolicyErrorKind as Kind;
    for (pattern, kind) in [
        ("", Kind::Scheme),
        ("llm.example.com", Kind::Scheme),
        ("ftp://llm.example.com", Kind::Scheme),
        ("*://llm.example.com", Kind::Scheme),
        ("http://host:0", Kind::Port),
        ("http://host:65536", Kind::Port),
        ("http://host:+80", Kind::Port),
        ("http://host:", Kind::Port),
        ("http://::1", Kind::Host),
        ("http://", Kind::Host),
        ("http://:80", Kind::Host),
        ("http://host/", Kind::Host),
        ("http://host/v1", Kind::Host),
        ("http://host:80/", Kind::Host),
        ("http://user:hunter2@host", Kind::Host),
        ("http://host?x", Kind::Host),
        ("http://host#x", Kind::Host),
        ("http://host\\x", Kind::Host),
        ("http://hunter2@host", Kind::Host),
        ("http://user:hunter2@host:80", Kind::Host),
        ("http://*.example.com", Kind::Host),
        ("http://1.2.3.4.5", Kind::Host),
        ("http://fd00::/8", Kind::Host),
        ("http://[10.0.0.0/8]", Kind::Host),
        ("http://10.0.0.0/33", Kind::Host),
        ("http://10.20.1.0/16:8000", Kind::HostBits),
        ("http://[fd00::1/8]", Kind::HostBits),
        ("http://[::ffff:10.0.0.0/104]", Kind::Mapped),
        ("http://169.254.169.254", Kind::Never),
        ("http://[::ffff:a9fe:a9fe]", Kind::Never),
        ("http://0.0.0.0:8080", Kind::Never),
        ("https://metadata.google.internal", Kind::Never),
        ("http://*:8080", Kind::PlaintextAnywhere),
    ] {
        let error = EgressPolicy::new(["http://fine", pattern], NONE).unwrap_err();
        assert_eq!(error, PolicyError { index: 1, kind }, "{pattern}");
        assert!(error.to_string().starts_with("allow[1] "));
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[test]
fn a_name_may_resolve_to_what_is_allowed_beside_it() {
    let url = "http://engine.internal:8000";
    let listed = ["http://engine.internal:8000", "http://10.20.0.0/16:8000", "http://10.30.0.1:80"];
    let strict = policy(&listed, NONE);
    let check = |address| word(strict.check(url, &[ip(address)]));
    assert_eq!(check("8.8.8.8"), "ok");
    assert_eq!(check("10.20.1.5"), "ok");
    assert_eq!(check("::ffff:10.20.1.5"), "ok");
    assert_eq!(check("10.21.0.1"), "ip_private");
    assert_eq!(check("10.30.0.1"), "ip_private", "listed for another port");
    assert_eq!(check("127.0.0.1"), "ip_loopback");
    assert_eq!(check("64:ff9b::10.20.1.5"), "ip_embedding");

    let wide = policy(&listed, ALL);
    for address in ["10.21.0.1", "100.64.0.1", "fd00::1", "127.0.0.1", "64:ff9b::10.9.9.9"] {
        assert_eq!(word(wide.check(url, &[ip(address)])), "ok", "{address}");
    }
    for address in ["169.254.1.1", "64:ff9b::169.254.169.254", "fd00:ec2::254", "0.0.0.0"] {
        assert_ne!(word(wide.check(url, &[ip(address)])), "ok", "{address}");
    }
}

#[test]
fn each_range_is_allowed_by_itself() {
    let url = "http://engine.internal:8000";
    for (ranges, allowed) in [
        (Ranges { loopback: true, ..NONE }, ["127.0.0.1", "::1"]),
        (Ranges { private: true, ..NONE }, ["10.0.0.1", "100.64.0.1"]),
        (Ranges { nat64: true, ..NONE }, ["64:ff9b::8.8.8.8", "8.8.8.8"]),
    ] {
        let policy = policy(&[url], ranges);
        assert_eq!(policy.ranges(), ranges);
        for address in ["127.0.0.1", "::1", "10.0.0.1", "100.64.0.1", "64:ff9b::8.8.8.8"] {
            let expected = allowed.contains(&address);
            let got = policy.check(url, &[ip(address)]).is_ok();
            assert_eq!(got, expected, "{address} with {ranges:?}");
        }
    }
}

#[test]
fn a_network_does_not_list_the_names_within_it() {
    let policy = policy(&["http://10.20.0.0/16:8000"], NONE);
    assert_eq!(word(policy.check("http://10.20.0.1:8000", &[])), "ok");
    assert_eq!(word(policy.check_url("http://name.internal:8000")), "not_in_allowlist");
    let resolved = policy.check("http://name.internal:8000", &[ip("10.20.0.1")]);
    assert_eq!(word(resolved), "not_in_allowlist");
}

#[test]
fn an_address_in_the_url_is_the_only_one() {
    let policy = policy(&["http://10.20.0.0/16:8000"], ALL);
    let url = "http://10.20.0.1:8000";
    let destination = policy.check_url(url).unwrap();
    assert_eq!(destination.address(), Some(ip("10.20.0.1")));
    assert_eq!(policy.check_address(&destination, ip("::ffff:10.20.0.1")), Ok(()));
    assert_eq!(word(policy.check(url, &[ip("10.20.0.1"), ip("10.20.0.2")])), "not_in_allowlist");
}

#[test]
fn the_base_url_allows_itself() {
    let policy = EgressPolicy::for_base_url("http://engine.internal:8000/prefix").unwrap();
    assert_eq!(policy.patterns().collect::<Vec<_>>(), ["http://engine.internal:8000"]);
    let url = "http://engine.internal:8000/v1/x?y";
    for address in ["8.8.8.8", "10.1.1.1", "127.0.0.1", "100.64.0.1", "fd00::1"] {
        assert_eq!(word(policy.check(url, &[ip(address)])), "ok", "{address}");
    }
    for (address, reason) in [
        ("169.254.169.254", "ip_metadata"),
        ("168.63.129.16", "ip_metadata"),
        ("fe80::1", "ip_linklocal"),
        ("0.0.0.0", "ip_unspecified"),
    ] {
        assert_eq!(word(policy.check(url, &[ip(address)])), reason);
    }
    for (other, reason) in [
        ("https://engine.internal:8000/", "scheme"),
        ("http://engine.internal/", "not_in_allowlist"),
        ("http://other.internal:8000/", "not_in_allowlist"),
        ("http://127.0.0.1:8000/", "not_in_allowlist"),
    ] {
        assert_eq!(word(policy.check_url(other)), reason, "{other}");
    }
    assert_eq!(word(policy.check(url, &[])), "resolve");

    for literal in ["http://[64:ff9b::8.8.8.8]:80", "http://[2002:808:808::1]", "http://[::1]:1"] {
        let policy = EgressPolicy::for_base_url(literal).unwrap();
        assert_eq!(word(policy.check(literal, &[])), "ok", "{literal}");
    }

    // Metadata is not reached by calling it one's engine either.
    let policy = EgressPolicy::for_base_url("http://169.254.169.254").unwrap();
    assert_eq!(word(policy.check_url("http://169.254.169.254/latest")), "ip_metadata");
    let policy = EgressPolicy::for_base_url("http://metadata.google.internal.").unwrap();
    assert_eq!(word(policy.check_url("http://METADATA.google.internal./")), "ip_metadata");
    assert_eq!(EgressPolicy::for_base_url("host:80").unwrap_err().reason, Reason::Scheme);
}

#[test]
fn the_first_reason_is_told() {
    let url = "http://engine.internal:8000";
    let policy = policy(&[url], NONE);
    let (private, never) = (ip("10.0.0.1"), ip("169.254.169.254"));
    let destination = policy.check_url(url).unwrap();
    for addresses in [[private, never], [never, private]] {
        assert_eq!(word(policy.check(url, &addresses)), "ip_metadata");
        assert_eq!(word(policy.check("http://other:80", &addresses)), "ip_metadata");
        let denied = policy.check_addresses(&destination, &addresses).unwrap_err();
        assert_eq!(denied.reason, Reason::IpMetadata);
    }
    assert_eq!(word(policy.check("http://other:80", &[private])), "not_in_allowlist");
    assert_eq!(word(policy.check("http://u@other:0", &[never])), "userinfo");
    assert_eq!(word(policy.check("ftp://u@other:0", &[never])), "scheme");
    assert!(Reason::ALL.is_sorted());
}

#[test]
fn a_url_that_is_too_long_is_not_read() {
    let url = |length| format!("https://a.example/{}", "x".repeat(length - 18));
    assert_eq!(word(public().check_url(&url(MAX_URL_BYTES))), "ok");
    assert_eq!(word(public().check_url(&url(MAX_URL_BYTES + 1))), "parse");
}

#[test]
fn what_is_said_quotes_nothing_of_the_url() {
    for url in [
        "hunter2",
        "hunter2:pw@host",
        "https://user:hunter2@api.example.com/",
        "https://hunter2@api.example.com/",
        "http://api.example.com/hunter2?hunter2#hunter2",
        "https://api.example.com:0/hunter2",
        "https:///hunter2 x",
        "https://hunter2.example/",
    ] {
        let denied = public().check(url, &[]).unwrap_err();
        assert!(!format!("{denied} {denied:?}").contains("hunter2"), "{denied}");
    }
    let denied = public().check("https://hunter2.example/", &[ip("10.1.2.3")]).unwrap_err();
    assert_eq!(
        denied.to_string(),
        "the egress policy does not allow the host a private address: 10.1.2.3"
    );
}

#[test]
fn a_destination_shows_no_more_than_where_it_is() {
    let read = |url| Destination::parse(url).unwrap().to_string();
    assert_eq!(read("https://API.example.com/secret?secret"), "https://api.example.com:443");
    assert_eq!(read("http://[::ffff:7f00:1]:8080/"), "http://127.0.0.1:8080");
    assert_eq!(read("http://[::0001]/"), "http://[::1]:80");
}

/// Ways to write an IPv4 address in a URL that mean that address and nothing else.
fn spellings(address: Ipv4Addr) -> Vec<String> {
    let bits = address.to_bits();
    let [a, b, c, d] = address.octets();
    let (low24, low16) = (bits & 0xff_ffff, bits & 0xffff);
    vec![
        format!("{address}."),
        format!("{a}.{b}.{low16}"),
        format!("{a}.{low24}"),
        format!("{bits}"),
        format!("{bits:#x}"),
        format!("{bits:#o}").replacen("0o", "0", 1),
        format!("0x{a:02X}.0X{b:x}.{c:#x}.{d:#x}"),
        format!("0{a:o}.0{b:o}.0{c:03o}.0{d:o}"),
        format!("{a:#x}.0{b:o}.{low16}"),
        format!("{address}").replace('.', "\u{3002}"),
        format!("{address}").replace('1', "\u{2460}").replace('0', "\u{ff10}"),
        format!("{address}").replace('2', "%32").replace('.', "%2E"),
        format!("[::ffff:{address}]"),
        format!("[::FFFF:{:x}:{low16:x}]", bits >> 16),
        format!("[0:0:0:0:0:ffff:{:04x}:{low16:04X}]", bits >> 16),
    ]
}

/// IPv6 addresses that a translator or tunnel would turn into an IPv4 one.
fn embeddings(address: Ipv4Addr) -> Vec<Ipv6Addr> {
    let [a, b, c, d] = address.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    vec![
        Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
        Ipv6Addr::new(0x64, 0xff9b, 1, 7, 0, 0, high, low),
        Ipv6Addr::new(0x2002, high, low, 1, 2, 3, 4, 5),
        Ipv6Addr::new(0x2001, 0, 0x808, 0x808, 0, 0, !high, !low),
        Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0x5efe, high, low),
    ]
}

fn ipv4() -> impl Strategy<Value = Ipv4Addr> {
    let special = prop::sample::select(vec![
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(10, 1, 2, 3),
        Ipv4Addr::new(100, 64, 0, 1),
        Ipv4Addr::new(100, 100, 100, 200),
        Ipv4Addr::new(168, 63, 129, 16),
        Ipv4Addr::new(169, 254, 169, 254),
        Ipv4Addr::new(192, 0, 0, 192),
        Ipv4Addr::new(198, 18, 0, 1),
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::UNSPECIFIED,
    ]);
    let edges = prop::array::uniform4(prop::sample::select(vec![
        0, 1, 10, 100, 127, 128, 168, 169, 172, 192, 198, 224, 254, 255_u8,
    ]));
    prop_oneof![any::<u32>().prop_map(Ipv4Addr::from_bits), edges.prop_map(Ipv4Addr::from), special]
}

fn policies() -> [EgressPolicy; 3] {
    let networks = ["https://*:*", "https://10.0.0.0/8:8443", "https://0.0.0.0/0:9443"];
    [public(), policy(&["https://*:*"], ALL), policy(&networks, NONE)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_spelling_gets_the_verdict_of_the_address(address in ipv4(), port in prop::sample::select(vec![443_u16, 8443, 9443])) {
        for policy in policies() {
            let canonical = policy.check(&format!("https://{address}:{port}/"), &[]);
            let resolved = policy.check(&format!("https://name.example:{port}/"), &[address.into()]);
            prop_assert_eq!(word(resolved), word(canonical.clone()));
            for spelling in spellings(address) {
                let got = policy.check(&format!("https://{spelling}:{port}/"), &[]);
                prop_assert_eq!(&got, &canonical, "{}", spelling);
            }
            let mapped = policy.check(
                &format!("https://name.example:{port}/"),
                &[address.to_ipv6_mapped().into()],
            );
            prop_assert_eq!(word(mapped), word(canonical));
        }
    }

    #[test]
    fn no_embedding_gets_further_than_the_address(address in ipv4()) {
        for policy in policies() {
            let canonical = word(policy.check(&format!("https://{address}/"), &[]));
            for embedding in embeddings(address) {
                let got = word(policy.check(&format!("https://[{embedding}]/"), &[]));
                let judged_as_ipv4 = policy.ranges().nat64 && address::nat64(embedding).is_some();
                let never = AddressClass::of(address.into()).is_never_allowed();
                let expected = if judged_as_ipv4 || never { canonical } else { "ip_embedding" };
                prop_assert_eq!(got, expected, "{}", embedding);
                let resolved = policy.check("https://name.example/", &[embedding.into()]);
                prop_assert_eq!(word(resolved), expected);
            }
        }
    }

    #[test]
    fn an_ipv6_address_is_judged_alike_in_a_url_and_by_name(bits: u128, shift in 0_u32..128) {
        let address = Ipv6Addr::from_bits(bits >> shift);
        for policy in policies() {
            let literal = word(policy.check(&format!("https://[{address}]/"), &[]));
            let [a, b, c, d, e, f, g, h] = address.segments();
            let long = format!("https://[{a:04X}:{b:x}:{c:x}:{d:x}:{e:x}:{f:x}:{g:x}:{h:x}]/");
            prop_assert_eq!(word(policy.check(&long, &[])), literal);
            prop_assert_eq!(word(policy.check("https://n.example/", &[address.into()])), literal);
        }
    }

    #[test]
    fn no_url_does_worse_than_a_verdict(url in "\\PC{0,40}", rest in "[a-z0-9:/@\\\\.%\\[\\]#?*\t]{0,40}") {
        for url in [url, format!("https://{rest}"), format!("http:{rest}")] {
            for policy in policies() {
                if let Ok(destination) = policy.check_url(&url) {
                    prop_assert_eq!(Destination::parse(&destination.to_string()), Ok(destination));
                }
            }
            let read = EgressPolicy::new([&url], NONE);
            if let Ok(policy) = read {
                let shown: Vec<String> = policy.patterns().collect();
                prop_assert_eq!(EgressPolicy::new(&shown, NONE), Ok(policy));
            }
        }
    }

    #[test]
    fn one_forbidden_address_forbids_all(
        at in 0_usize..4,
        first in prop::sample::select(vec![0_u8, 10, 127, 224, 239, 240, 255]),
        rest: u32,
    ) {
        let policy = public();
        let address = Ipv4Addr::from_bits(u32::from(first) << 24 | rest >> 8);
        let mut addresses = vec![ip("8.8.8.8"), ip("1.1.1.1"), ip("2606:4700::1111")];
        addresses.insert(at, address.into());
        let got = policy.check("https://name.example/", &addresses).unwrap_err();
        prop_assert_eq!(got.address, Some(address.into()));
    }
}

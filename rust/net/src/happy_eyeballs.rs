//! In which order, and how fast, the addresses of a name are tried: Happy Eyeballs.
//!
//! Planning alone, without sockets. The rules are those of [RFC 8305]: attempts start one after
//! another, each [`ATTEMPT_DELAY`] after the last or as soon as that one failed, and the first that
//! connects wins.
//!
//! [RFC 8305]: https://www.rfc-editor.org/rfc/rfc8305

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

/// How long an attempt is alone before the next one starts beside it.
///
/// > One recommended value for a default delay is 250 milliseconds. (RFC 8305 §5)
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The order to try `addresses` in: IPv6 first, then both families by turns, each in the order the
/// resolver gave, which is its preference; what is left of the longer family comes last. An address
/// named twice is tried once.
///
/// > Whichever address family is first in the list should be followed by an address of the other
/// > address family (RFC 8305 §4)
#[must_use]
pub fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut seen = HashSet::with_capacity(addresses.len());
    let (mut turn, mut other): (VecDeque<_>, VecDeque<_>) = addresses
        .into_iter()
        .filter(|address| seen.insert(*address))
        .partition(SocketAddr::is_ipv6);
    let mut order = Vec::with_capacity(seen.len());
    while let Some(address) = turn.pop_front() {
        order.push(address);
        if !other.is_empty() {
            std::mem::swap(&mut turn, &mut other);
        }
    }
    order.extend(other);
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_alternate_from_ipv6_on() {
        let given = addresses(&["1.1.1.1:80", "1.1.1.2:80", "[::1]:80", "1.1.1.3:80", "[::2]:80"]);
        let expected =
            addresses(&["[::1]:80", "1.1.1.1:80", "[::2]:80", "1.1.1.2:80", "1.1.1.3:80"]);
        assert_eq!(interleave(given), expected);
    }

    #[test]
    fn one_family_keeps_its_order() {
        for texts in [["1.1.1.2:80", "1.1.1.1:80"], ["[::2]:80", "[::1]:80"]] {
            assert_eq!(interleave(addresses(&texts)), addresses(&texts));
        }
        assert_eq!(interleave(Vec::new()), Vec::new());
    }

    #[test]
    fn an_address_named_twice_is_tried_once() {
        let given = addresses(&["1.1.1.1:80", "[::1]:80", "1.1.1.1:80", "[::1]:80", "1.1.1.1:81"]);
        let expected = addresses(&["[::1]:80", "1.1.1.1:80", "1.1.1.1:81"]);
        assert_eq!(interleave(given), expected);
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        (any::<bool>(), 0..8_u8).prop_map(|(v6, last)| {
            if v6 { format!("[::{last}]:80") } else { format!("10.0.0.{last}:80") }.parse().unwrap()
        })
    }

    proptest! {
        #[test]
        fn nothing_is_lost_added_or_reordered(given in prop::collection::vec(address(), 0..24)) {
            let order = interleave(given.clone());
            prop_assert_eq!(
                order.iter().collect::<HashSet<_>>(), given.iter().collect::<HashSet<_>>()
            );
            for v6 in [true, false] {
                let mut first_seen = Vec::new();
                for address in given.iter().filter(|address| address.is_ipv6() == v6) {
                    if !first_seen.contains(address) {
                        first_seen.push(*address);
                    }
                }
                let kept: Vec<_> =
                    order.iter().copied().filter(|address| address.is_ipv6() == v6).collect();
                prop_assert_eq!(kept, first_seen);
            }
            // Two of a family stand side by side only when the other family is used up.
            for (index, pair) in order.windows(2).enumerate() {
                if pair[0].is_ipv6() == pair[1].is_ipv6() {
                    prop_assert!(
                        order[index..].iter().all(|rest| rest.is_ipv6() == pair[0].is_ipv6())
                    );
                }
            }
        }
    }
}

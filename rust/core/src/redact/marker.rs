//! What stands where a secret stood.

use std::fmt::Write;

use sha2::{Digest, Sha256};

const STARS: &[u8] = b"****";
const DIGITS: usize = 6;

/// `****` and the first six hex digits of the secret's SHA-256, as the contract asks.
pub(super) fn fingerprint(secret: &[u8]) -> String {
    let mut out = String::from("****");
    for byte in Sha256::digest(secret).iter().take(DIGITS / 2) {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// Whether this is a fingerprint and nothing else.
pub(super) fn is_fingerprint(text: &[u8]) -> bool {
    text.strip_prefix(STARS).is_some_and(|digits| {
        digits.len() == DIGITS && digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fingerprint_is_one() {
        assert_eq!(fingerprint(b"sk-example-1"), "****420cc9");
        assert!(is_fingerprint(b"****420cc9"));
        for other in ["420cc9", "****", "****420cc", "****420cc90", "****secret", "****420CC9"] {
            assert!(!is_fingerprint(other.as_bytes()), "{other}");
        }
    }
}

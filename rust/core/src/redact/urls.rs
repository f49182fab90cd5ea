//! What a URL carries before its host. Its parameters are found by their names.

use super::scan::{Span, byte, quote, rest, run, stretch};

/// Longer than most names: a token in the place of one.
const LONG_NAME: usize = 16;

pub(super) fn find(text: &[u8], spans: &mut Vec<Span>) {
    // Several URLs may stand in one run without spaces: each run is measured once.
    let mut known_run = 0..0;
    let mut last_at = None;
    for slashes in memchr::memmem::find_iter(text, b"://") {
        let start = slashes + 3;
        if !known_run.contains(&start) {
            known_run = start..run(text, start, |byte| byte > b' ' && !quote(byte) && byte != b'<');
            last_at = memchr::memrchr(b'@', stretch(text, known_run.clone())).map(|at| start + at);
        }
        let Some(last_at) = last_at.filter(|last_at| *last_at >= start) else { continue };
        let end = run(text, start, |byte| !b"/?#\\>".contains(&byte)).min(known_run.end);
        let authority = stretch(text, start..end);
        let userinfo = match memchr::memrchr(b'@', authority) {
            Some(at) => start..start + at,
            // A password that should have been encoded: what follows the colon is no port.
            None if has_no_port(authority) => start..last_at,
            None => continue,
        };
        match memchr::memchr(b':', stretch(text, userinfo.clone())) {
            None => spans.push(Span::new(userinfo)),
            Some(colon) => {
                let (name, password) = (
                    userinfo.start..userinfo.start + colon,
                    userinfo.start + colon + 1..userinfo.end,
                );
                if password.is_empty() || name.len() >= LONG_NAME {
                    spans.push(Span::new(name));
                }
                spans.push(Span::new(password));
            }
        }
    }
}

fn has_no_port(authority: &[u8]) -> bool {
    let Some(colon) = memchr::memchr(b':', authority) else { return false };
    let port = rest(authority, colon + 1);
    // The host of a bracketed address is all colons.
    byte(authority, 0) != b'[' && port.iter().any(|byte| !byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<&str> {
        let mut spans = Vec::new();
        find(text.as_bytes(), &mut spans);
        spans
            .iter()
            .map(|span| text.get(span.start..span.end).unwrap())
            .filter(|part| !part.is_empty())
            .collect()
    }

    #[test]
    fn passwords_and_tokens_before_the_host() {
        assert_eq!(found("see https://u:p%40w@h:80/a?b=c@d."), ["p%40w"]);
        assert_eq!(found("a://u:a@b@h/"), ["a@b"]);
        assert_eq!(found("a://token@h"), ["token"]);
        assert_eq!(found("a://token:@h"), ["token"]);
        assert_eq!(found("a://:pw@h"), ["pw"]);
        assert_eq!(found("a://a-token-as-a-name:x@h"), ["a-token-as-a-name", "x"]);
        assert_eq!(found("a://u:one@h b://u:two@h,c://u:three@h"), ["one", "two", "three"]);
        assert_eq!(found("http://u:pa/ss@h"), ["pa/ss"]);
    }

    #[test]
    fn urls_without_are_left_alone() {
        for kept in [
            "http://10.0.0.5:8000/v1/models",
            "http://[::1]:80/@x",
            "http://h/u:p@x",
            "http://h:80/a@b",
            "author@example.com",
            "http://h 'a:b@c'",
            "http://host:port or ask me@example.com",
            "http://host:port<me@example.com>",
            "\"http://host:port\",\"me@example.com\"",
            "<a://h>:x@y",
        ] {
            assert_eq!(found(kept), [""; 0], "{kept}");
        }
    }
}

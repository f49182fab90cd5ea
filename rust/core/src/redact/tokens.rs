//! Secrets by shape: keys that their issuers gave a prefix, and private keys.

use super::scan::{Span, before, byte, rest, run, short_run, stretch};

/// The characters that a token consists of.
#[derive(Clone, Copy)]
enum Alphabet {
    Hex,
    /// Upper-case letters and digits.
    Upper,
    Alphanumeric,
    /// Letters, digits and `_`.
    Word,
    /// Letters, digits, `_` and `-`.
    UrlSafe,
    /// Those and `.`.
    Dotted,
    /// Those of base64 in all its forms, and `.`.
    Base64,
    /// Letters, digits and `/`.
    Path,
}

impl Alphabet {
    fn contains(self, byte: u8) -> bool {
        let more: &[u8] = match self {
            Self::Hex => return byte.is_ascii_hexdigit(),
            Self::Upper => return byte.is_ascii_uppercase() || byte.is_ascii_digit(),
            Self::Alphanumeric => b"",
            Self::Word => b"_",
            Self::UrlSafe => b"_-",
            Self::Dotted => b"_-.",
            Self::Base64 => b"_-.+/=",
            Self::Path => b"/",
        };
        byte.is_ascii_alphanumeric() || more.contains(&byte)
    }
}

/// A prefix, what follows it, and how much of that at least.
type Shape = (&'static [u8], Alphabet, usize);

/// Shapes of tokens that are published by their issuers or known from their use.
const SHAPES: &[Shape] = {
    use Alphabet::{Alphanumeric, Base64, Dotted, Hex, Path, Upper, UrlSafe, Word};
    &[
        // OpenAI, Anthropic, DeepSeek, OpenRouter and what imitates them.
        (b"sk-", UrlSafe, 16),
        // Hugging Face.
        (b"hf_", Alphanumeric, 20),
        (b"api_org_", Alphanumeric, 20),
        // NVIDIA, Groq, Perplexity, xAI, Replicate, Fireworks.
        (b"nvapi-", UrlSafe, 20),
        (b"gsk_", Alphanumeric, 20),
        (b"pplx-", Alphanumeric, 20),
        (b"xai-", Alphanumeric, 20),
        (b"r8_", Alphanumeric, 20),
        (b"fw_", Alphanumeric, 20),
        // Google: API key, OAuth access token, refresh token, client secret.
        (b"AIza", UrlSafe, 30),
        (b"ya29.", Dotted, 20),
        (b"1//0", UrlSafe, 20),
        (b"GOCSPX-", UrlSafe, 20),
        // AWS: access key id, of a user and of a session.
        (b"AKIA", Upper, 16),
        (b"ASIA", Upper, 16),
        // GitHub, GitLab.
        (b"ghp_", Alphanumeric, 20),
        (b"gho_", Alphanumeric, 20),
        (b"ghu_", Alphanumeric, 20),
        (b"ghs_", Alphanumeric, 20),
        (b"ghr_", Alphanumeric, 20),
        (b"github_pat_", Word, 20),
        (b"glpat-", Dotted, 16),
        (b"gldt-", Dotted, 16),
        (b"glrt-", Dotted, 16),
        // Slack.
        (b"xoxb-", UrlSafe, 10),
        (b"xoxp-", UrlSafe, 10),
        (b"xoxa-", UrlSafe, 10),
        (b"xoxr-", UrlSafe, 10),
        (b"xoxs-", UrlSafe, 10),
        (b"xoxe-", UrlSafe, 10),
        (b"xoxe.", Dotted, 10),
        (b"xapp-", UrlSafe, 10),
        (b"hooks.slack.com/services/", Path, 10),
        // Stripe.
        (b"sk_live_", Alphanumeric, 16),
        (b"sk_test_", Alphanumeric, 16),
        (b"rk_live_", Alphanumeric, 16),
        (b"rk_test_", Alphanumeric, 16),
        (b"whsec_", Base64, 16),
        // SendGrid, npm, PyPI, Databricks, DigitalOcean, age, Vault.
        (b"SG.", Dotted, 32),
        (b"npm_", Alphanumeric, 20),
        (b"pypi-AgE", UrlSafe, 20),
        (b"dapi", Hex, 32),
        (b"dop_v1_", Hex, 32),
        (b"doo_v1_", Hex, 32),
        (b"dor_v1_", Hex, 32),
        (b"AGE-SECRET-KEY-1", Upper, 20),
        (b"hvs.", Dotted, 20),
        (b"hvb.", Dotted, 20),
        (b"hvr.", Dotted, 20),
        // A JSON object in base64url, as a JWT begins; and base64 of that.
        (b"eyJ", Dotted, 20),
        (b"ZXlK", Base64, 20),
    ]
};

pub(super) fn find(text: &[u8], spans: &mut Vec<Span>) {
    let mut at = 0;
    while at < text.len() {
        let boundary = !before(text, at).is_ascii_alphanumeric();
        match boundary.then(|| token_end(text, at)).flatten() {
            Some(end) => {
                spans.push(Span::new(at..end));
                at = end;
            }
            None => at += 1,
        }
    }
}

/// Where the token that begins at `at` ends; none begins there otherwise.
///
/// What is looked at before it is refused is bounded.
fn token_end(text: &[u8], at: usize) -> Option<usize> {
    match byte(text, at) {
        b'-' => private_key(text, at),
        b'+' | b'/' => opaque(text, at),
        b'_' | b'.' | b'~' => azure(text, at),
        first if first.is_ascii_alphanumeric() => prefixed(text, at)
            .or_else(|| telegram(text, at))
            .or_else(|| twilio(text, at))
            .or_else(|| azure(text, at))
            .or_else(|| opaque(text, at)),
        _ => None,
    }
}

fn prefixed(text: &[u8], at: usize) -> Option<usize> {
    let from = rest(text, at);
    // One byte rules nearly all of them out; comparing the rest takes a call each.
    let begins = |prefix: &[u8]| prefix.first() == from.first() && from.starts_with(prefix);
    SHAPES.iter().filter(|(prefix, ..)| begins(prefix)).find_map(|(prefix, alphabet, least)| {
        let body = at + prefix.len();
        let end = short_run(text, body, *least, |byte| alphabet.contains(byte));
        // A full stop ends a sentence.
        (end - body == *least).then(|| {
            let end = run(text, end, |byte| alphabet.contains(byte));
            end - usize::from(before(text, end) == b'.')
        })
    })
}

/// The token of a Telegram bot: its id, a colon, 35 characters.
fn telegram(text: &[u8], at: usize) -> Option<usize> {
    let colon = short_run(text, at, 13, |byte| byte.is_ascii_digit());
    let tail = rest(text, colon).strip_prefix(b":AA")?;
    let end = short_run(tail, 0, 40, |byte| Alphabet::UrlSafe.contains(byte));
    (colon - at >= 6 && (30..40).contains(&end)).then_some(colon + 3 + end)
}

/// The id of a Twilio key: `SK` and 32 hex digits, no more.
fn twilio(text: &[u8], at: usize) -> Option<usize> {
    rest(text, at).strip_prefix(b"SK")?;
    let end = short_run(text, at + 2, 33, |byte| byte.is_ascii_alphanumeric());
    let body = stretch(text, at + 2..end);
    (body.len() == 32 && body.iter().all(u8::is_ascii_hexdigit)).then_some(end)
}

/// A client secret of Azure AD: three characters, a digit, `Q~`, 31 to 34 characters.
fn azure(text: &[u8], at: usize) -> Option<usize> {
    if stretch(text, at + 4..at + 6) != b"Q~" || !byte(text, at + 3).is_ascii_digit() {
        return None;
    }
    let within = |byte| Alphabet::Dotted.contains(byte) || byte == b'~';
    let end = short_run(text, at, 48, within);
    (end - at >= 37).then_some(end)
}

/// A secret access key of AWS has no prefix: 40 characters of base64 that change between capitals,
/// small letters and digits as no word, path or digest does.
fn opaque(text: &[u8], at: usize) -> Option<usize> {
    const LENGTH: usize = 40;
    const CHANGES: usize = 16;
    let within = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    if within(before(text, at)) || matches!(before(text, at), b'=' | b'_' | b'-' | b'.') {
        return None;
    }
    let end = short_run(text, at, LENGTH + 1, within);
    if end - at != LENGTH || matches!(byte(text, end), b'=' | b'_' | b'-') {
        return None;
    }
    let token = stretch(text, at..end);
    let classes = || {
        token.iter().filter_map(|byte| match byte {
            b'a'..=b'z' => Some(0),
            b'A'..=b'Z' => Some(1),
            b'0'..=b'9' => Some(2),
            _ => None,
        })
    };
    let changes = classes().zip(classes().skip(1)).filter(|(one, next)| one != next).count();
    let all = (0..3).all(|wanted| classes().any(|class| class == wanted));
    (all && changes >= CHANGES).then_some(end)
}

/// A private key in PEM, or as much of it as there is.
fn private_key(text: &[u8], at: usize) -> Option<usize> {
    const LABEL: usize = 64;
    rest(text, at).strip_prefix(b"-----BEGIN ")?;
    let label = at + b"-----BEGIN ".len();
    let end =
        short_run(text, label, LABEL, |byte| byte.is_ascii_uppercase() || matches!(byte, b' '));
    let words = stretch(text, label..end);
    if !words.windows(11).any(|part| part == b"PRIVATE KEY") {
        return None;
    }
    // Its lines may be escaped, quoted or listed.
    let within = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || byte.is_ascii_whitespace()
            || matches!(byte, b'+' | b'/' | b'=' | b'\\' | b'-' | b':' | b',' | b'"' | b'\'' | b'%')
    };
    let mut at = end;
    while within(byte(text, at)) {
        if rest(text, at).starts_with(b"-----END ") {
            let label = at + b"-----END ".len();
            let end =
                short_run(text, label, LABEL, |byte| byte.is_ascii_alphanumeric() || byte == b' ');
            return Some(short_run(text, end, 5, |byte| byte == b'-'));
        }
        at += 1;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<&str> {
        let mut spans = Vec::new();
        find(text.as_bytes(), &mut spans);
        spans.iter().map(|span| text.get(span.start..span.end).unwrap()).collect()
    }

    #[test]
    fn a_token_is_taken_whole() {
        for (prefix, alphabet, least) in SHAPES {
            let body = match alphabet {
                Alphabet::Hex => "0123456789abcdef",
                Alphabet::Upper => "ABCD0123",
                _ => "Ab0Cd1Ef2",
            };
            let token = std::str::from_utf8(prefix).unwrap().to_owned()
                + body.repeat(6).get(..*least).unwrap();
            assert_eq!(found(&format!("({token}), {token}.")), [&token, &token]);
            assert_eq!(found(token.get(..token.len() - 1).unwrap()), [""; 0], "{token}");
            assert_eq!(found(&format!("x{token}")), [""; 0], "{token}");
        }
    }

    #[test]
    fn tokens_without_a_prefix_are_told_by_their_form() {
        let body = "Ab0Cd1Ef2Gh3Ij4Kl5Mn6Op7Qr8St9Uv0Wx1Yz2a";
        assert_eq!(body.len(), 40);
        let start = |length: usize| body.get(..length).unwrap();
        for token in [
            body,
            &format!("/{}", start(39)),
            &format!("+{}", start(39)),
            &format!("123456789:AA{}", start(33)),
            &format!("123456:AA{}", start(30)),
            &format!("abc8Q~{}", start(34)),
            &format!("abc8Q~-_.~{}", start(27)),
            &format!("_b.8Q~{}", start(34)),
            &format!("~.c8Q~{}", start(34)),
            &format!(".~_8Q~{}", start(34)),
            "SK0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(found(token), [token]);
            assert_eq!(found(&format!("it was ({token}), was it?")), [token]);
        }
        for kept in [
            start(39),
            &format!("{body}a"),
            &format!("{body}="),
            &format!("_{body}"),
            &format!("1/{body}"),
            &format!("at last 12345:AA{}", start(33)),
            &format!("at last 123456789:AA{}", start(29)),
            &format!("at last 123456789:AA{}", start(40)),
            &format!("at last abc8Q~{}", start(30)),
            &format!("at last abc8Q {}", start(34)),
            &format!("at last abcdQ~{}", start(34)),
            "da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "Models/MetaLlama/Llama3Instruct/Q4KM/abc",
            "SK0123456789abcdef0123456789abcdef0",
            "SK0123456789abcdef0123456789abcdeg",
        ] {
            assert_eq!(found(kept), [""; 0], "{kept}");
        }
    }

    #[test]
    fn a_private_key_is_taken_to_its_end() {
        let key = "-----BEGIN PRIVATE KEY-----\nQUJD\n-----END PRIVATE KEY-----";
        assert_eq!(found(&format!("a {key} b")), [key]);
        let cut = "-----BEGIN EC PRIVATE KEY-----\nQUJD\nREVG";
        assert_eq!(found(&format!("{cut}; b")), [cut]);
        assert_eq!(found("-----BEGIN CERTIFICATE-----\nQUJD"), [""; 0]);
    }
}

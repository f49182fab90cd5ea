//! Which names say that a secret follows.

use super::scan::before;

/// What a name says of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// `Authorization` and its kin: a scheme, then what it takes, to the end of the line.
    Authorization,
    /// `Cookie`: to the end of the line.
    Cookie,
    /// Anything but the words that say that there is none.
    Secret,
    /// As `Secret`; a number under such a name counts tokens.
    Token,
    /// A name and a password, separated by a colon: `--user`.
    User,
    /// `Bearer` and `Basic`: followed by a token without any sign between.
    Scheme,
}

const SECRETS: &[&[u8]] = &[
    b"accesscode",
    b"accesskey",
    b"accountkey",
    b"apikey",
    b"authkey",
    b"clientkey",
    b"credential",
    b"credentials",
    b"encryptionkey",
    b"functionskey",
    b"jwt",
    b"masterkey",
    b"passcode",
    b"passphrase",
    b"passwd",
    b"password",
    b"privatekey",
    b"pwd",
    b"secret",
    b"secretkey",
    b"sessionkey",
    b"sharedkey",
    b"signature",
    b"signingkey",
    b"storagekey",
    b"subscriptionkey",
];

/// Names that mean a secret in the parameters of a URL and anything elsewhere.
const PARAMETERS: &[&[u8]] = &[
    b"assertion",
    b"auth",
    b"code",
    b"key",
    b"otp",
    b"pass",
    b"sas",
    b"session",
    b"sid",
    b"sig",
    b"ticket",
    b"tok",
];

/// What a token of a language model is called: no secret.
const VOCABULARY: &[&[u8]] = &[
    b"bos", b"cls", b"eom", b"eos", b"eot", b"fim", b"first", b"image", b"last", b"mask", b"next",
    b"pad", b"per", b"prompt", b"sep", b"special", b"stop", b"unk",
];

/// Of a longer name the end decides.
const MOST: usize = 48;

/// What the name that stands at `start..end` says; nothing for most.
pub(super) fn classify(text: &[u8], start: usize, end: usize) -> Option<Name> {
    let mut folded = [0; MOST];
    let mut length = 0;
    let whole = text.get(start..end)?;
    let tail = whole.get(whole.len().saturating_sub(MOST)..)?;
    for (slot, byte) in folded.iter_mut().zip(tail.iter().filter(|b| !matches!(b, b'-' | b'_'))) {
        *slot = byte.to_ascii_lowercase();
        length += 1;
    }
    let name = folded.get(..length)?;
    if name.ends_with(b"authorization") {
        return Some(Name::Authorization);
    }
    if name.ends_with(b"cookie") {
        return Some(Name::Cookie);
    }
    if let Some(which) = name.strip_suffix(b"token") {
        let vocabulary = VOCABULARY.iter().any(|word| which.ends_with(word));
        return (!vocabulary).then_some(Name::Token);
    }
    // One byte rules most of them out; comparing the rest takes a call each.
    if SECRETS.iter().any(|secret| secret.last() == name.last() && name.ends_with(secret)) {
        return Some(Name::Secret);
    }
    if matches!(before(text, start), b'?' | b'&' | b'#' | b';') && PARAMETERS.contains(&name) {
        return Some(Name::Token);
    }
    match name {
        b"bearer" | b"basic" => Some(Name::Scheme),
        b"u" | b"user" | b"proxyuser" if whole.first() == Some(&b'-') => Some(Name::User),
        _ => None,
    }
}

/// Schemes that are followed by one token.
pub(super) fn scheme(word: &[u8]) -> bool {
    const SCHEMES: &[&[u8]] =
        &[b"bearer", b"basic", b"token", b"apikey", b"api-key", b"key", b"negotiate", b"ntlm"];
    SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Name> {
        let start = usize::from(text.starts_with(['?', '&']));
        classify(text.as_bytes(), start, text.len())
    }

    #[test]
    fn names_are_told_in_any_style() {
        for name in
            ["api_key", "API-KEY", "apiKey", "--api-key", "X-Goog-Api-Key", "OPENAI_API_KEY"]
        {
            assert_eq!(of(name), Some(Name::Secret), "{name}");
        }
        let long = "x".repeat(100) + "_password";
        assert_eq!(of(&long), Some(Name::Secret));
        assert_eq!(of("Proxy-Authorization"), Some(Name::Authorization));
        assert_eq!(of("set-cookie"), Some(Name::Cookie));
        assert_eq!(of("hf_token"), Some(Name::Token));
        assert_eq!(of("?code"), Some(Name::Token));
        assert_eq!(of("-u"), Some(Name::User));
        assert_eq!(of("BEARER"), Some(Name::Scheme));
    }

    #[test]
    fn other_names_say_nothing() {
        for name in [
            "tokens",
            "token_count",
            "max_tokens",
            "prompt_tokens",
            "eos_token",
            "first_token",
            "secretary",
            "passwordless",
            "keyboard",
            "key",
            "code",
            "user",
            "u",
            "authors",
            "-",
            "",
        ] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}

//! Known secrets out of text.
//!
//! A secret that has been registered never appears in an error, a log or a `Debug`: every text that
//! leaves the library passes a [`Redactor`]. It knows each secret by value, in the spellings that
//! engines, URLs and headers give it (as it is, percent-encoded, JSON-escaped, base64 at each of
//! the three alignments), and finds all of them in one linear pass.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use sha2::{Digest, Sha256};

/// Secrets shorter than this would redact ordinary text.
pub const MIN_SECRET_CHARS: usize = 6;

/// Replaces registered secrets by `****` and the first six hex digits of their SHA-256.
///
/// Cheap to clone; a redacted text redacts to itself.
///
/// ```
/// use worker_adapters_core::redact::Redactor;
///
/// let redactor = Redactor::new(["sk-example-1"])?;
/// assert_eq!(redactor.redact("Bearer sk-example-1"), "Bearer ****420cc9");
/// assert_eq!(redactor.redact("nothing to hide"), "nothing to hide");
/// # Ok::<(), worker_adapters_core::redact::RedactorError>(())
/// ```
#[derive(Clone, Default)]
pub struct Redactor {
    inner: Option<Arc<Inner>>,
    /// Texts of a task that an engine's words must not repeat.
    private: Arc<[Box<str>]>,
}

struct Inner {
    secrets: Vec<Box<str>>,
    matcher: AhoCorasick,
    /// The replacement for each pattern of `matcher`.
    replacements: Vec<Arc<str>>,
}

/// Why a redactor cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedactorError {
    /// A secret has fewer than [`MIN_SECRET_CHARS`] characters.
    TooShort {
        /// Its position among those given.
        index: usize,
    },
    /// The secrets do not fit one matcher.
    TooLarge,
}

impl fmt::Display for RedactorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { index } => write!(
                f,
                "secret number {index} has fewer than {MIN_SECRET_CHARS} characters: it would \
                 redact ordinary text"
            ),
            Self::TooLarge => f.write_str("the secrets are too large to be matched together"),
        }
    }
}

impl std::error::Error for RedactorError {}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets = self.inner.as_ref().map_or(0, |inner| inner.secrets.len());
        f.debug_struct("Redactor").field("secrets", &secrets).finish_non_exhaustive()
    }
}

impl Redactor {
    /// A redactor for these secrets.
    ///
    /// # Errors
    ///
    /// [`RedactorError`] for a secret that is too short, or for more than fits.
    pub fn new<S: AsRef<str>>(secrets: impl IntoIterator<Item = S>) -> Result<Self, RedactorError> {
        Self::default().with_secrets(secrets)
    }

    /// A redactor that knows these secrets too.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_secrets<S: AsRef<str>>(
        &self,
        secrets: impl IntoIterator<Item = S>,
    ) -> Result<Self, RedactorError> {
        let mut all: Vec<Box<str>> =
            self.inner.as_ref().map(|inner| inner.secrets.clone()).unwrap_or_default();
        for (index, secret) in secrets.into_iter().enumerate() {
            let secret = secret.as_ref();
            if secret.chars().count() < MIN_SECRET_CHARS {
                return Err(RedactorError::TooShort { index });
            }
            if !all.iter().any(|known| **known == *secret) {
                all.push(secret.into());
            }
        }
        let private = Arc::clone(&self.private);
        if all.is_empty() {
            return Ok(Self { inner: None, private });
        }
        let mut patterns: Vec<Vec<u8>> = Vec::new();
        let mut replacements: Vec<Arc<str>> = Vec::new();
        for secret in &all {
            let replacement: Arc<str> = fingerprint(secret).into();
            for spelling in spellings(secret) {
                if !patterns.contains(&spelling) {
                    patterns.push(spelling);
                    replacements.push(Arc::clone(&replacement));
                }
            }
        }
        let matcher = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&patterns)
            .map_err(|_| RedactorError::TooLarge)?;
        let inner = Inner { secrets: all, matcher, replacements };
        Ok(Self { inner: Some(Arc::new(inner)), private })
    }

    /// A redactor that also keeps these texts of a task – its prompt, its documents – out of the
    /// messages of errors: engines quote what they refuse. Texts of fewer than
    /// [`MIN_SECRET_CHARS`] bytes tell nothing and are left alone.
    #[must_use]
    pub fn with_private_texts<S: Into<Box<str>>>(
        &self,
        texts: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut private: Vec<Box<str>> = texts.into_iter().map(Into::into).collect();
        private.retain(|text| text.len() >= MIN_SECRET_CHARS);
        Self { inner: self.inner.clone(), private: private.into() }
    }

    /// `message` with every stretch of a private text in it replaced by `[…]`. A stretch counts
    /// from [`PRIVATE_STRETCH_BYTES`] on, or when it is the whole of a shorter text.
    pub(crate) fn hide_private<'m>(&self, message: &'m str) -> Cow<'m, str> {
        let mut out = String::new();
        let mut copied = 0;
        let mut at = 0;
        while at < message.len() {
            let end = self.private.iter().filter_map(|text| stretch_end(message, at, text)).max();
            if let Some(end) = end {
                out.push_str(message.get(copied..at).unwrap_or_default());
                out.push_str("[…]");
                (at, copied) = (end, end);
            } else {
                at = next_boundary(message, at);
            }
        }
        if copied == 0 {
            return Cow::Borrowed(message);
        }
        out.push_str(message.get(copied..).unwrap_or_default());
        Cow::Owned(out)
    }

    /// `text` with every registered secret replaced; borrowed when there is none in it.
    #[must_use]
    pub fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let Some(inner) = &self.inner else { return Cow::Borrowed(text) };
        if !inner.matcher.is_match(text) {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(text.len());
        inner.matcher.replace_all_with(text, &mut out, |found, _, out| {
            let replacement = inner.replacements.get(found.pattern().as_usize());
            out.push_str(replacement.map_or("****", AsRef::as_ref));
            true
        });
        Cow::Owned(out)
    }
}

/// From how many bytes on a stretch of a private text is hidden.
pub const PRIVATE_STRETCH_BYTES: usize = 12;

/// Where the stretch of `text` that begins at `at` in `message` ends, if it is long enough.
fn stretch_end(message: &str, at: usize, text: &str) -> Option<usize> {
    let least = PRIVATE_STRETCH_BYTES.min(text.len());
    let mut end = (at + least..=message.len()).find(|end| message.is_char_boundary(*end))?;
    let contains = |end| message.get(at..end).is_some_and(|part: &str| text.contains(part));
    if !contains(end) {
        return None;
    }
    while end < message.len() && contains(next_boundary(message, end)) {
        end = next_boundary(message, end);
    }
    Some(end)
}

fn next_boundary(text: &str, at: usize) -> usize {
    (at + 1..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
}

/// `****` and the first six hex digits of the secret's SHA-256, as the contract asks.
fn fingerprint(secret: &str) -> String {
    use std::fmt::Write;

    let mut out = String::from("****");
    for byte in Sha256::digest(secret.as_bytes()).iter().take(3) {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// The ways in which a secret can stand in a text.
fn spellings(secret: &str) -> Vec<Vec<u8>> {
    let bytes = secret.as_bytes();
    let mut all = vec![bytes.to_vec()];
    for upper in [true, false] {
        all.push(percent_encode(bytes, upper));
    }
    let mut json = Vec::new();
    crate::json::write_string(secret, &mut json);
    all.push(json.get(1..json.len() - 1).unwrap_or(bytes).to_vec());
    for alphabet in [STANDARD, URL_SAFE] {
        for shift in 0..3 {
            all.push(base64_core(bytes, shift, alphabet));
        }
    }
    // A spelling that short would match ordinary text.
    all.retain(|spelling| spelling.len() >= MIN_SECRET_CHARS);
    all
}

/// RFC 3986, section 2.1: everything but unreserved characters is encoded.
fn percent_encode(bytes: &[u8], upper: bool) -> Vec<u8> {
    let digits: &[u8; 16] = if upper { b"0123456789ABCDEF" } else { b"0123456789abcdef" };
    let mut out = Vec::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            out.push(*byte);
        } else {
            out.push(b'%');
            for nibble in [byte >> 4, byte & 15] {
                out.extend(digits.get(usize::from(nibble)));
            }
        }
    }
    out
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The base64 characters that depend on `bytes` alone when they stand `shift` bytes after a
/// three-byte boundary: those that also hold bits of their neighbours are left out.
fn base64_core(bytes: &[u8], shift: usize, alphabet: &[u8; 64]) -> Vec<u8> {
    let bit = |index: usize| {
        let byte = bytes.get(index / 8).copied().unwrap_or(0);
        usize::from(byte >> (7 - index % 8) & 1)
    };
    let bits = bytes.len() * 8;
    // The first bit of the secret that starts a base64 character.
    let first = (6 - shift * 8 % 6) % 6;
    let mut out = Vec::new();
    let mut at = first;
    while at + 6 <= bits {
        let value = (at..at + 6).fold(0, |value, index| value << 1 | bit(index));
        out.extend(alphabet.get(value));
        at += 6;
    }
    out
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose;

    use super::*;

    const SECRET: &str = "s3cret/ké\"y+with\\odd=bytes";

    #[test]
    fn each_spelling_is_found() {
        let redactor = Redactor::new([SECRET]).unwrap();
        let fingerprint = fingerprint(SECRET);
        let json = serde_json::to_string(SECRET).unwrap();
        let mut texts =
            vec![SECRET.to_owned(), json, "q=s3cret%2Fk%C3%A9%22y%2Bwith%5Codd%3Dbytes".into()];
        texts.push("q=s3cret%2fk%c3%a9%22y%2bwith%5codd%3dbytes".into());
        for text in texts {
            let redacted = redactor.redact(&text);
            assert!(redacted.contains(&fingerprint), "{redacted}");
            assert!(!redacted.contains("s3cret"), "{redacted}");
            assert_eq!(redactor.redact(&redacted), redacted, "redacting twice changes nothing");
        }
    }

    #[test]
    fn base64_is_found_at_every_alignment() {
        let redactor = Redactor::new([SECRET]).unwrap();
        for engine in [&general_purpose::STANDARD, &general_purpose::URL_SAFE] {
            for before in ["", "u", "us", "use"] {
                for after in ["", ":", ":x", ":xy"] {
                    let text = engine.encode(format!("{before}{SECRET}{after}"));
                    let redacted = redactor.redact(&text);
                    assert!(redacted.contains("****"), "{before} {after}");
                    assert!(redacted.len() < 24, "{redacted}");
                }
            }
        }
    }

    #[test]
    fn short_secrets_are_refused() {
        assert_eq!(
            Redactor::new(["long enough", "short"]).unwrap_err(),
            RedactorError::TooShort { index: 1 }
        );
    }

    #[test]
    fn overlapping_secrets_go_by_the_longer() {
        let redactor = Redactor::new(["secret", "secret-longer"]).unwrap();
        assert_eq!(redactor.redact("secret-longer"), fingerprint("secret-longer"));
        let more = redactor.with_secrets(["another one"]).unwrap();
        assert_eq!(more.redact("secret"), fingerprint("secret"));
        assert_eq!(more.redact("another one"), fingerprint("another one"));
    }

    #[test]
    fn private_texts_are_hidden_wherever_an_engine_quotes_them() {
        let redactor =
            Redactor::default().with_private_texts(["the quick brown fox\njumps", "secret", "hi"]);
        let hidden = |message| redactor.hide_private(message).into_owned();
        assert_eq!(hidden("bad input: the quick brown fox at 3"), "bad input: […] at 3");
        assert_eq!(hidden("near 'ck brown fox\\njumps'"), "near '[…]\\njumps'");
        assert_eq!(hidden("no secret here"), "no […] here");
        assert_eq!(hidden("this"), "this", "ordinary text");
        assert_eq!(hidden("the quick"), "the quick", "too short to tell anything");
        assert_eq!(hidden("brown foxes jump"), "brown foxes jump");
        assert_eq!(hidden("é"), "é");
        assert_eq!(Redactor::default().hide_private("hi"), "hi");
    }

    #[test]
    fn nothing_is_shown_by_debug() {
        let redactor = Redactor::new([SECRET]).unwrap();
        assert_eq!(format!("{redactor:?}"), "Redactor { secrets: 1, .. }");
    }
}

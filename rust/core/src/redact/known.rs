//! Secrets by value: whole, in every spelling, and broken off at the edge of a text.

use std::collections::HashSet;
use std::sync::Arc;

use aho_corasick::AhoCorasick;

use super::marker::fingerprint;
use super::scan::{Span, rest, stretch};
use super::{MIN_SECRET_CHARS, RedactorError};

/// From how many bytes on the start of a secret, in any spelling, is hidden at the end of a text, and
/// its end at the start of one: a record may be cut anywhere.
const MIN_BROKEN_BYTES: usize = 8;

/// The secrets that have been registered, ready to be found.
pub(super) struct Known {
    pub(super) secrets: Vec<Secret>,
    matcher: AhoCorasick,
    /// What each pattern of the matcher spells.
    spellings: Vec<Spelling>,
}

pub(super) struct Secret {
    pub(super) value: Box<str>,
    shown_as: Arc<str>,
}

struct Spelling {
    /// Which secret it is one of.
    owner: usize,
    start: Border,
    end: Border,
}

impl Known {
    pub(super) fn new(values: Vec<Box<str>>) -> Result<Self, RedactorError> {
        let mut seen = HashSet::new();
        let mut patterns: Vec<Vec<u8>> = Vec::new();
        let mut spelled = Vec::new();
        for (owner, value) in values.iter().enumerate() {
            for spelling in spellings(value) {
                if seen.insert(spelling.to_ascii_lowercase()) {
                    spelled.push(Spelling {
                        owner,
                        start: Border::new(spelling.iter().copied()),
                        end: Border::new(spelling.iter().rev().copied()),
                    });
                    patterns.push(spelling);
                }
            }
        }
        let matcher = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .build(&patterns)
            .map_err(|_| RedactorError::TooLarge)?;
        let secrets = values
            .into_iter()
            .map(|value| Secret { shown_as: fingerprint(value.as_bytes()).into(), value })
            .collect();
        Ok(Self { secrets, matcher, spellings: spelled })
    }

    pub(super) fn find(&self, text: &[u8], spans: &mut Vec<Span>) {
        // All of them: where two secrets share bytes, the second one must not be left half shown.
        // Secrets that repeat themselves match more often than the text has bytes.
        let mut stretches: Vec<Stretch> = Vec::new();
        for found in self.matcher.find_overlapping_iter(text) {
            let spelling = Some(found.pattern().as_usize());
            add(&mut stretches, Stretch { start: found.start(), end: found.end(), spelling });
        }
        spans.extend(stretches.into_iter().map(|stretch| Span {
            start: stretch.start,
            end: stretch.end,
            shown_as: stretch.spelling.and_then(|at| self.name(self.spellings.get(at)?)),
        }));
        spans.extend(self.broken_at_end(text));
        spans.extend(self.broken_at_start(text));
    }

    /// The longest start of a spelling that `text` ends with, but for an escape that is cut off.
    fn broken_at_end(&self, text: &[u8]) -> Option<Span> {
        let start = |end: usize| {
            let text = stretch(text, 0..end);
            let (spelling, broken) = longest(self.spellings.iter().map(|spelling| {
                let tail = rest(text, text.len().saturating_sub(spelling.start.len()));
                (spelling, spelling.start.longest(tail.iter().copied()))
            }))?;
            Some((end - broken, spelling))
        };
        let ends = [Some(text.len()), unfinished_escape(text)];
        let starts = ends.into_iter().flatten().filter_map(start);
        let (start, spelling) = starts.min_by_key(|(start, _)| *start)?;
        Some(Span { start, end: text.len(), shown_as: self.name(spelling) })
    }

    /// The longest end of a spelling that `text` starts with.
    fn broken_at_start(&self, text: &[u8]) -> Option<Span> {
        let (spelling, broken) = longest(self.spellings.iter().map(|spelling| {
            let head = stretch(text, 0..text.len().min(spelling.end.len()));
            (spelling, spelling.end.longest(head.iter().rev().copied()))
        }))?;
        Some(Span { start: 0, end: broken, shown_as: self.name(spelling) })
    }

    fn name(&self, spelling: &Spelling) -> Option<Arc<str>> {
        self.secrets.get(spelling.owner).map(|secret| Arc::clone(&secret.shown_as))
    }
}

/// Where the escape begins in which `text` is cut off.
fn unfinished_escape(text: &[u8]) -> Option<usize> {
    const LONGEST: usize = r"\U0001F60".len();
    let from = text.len().saturating_sub(LONGEST);
    let at = from + memchr::memrchr2(b'%', b'\\', rest(text, from))?;
    let (digits, missing) = match rest(text, at) {
        [b'%', digits @ ..] | [_, b'x', digits @ ..] => (digits, digits.len() < 2),
        [_, b'u', digits @ ..] => (digits, digits.len() < 4),
        [_, b'U', digits @ ..] => (digits, digits.len() < 8),
        other => (&[][..], other.len() < 2),
    };
    (missing && digits.iter().all(u8::is_ascii_hexdigit)).then_some(at)
}

/// Where one spelling matches, or several that overlap.
struct Stretch {
    start: usize,
    end: usize,
    /// The one that is all of it, if one is.
    spelling: Option<usize>,
}

/// Adds a match to stretches that do not overlap, none of which ends after it.
fn add(stretches: &mut Vec<Stretch>, mut new: Stretch) {
    while let Some(last) = stretches.pop_if(|last| new.start < last.end) {
        if last.start < new.start {
            let inside = last.end == new.end;
            let (start, end) = (last.start, new.end);
            new = if inside { last } else { Stretch { start, end, spelling: None } };
        }
    }
    stretches.push(new);
}

/// The one of which most is there, the first of those that are equal, unless it is too little.
fn longest<'s>(
    broken: impl Iterator<Item = (&'s Spelling, usize)>,
) -> Option<(&'s Spelling, usize)> {
    broken
        .filter(|(_, length)| *length >= MIN_BROKEN_BYTES)
        .reduce(|most, next| if next.1 > most.1 { next } else { most })
}

/// Finds how much of a pattern's start a text ends with, in one pass (Knuth, Morris and Pratt).
struct Border {
    pattern: Vec<u8>,
    /// For each start of the pattern the longest shorter one that it ends with.
    shorter: Vec<usize>,
}

impl Border {
    fn new(pattern: impl Iterator<Item = u8>) -> Self {
        let pattern: Vec<u8> = pattern.map(|byte| byte.to_ascii_lowercase()).collect();
        let mut border = Self { pattern: Vec::new(), shorter: vec![0] };
        for byte in pattern {
            let length =
                if border.pattern.is_empty() { 0 } else { border.step(border.last(), byte) };
            border.pattern.push(byte);
            border.shorter.push(length);
        }
        border
    }

    fn len(&self) -> usize {
        self.pattern.len()
    }

    fn last(&self) -> usize {
        self.shorter.last().copied().unwrap_or(0)
    }

    /// How much of the start is matched once `byte` follows `matched` bytes of it.
    fn step(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.pattern.get(matched) != Some(&byte) {
            matched = self.shorter.get(matched).copied().unwrap_or(0);
        }
        matched + usize::from(self.pattern.get(matched) == Some(&byte))
    }

    /// How much of the pattern's start `text` ends with.
    fn longest(&self, text: impl Iterator<Item = u8>) -> usize {
        text.fold(0, |matched, byte| self.step(matched, byte.to_ascii_lowercase()))
    }
}

/// The ways in which a secret can stand in a text, but for the case of its letters.
fn spellings(secret: &str) -> Vec<Vec<u8>> {
    let bytes = secret.as_bytes();
    let mut all = vec![bytes.to_vec(), percent_encode(bytes)];
    // Forms have a plus for a space. What else they encode, and what not, is up to the sender.
    let form = secret.replace(' ', "+").into_bytes();
    let words: Vec<_> = secret.split(' ').map(|word| percent_encode(word.as_bytes())).collect();
    all.push(words.join(&b'+'));
    all.push(form);
    let mut json = Vec::new();
    crate::json::write_string(secret, &mut json);
    let json = json.get(1..json.len() - 1).unwrap_or(bytes);
    all.push(python_ascii(secret));
    all.push(escape_non_ascii(secret));
    all.push(escape_non_ascii(&String::from_utf8_lossy(json)));
    all.push(json.to_vec());
    for alphabet in [STANDARD, URL_SAFE] {
        for shift in 0..3 {
            all.push(base64_core(bytes, shift, alphabet));
        }
    }
    // A spelling that short would match ordinary text.
    all.retain(|spelling| spelling.len() >= MIN_SECRET_CHARS);
    all
}

/// As documents in pure ASCII spell it: `\u` escapes of UTF-16 for all that is beyond.
fn escape_non_ascii(secret: &str) -> Vec<u8> {
    use std::fmt::Write;

    let mut out = String::new();
    for character in secret.chars() {
        if character.is_ascii() {
            out.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out.into_bytes()
}

/// As Python's `ascii` spells it. In `bytes`, `\xe9` is a byte; here it is a character.
fn python_ascii(secret: &str) -> Vec<u8> {
    secret
        .chars()
        .flat_map(|character| {
            match u32::from(character) {
                0..0x80 => character.to_string(),
                code @ 0x80..0x100 => format!("\\x{code:02x}"),
                code @ 0x100..0x1_0000 => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }
            .into_bytes()
        })
        .collect()
}

/// RFC 3986, section 2.1: everything but unreserved characters is encoded.
fn percent_encode(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            out.push(*byte);
        } else {
            out.push(b'%');
            for nibble in [byte >> 4, byte & 15] {
                out.extend(b"0123456789ABCDEF".get(usize::from(nibble)));
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

//! Secrets out of text.
//!
//! Every text that leaves the library passes a [`Redactor`]. It finds secrets
//!
//! * by value: what has been registered, in the spellings that engines, URLs and headers give it –
//!   as it is, in other case, percent-encoded, in a form, JSON-escaped, base64 at each of the three
//!   alignments – each of them whole or broken off at either edge of the text;
//! * by name: headers, parameters, options and fields that carry one;
//! * by place: what a URL has before its host;
//! * by shape: tokens with the prefix of their issuer, private keys.
//!
//! Escapes hide none of them: the same is looked for in the text with its escapes undone. The time
//! is linear in the length of the text.

mod fields;
mod known;
mod marker;
mod names;
mod private;
mod scan;
mod tokens;
mod urls;
mod view;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;

use known::Known;
pub use private::PRIVATE_STRETCH_BYTES;
use scan::Span;
use view::View;

/// Secrets shorter than this would redact ordinary text.
pub const MIN_SECRET_CHARS: usize = 6;

/// Replaces secrets by `****` and the first six hex digits of their SHA-256.
///
/// Cheap to clone; a redacted text redacts to itself.
///
/// ```
/// use worker_adapters_core::redact::Redactor;
///
/// let redactor = Redactor::new(["sk-example-1"])?;
/// assert_eq!(redactor.redact("no such key: sk-example-1"), "no such key: ****420cc9");
/// assert_eq!(redactor.redact("http://h/?token=unheard-of"), "http://h/?token=****71c095");
/// assert_eq!(redactor.redact("nothing to hide"), "nothing to hide");
/// # Ok::<(), worker_adapters_core::redact::RedactorError>(())
/// ```
#[derive(Clone, Default)]
pub struct Redactor {
    known: Option<Arc<Known>>,
    /// Texts of a task that an engine's words must not repeat.
    private: Arc<[Box<str>]>,
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
        let secrets = self.known.as_ref().map_or(0, |known| known.secrets.len());
        f.debug_struct("Redactor").field("secrets", &secrets).finish_non_exhaustive()
    }
}

impl Redactor {
    /// A redactor for these secrets, beside those that it can tell by name, place and shape.
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
        let mut all: Vec<Box<str>> = self.known.as_ref().map_or_else(Vec::new, |known| {
            known.secrets.iter().map(|secret| secret.value.clone()).collect()
        });
        for (index, secret) in secrets.into_iter().enumerate() {
            let secret = secret.as_ref();
            if secret.chars().count() < MIN_SECRET_CHARS {
                return Err(RedactorError::TooShort { index });
            }
            if !all.iter().any(|known| **known == *secret) {
                all.push(secret.into());
            }
        }
        let known = if all.is_empty() { None } else { Some(Arc::new(Known::new(all)?)) };
        Ok(Self { known, private: Arc::clone(&self.private) })
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
        Self { known: self.known.clone(), private: private.into() }
    }

    /// What may be shown of an engine's words: neither a secret nor what they repeat of the private
    /// texts. Those are hidden while they are whole, before names and shapes are looked for.
    pub(crate) fn quote(&self, message: &str) -> String {
        let known = settle(message, |text| find(text, |text, spans| self.known(text, spans)));
        self.redact(&self.without_private(&known)).into_owned()
    }

    /// `text` with every secret replaced; borrowed when there is none in it.
    #[must_use]
    pub fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        settle(text, |text| {
            find(text, |text, spans| {
                self.known(text, spans);
                fields::find(text, spans);
                urls::find(text, spans);
                tokens::find(text, spans);
            })
        })
    }

    fn without_private<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.private.is_empty() {
            return text.into();
        }
        let spans = find(text, |text, spans| private::find(text, &self.private, spans));
        let mut out = String::new();
        let mut copied = 0;
        for span in &spans {
            out.push_str(text.get(copied..span.start).unwrap_or_default());
            out.push_str("[…]");
            copied = span.end;
        }
        out.push_str(text.get(copied..).unwrap_or_default());
        out.into()
    }

    fn known(&self, text: &[u8], spans: &mut Vec<Span>) {
        if let Some(known) = &self.known {
            known.find(text, spans);
        }
    }
}

/// What `scan` finds in `text` and behind its escapes, in order and without overlaps.
fn find(text: &str, scan: impl Fn(&[u8], &mut Vec<Span>)) -> Vec<Span> {
    let bytes = text.as_bytes();
    let mut spans = Vec::new();
    scan(bytes, &mut spans);
    let mut views: Vec<View> = Vec::new();
    for _ in 0..view::LAYERS {
        let Some(view) = View::of(views.last().map_or(bytes, |view| &view.text)) else { break };
        let mut inside = Vec::new();
        scan(&view.text, &mut inside);
        views.push(view);
        spans.extend(inside.into_iter().map(|span| {
            let source = views.iter().rev().fold(span.start..span.end, |at, v| v.source(at));
            Span { start: source.start, end: source.end, shown_as: span.shown_as }
        }));
    }
    merge(text, spans)
}

/// Overlapping stretches become one. It is shown as the part that is all of it, if one is.
fn merge(text: &str, mut spans: Vec<Span>) -> Vec<Span> {
    for span in &mut spans {
        while !text.is_char_boundary(span.start) {
            span.start -= 1;
        }
        while !text.is_char_boundary(span.end) {
            span.end += 1;
        }
    }
    spans.retain(|span| span.start < span.end);
    // The longest first, and of those that are equal a registered secret.
    spans.sort_by_key(|span| (span.start, Reverse(span.end), span.shown_as.is_none()));
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start < last.end => {
                if span.end > last.end {
                    last.end = span.end;
                    last.shown_as = None;
                }
            }
            _ => merged.push(span),
        }
    }
    merged
}

/// How often a text is looked at again. What is left after a replacement may look like a secret
/// beside its marker, though hardly ever twice.
const ROUNDS: usize = 8;

/// `text` with what `find` finds replaced, until there is nothing left to be found: so a redacted
/// text redacts to itself. A text that does not settle becomes one marker.
fn settle(text: &str, find: impl Fn(&str) -> Vec<Span>) -> Cow<'_, str> {
    let mut settled = Cow::Borrowed(text);
    for _ in 0..ROUNDS {
        let spans = find(&settled);
        match replace(&settled, &spans) {
            Some(redacted) => settled = Cow::Owned(redacted),
            None => return settled,
        }
    }
    marker::fingerprint(text.as_bytes()).into()
}

/// `text` with markers for these stretches; none where each is one already.
fn replace(text: &str, spans: &[Span]) -> Option<String> {
    let mut out = String::new();
    let mut copied = 0;
    for span in spans {
        let secret = text.get(span.start..span.end).unwrap_or_default();
        if marker::is_fingerprint(secret.as_bytes()) {
            continue;
        }
        out.push_str(text.get(copied..span.start).unwrap_or_default());
        match &span.shown_as {
            Some(shown_as) => out.push_str(shown_as),
            None => out.push_str(&marker::fingerprint(secret.as_bytes())),
        }
        copied = span.end;
    }
    if copied == 0 {
        return None;
    }
    out.push_str(text.get(copied..).unwrap_or_default());
    Some(out)
}

#[cfg(test)]
mod tests;

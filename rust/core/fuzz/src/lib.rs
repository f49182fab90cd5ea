//! What the targets share: ways to cut an input into reads, and the law of a stream.

use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::redact::Redactor;

/// Pseudo-random numbers (SplitMix64): the same for the same input.
pub struct Rng(u64);

impl Rng {
    #[must_use]
    pub fn new(seed: u8) -> Self {
        Self(u64::from(seed))
    }

    /// A number in `0..bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // So much of the bound as 32 random bits are of all there are.
        usize::try_from(((z >> 32) * bound as u64) >> 32).unwrap_or_default()
    }

    /// Cuts `data` into reads: mostly short ones or mostly long ones, some of them empty.
    pub fn cut<'d>(&mut self, data: &'d [u8]) -> Cut<'_, 'd> {
        let most = [2, 4, 17, 300][self.below(4)];
        Cut { rng: self, most, rest: data }
    }
}

/// The reads that an input is cut into.
pub struct Cut<'r, 'd> {
    rng: &'r mut Rng,
    /// Longer than any of the reads.
    most: usize,
    rest: &'d [u8],
}

impl<'d> Iterator for Cut<'_, 'd> {
    type Item = &'d [u8];

    fn next(&mut self) -> Option<&'d [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let (read, rest) = self.rest.split_at(self.rng.below(self.most).min(self.rest.len()));
        self.rest = rest;
        Some(read)
    }
}

type Setup = (&'static str, &'static [(&'static str, &'static str)]);

const DETAILS: (&str, &str) = ("token_ids", "true");
const LOGPROBS: (&str, &str) = ("logprobs", "true");

/// Every dialect, as adapters set it up. The seeds name one by its place here.
const SETUPS: [Setup; 15] = [
    ("llamacpp", &[]),
    ("llamacpp", &[DETAILS, LOGPROBS]),
    ("openai", &[]),
    ("openai", &[DETAILS, LOGPROBS]),
    ("sglang", &[]),
    ("sglang", &[("text", "delta")]),
    ("sglang", &[("text", "cumulative"), DETAILS, LOGPROBS]),
    ("tgi", &[]),
    ("tgi", &[DETAILS, LOGPROBS]),
    ("triton", &[]),
    ("triton", &[("text", "delta")]),
    ("triton", &[("text", "cumulative"), DETAILS]),
    ("field_map", &[("text_pointer", "/text"), ("end", "body")]),
    (
        "field_map",
        &[
            ("text_pointer", "/choices/0/delta/content"),
            ("token_ids_pointer", "/choices/0/token_ids"),
            ("finish_reason_pointer", "/choices/0/finish_reason"),
            ("error_pointer", "/error"),
            ("tokens_in_pointer", "/usage/prompt_tokens"),
            ("tokens_out_pointer", "/usage/completion_tokens"),
            ("end", "finish_reason"),
            DETAILS,
        ],
    ),
    (
        "field_map",
        &[("text_pointer", "/text"), ("text", "cumulative"), ("end", "pointer:/done"), DETAILS],
    ),
];

/// The name and a fresh parser of the setup that a byte stands for.
///
/// # Panics
///
/// When a setup is not one.
#[must_use]
pub fn dialect(which: u8) -> (&'static str, Dialect) {
    let (name, options) = SETUPS[usize::from(which) % SETUPS.len()];
    (name, Dialect::new(name, options.iter().copied()).expect("a valid setup"))
}

/// The law of a stream: `started`, tokens numbered from 0, one terminal event and nothing after it;
/// and the terminal event knows how many tokens there were. Every event is JSON.
#[derive(Default)]
pub struct Law {
    events: usize,
    started: bool,
    next: u64,
    tokens: u64,
    is_over: bool,
    json: Vec<u8>,
}

impl Law {
    /// The next event.
    ///
    /// # Panics
    ///
    /// When it may not stand here.
    pub fn take(&mut self, event: &TokenEvent) {
        assert!(!self.is_over, "{} after the end", event.kind());
        self.is_over = event.is_terminal();
        match event {
            TokenEvent::Started(_) => {
                assert!(self.events == 0, "started at {}", self.events);
                self.started = true;
            }
            TokenEvent::Token(token) => {
                assert!(self.started, "a token before started");
                assert!(!token.t.is_empty(), "a token without text");
                assert_eq!(token.i, self.next, "numbered out of order");
                self.next += 1;
                self.tokens = self.tokens.saturating_add(u64::from(token.n));
            }
            TokenEvent::Error(error) => {
                let told = error.tokens_emitted;
                assert!(told >= self.tokens, "{told} of {}", self.tokens);
                assert!(error.message.len() <= 512);
            }
            _ => {}
        }
        self.events += 1;
        self.json.clear();
        event.write_json(&mut self.json);
        let read = serde_json::from_slice::<serde_json::Value>(&self.json);
        assert!(read.is_ok_and(|value| value["kind"] == event.kind()), "{}", event.kind());
        assert!(!self.json.contains(&b'\n'));
    }

    /// Whether the terminal event has come.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over
    }
}

/// Panics unless these are the events of a stream that is over, and keep its law.
///
/// # Panics
///
/// See above.
pub fn assert_law(events: &[TokenEvent]) {
    let mut law = Law::default();
    for event in events {
        law.take(event);
    }
    assert!(law.is_over);
}

/// Panics where a secret shows in what is left of a text, or where redacting that changes it.
///
/// # Panics
///
/// See above.
pub fn assert_redacted(redactor: &Redactor, secrets: &[&str], text: &str) {
    let once = redactor.redact(text);
    let shown = once.to_ascii_lowercase();
    for secret in secrets {
        let secret = secret.to_ascii_lowercase();
        assert!(!shown.contains(&secret), "{secret:?} shows in {once:?} of {text:?}");
    }
    // What is left as it is has been redacted once already.
    if *once != *text {
        assert_eq!(redactor.redact(&once), once, "of {text:?}");
    }
}

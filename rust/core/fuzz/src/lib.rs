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
    ///
    /// # Panics
    ///
    /// Never: the number is smaller than a `usize`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap()
    }

    /// Cuts `data` into reads: mostly short ones or mostly long ones, some of them empty.
    pub fn cut<'d>(&mut self, data: &'d [u8]) -> Vec<&'d [u8]> {
        let most = [2, 4, 17, 300][self.below(4)];
        let mut reads = Vec::new();
        let mut rest = data;
        while !rest.is_empty() {
            let (read, after) = rest.split_at(self.below(most).min(rest.len()));
            reads.push(read);
            rest = after;
        }
        reads
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

/// Panics unless the events keep the law of a stream: `started`, tokens numbered from 0, one
/// terminal event and nothing after it; and the terminal event knows how many tokens there were.
///
/// # Panics
///
/// See above.
pub fn assert_law(events: &[TokenEvent], is_over: bool) {
    let mut started = false;
    let mut next = 0;
    let mut tokens = 0_u64;
    for (at, event) in events.iter().enumerate() {
        let is_last = at + 1 == events.len();
        assert_eq!(event.is_terminal(), is_last && is_over, "{} at {at}", event.kind());
        match event {
            TokenEvent::Started(_) => {
                assert!(at == 0, "started at {at}");
                started = true;
            }
            TokenEvent::Token(token) => {
                assert!(started, "a token before started");
                assert!(!token.t.is_empty(), "a token without text");
                assert_eq!(token.i, next, "numbered out of order");
                next += 1;
                tokens = tokens.saturating_add(u64::from(token.n));
            }
            TokenEvent::Error(error) => {
                assert!(error.tokens_emitted >= tokens, "{} of {tokens}", error.tokens_emitted);
                assert!(error.message.len() <= 512);
            }
            _ => {}
        }
        let mut json = Vec::new();
        event.write_json(&mut json);
        let read = serde_json::from_slice::<serde_json::Value>(&json);
        assert!(read.is_ok_and(|value| value["kind"] == event.kind()), "{}", event.kind());
        assert!(!json.contains(&b'\n'));
    }
    assert_eq!(is_over, events.last().is_some_and(TokenEvent::is_terminal));
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
    assert_eq!(redactor.redact(&once), once, "of {text:?}");
}

//! Bodies of engines, made up for the benchmarks in the shape that the real engines send.

use std::fmt::Write;

use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
use worker_adapters_core::time::Instant;

/// A stream of token frames, without its end.
#[derive(Debug)]
pub struct Body {
    /// What it is, as a name for a benchmark.
    pub name: &'static str,
    /// The dialect that reads it.
    pub engine: &'static str,
    /// One server-sent event per element.
    pub frames: Vec<Vec<u8>>,
}

const WORDS: [&str; 24] = [
    " the",
    " of",
    " and",
    " to",
    " in",
    " a",
    " is",
    " that",
    " for",
    " it",
    ",",
    ".",
    "ing",
    "ed",
    "\\n",
    "\\\"",
    " é",
    " naïve",
    "—",
    " 你好",
    "🙂",
    " streaming",
    " attention",
    " 42",
];

impl Body {
    /// `count` frames as vLLM sends them for a chat completion, about 260 bytes each.
    #[must_use]
    pub fn vllm_chat(count: usize) -> Self {
        Self::render("vllm_chat", "openai", count, |_, word, out| {
            let _ = write!(
                out,
                "data: {{\"id\":\"chatcmpl-8f4f2f7b9a5d4b0f9c1d2e3f4a5b6c7d\",\
                 \"object\":\"chat.completion.chunk\",\"created\":1760000000,\
                 \"model\":\"meta-llama/Llama-3.1-8B-Instruct\",\"choices\":[{{\"index\":0,\
                 \"delta\":{{\"content\":\"{word}\"}},\"logprobs\":null,\"finish_reason\":null,\
                 \"token_ids\":null}}]}}\n\n"
            );
        })
    }

    /// `count` frames of llama.cpp's native stream, about 120 bytes each.
    #[must_use]
    pub fn llamacpp(count: usize) -> Self {
        Self::render("llamacpp", "llamacpp", count, |at, word, out| {
            let _ = write!(
                out,
                "data: {{\"index\":0,\"content\":\"{word}\",\"tokens\":[{}],\"stop\":false,\
                 \"id_slot\":-1,\"tokens_predicted\":{},\"tokens_evaluated\":57}}\n\n",
                at * 7919 % 128_256,
                at + 1
            );
        })
    }

    /// `count` frames of TGI's native stream, about 120 bytes each.
    #[must_use]
    pub fn tgi(count: usize) -> Self {
        Self::render("tgi", "tgi", count, |at, word, out| {
            let _ = write!(
                out,
                "data:{{\"index\":{},\"token\":{{\"id\":{},\"text\":\"{word}\",\
                 \"logprob\":-0.{},\"special\":false}},\"generated_text\":null,\
                 \"details\":null}}\n\n",
                at + 1,
                at * 7919 % 128_256,
                at * 104_729 % 10_000_000
            );
        })
    }

    fn render(
        name: &'static str,
        engine: &'static str,
        count: usize,
        frame: impl Fn(usize, &str, &mut String),
    ) -> Self {
        let frames = WORDS.iter().cycle().take(count).enumerate().map(|(at, word)| {
            let mut out = String::new();
            frame(at, word, &mut out);
            out.into_bytes()
        });
        Self { name, engine, frames: frames.collect() }
    }

    /// The frames joined and cut into reads of `size` bytes.
    #[must_use]
    pub fn reads(&self, size: usize) -> Vec<Vec<u8>> {
        self.frames.concat().chunks(size).map(<[u8]>::to_vec).collect()
    }
}

/// Decodes `reads` as one stream, as a transport would; the number of events.
///
/// # Panics
///
/// For an engine that is not known.
#[must_use]
#[expect(clippy::panic, reason = "a benchmark of nothing is a mistake")]
pub fn decode(engine: &str, reads: &[Vec<u8>], events: &mut Vec<TokenEvent>) -> usize {
    let Ok(dialect) = Dialect::new(engine, []) else { panic!("unknown engine {engine}") };
    let mut decoder = StreamDecoder::new(dialect, StreamConfig::new(engine));
    let now = Instant::default();
    let mut count = 0;
    for read in reads {
        decoder.feed(read, now, events);
        count += events.len();
        events.clear();
    }
    count
}

//! A whole answer: [`Collected`].

use std::fmt;
use std::sync::Arc;

use super::TokenStream;
use crate::error::{Detail, Phase, WorkerError};
use crate::event::{Channel, End, FinishReason, Score, TokenEvent, UsageSource};
use crate::task::{InvalidTask, TaskRequest, Workload};

/// A whole answer, as [`collect`] returns it. `Debug` shows no text.
#[derive(Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Collected {
    /// The deltas of the content channel, joined.
    pub text: String,
    /// The deltas of the reasoning channel, joined.
    pub reasoning: String,
    /// Why it ended; None where the engine gives no reason.
    pub finish_reason: Option<FinishReason>,
    /// Tokens of the prompt.
    pub tokens_in: Option<u64>,
    /// Tokens generated.
    pub tokens_out: u64,
    /// Who counted them.
    pub usage_source: Option<UsageSource>,
    /// From the first token to the end, in milliseconds.
    pub decode_ms: u64,
    /// From dispatch to the first token, in milliseconds.
    pub latency_first_token_ms: Option<u64>,
    /// The seed that was sent.
    pub seed: Option<i64>,
    /// The model the engine runs.
    pub model: Option<Arc<str>>,
    /// The engine's version.
    pub engine_version: Option<Arc<str>>,
    /// For `embedding`: one vector per input, in input order.
    pub embeddings: Option<Vec<Vec<f64>>>,
    /// For `rerank`: one score per document, in input order.
    pub scores: Option<Vec<Score>>,
}

// Generated text never reaches a log through `{:?}`.
impl fmt::Debug for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collected")
            .field("text", &self.text.len())
            .field("finish_reason", &self.finish_reason)
            .field("tokens_in", &self.tokens_in)
            .field("tokens_out", &self.tokens_out)
            .finish_non_exhaustive()
    }
}

/// Reads the rest of a stream and returns it as one answer.
///
/// # Errors
///
/// That of the stream's `error` event; what came before it is not returned. A stream that had been
/// read to its end before is `Internal`.
pub async fn collect(mut stream: TokenStream) -> Result<Collected, WorkerError> {
    let mut collected = Collected::default();
    let mut engine: Option<Arc<str>> = None;
    let mut events = Vec::new();
    while stream.as_mut().next_batch(&mut events).await > 0 {
        for event in events.drain(..) {
            match event {
                TokenEvent::Started(started) => {
                    collected.model = started.model;
                    engine = Some(started.engine);
                }
                TokenEvent::Token(token) => match token.channel {
                    Channel::Content => collected.text.push_str(&token.t),
                    Channel::Reasoning => collected.reasoning.push_str(&token.t),
                    Channel::Tool => {}
                },
                TokenEvent::Metrics(_) => {}
                TokenEvent::End(end) => return Ok(collected.ended(*end)),
                TokenEvent::Error(error) => return Err(*error),
            }
        }
    }
    let engine = engine.unwrap_or_else(|| "unknown".into());
    Err(WorkerError {
        message: "nothing is left to collect: the stream had been read to its end".to_owned(),
        ..WorkerError::new(engine, Detail::Internal, Phase::Drain)
    })
}

impl Collected {
    fn ended(self, end: End) -> Self {
        Self {
            finish_reason: end.finish_reason,
            tokens_in: end.tokens_in,
            tokens_out: end.tokens_out,
            usage_source: end.usage_source,
            decode_ms: end.decode_ms,
            latency_first_token_ms: end.latency_first_token_ms,
            seed: end.seed,
            engine_version: end.engine_version,
            embeddings: end.embeddings,
            scores: end.scores,
            ..self
        }
    }
}

pub(super) fn expect_workload(task: &TaskRequest, expected: Workload) -> Result<(), WorkerError> {
    if task.workload == expected {
        return Ok(());
    }
    let rule = format!("must be '{expected}' for this call");
    Err(InvalidTask::new("workload", rule).into_error(task.engine.as_str()))
}

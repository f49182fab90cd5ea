//! What an orchestrator hands to an adapter: [`TaskRequest`] and [`SubmitContext`].
//!
//! The fields, their limits and their JSON are those of the contract, and of the Python package's
//! models of the same names. A [`TaskRequest`] is valid by construction; what it may carry beyond
//! the contract is off unless [`Extensions`] allows it. A user's text never shows in a `Debug`, nor
//! any value in the text of an error.
//!
//! ```
//! use worker_adapters_core::task::{
//!     EngineName, Extensions, ModelRef, Priority, Required, TaskFields, TaskRequest, Uuid, Workload,
//! };
//!
//! let fields = TaskFields {
//!     prompt: Some("Say hi".into()),
//!     ..TaskFields::from(Required {
//!         task_id: Uuid::from_u128(1),
//!         session_id: Uuid::from_u128(2),
//!         workload: Workload::Completion,
//!         model_ref: ModelRef::new("hf:org/repo/model.gguf")?,
//!         engine: EngineName::LLAMACPP,
//!         ctx: 4096,
//!         priority: Priority::Interactive,
//!         max_tokens: 64,
//!         deadline_ms: 30_000,
//!     })
//! };
//! let task = TaskRequest::new(fields.clone(), &Extensions::default())?;
//! assert_eq!(task.prompt.as_deref(), Some("Say hi"));
//!
//! let refused = TaskRequest::new(TaskFields { prompt: None, ..fields }, &Extensions::default());
//! assert_eq!(refused.unwrap_err().to_string(), "prompt: workload 'completion' needs a prompt");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod extensions;
#[cfg(feature = "serde")]
pub(crate) mod json;
mod model_ref;
mod text;

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

pub use uuid::Uuid;

pub use self::extensions::{
    ChatMessage, Constraint, Content, Extensions, Feature, Part, Role, Sampling, TaskExtensions,
    Tool, ToolCall,
};
pub use self::text::{HeaderText, InvalidText, JsonObject, LineText, ModelRef, Name, Text};
use crate::error::{Detail, Phase, WorkerError};
use crate::redact::Redactor;
use crate::words::words;

/// The largest count of the contract: its counts are `int32`.
pub const MAX_COUNT: u32 = i32::MAX.unsigned_abs();

words! {
    /// What is asked for.
    Workload {
        /// Text; it streams as `started → token* → end`.
        Completion = "completion",
        /// One vector per input; the stream is `started → end`.
        Embedding = "embedding",
        /// One score per document; the stream is `started → end`.
        Rerank = "rerank",
    }
}

words! {
    /// How urgent a task is.
    Priority {
        /// Somebody waits for it.
        Interactive = "interactive",
        /// Nobody does.
        Batch = "batch",
    }
}

words! {
    /// How far the same prompt, parameters and seed must give the same tokens.
    Determinism {
        /// The engine's deterministic settings; what it cannot guarantee its capabilities say.
        Strict = "strict",
        /// As far as it costs nothing.
        BestEffort = "best_effort",
    }
}

words! {
    /// Whether the engine may reuse its prompt cache.
    KvHint {
        /// It may.
        Reuse = "reuse",
        /// It must not.
        Cold = "cold",
    }
}

words! {
    /// How binding a [`Placement`] is.
    PlacementMode {
        /// This pool and no other: never a silent fallback.
        Pin = "pin",
        /// These pools first.
        Prefer = "prefer",
        /// Wherever it fits.
        Auto = "auto",
    }
}

/// The name of an engine: one of the contract's four, or one that [`Extensions`] allows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct EngineName(Cow<'static, str>);

impl EngineName {
    /// llama.cpp's server.
    pub const LLAMACPP: Self = Self(Cow::Borrowed("llamacpp"));
    /// vLLM.
    pub const VLLM: Self = Self(Cow::Borrowed("vllm"));
    /// Text Generation Inference.
    pub const TGI: Self = Self(Cow::Borrowed("tgi"));
    /// Triton with TensorRT-LLM.
    pub const TRITON: Self = Self(Cow::Borrowed("triton"));
    /// Any OpenAI-compatible server: an extension of the contract.
    pub const OPENAI: Self = Self(Cow::Borrowed("openai"));
    /// SGLang: an extension of the contract.
    pub const SGLANG: Self = Self(Cow::Borrowed("sglang"));

    /// The engines every orchestrator knows.
    pub const CONTRACT: [Self; 4] = [Self::LLAMACPP, Self::VLLM, Self::TGI, Self::TRITON];

    /// A third party's engine.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self(name.into())
    }

    /// The name, as it stands in metrics and events.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the orchestrator wants a task to run. The host of the adapters acts on it, an adapter does
/// not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct Placement {
    /// How binding the rest is.
    pub mode: PlacementMode,
    /// The pool that [`PlacementMode::Pin`] needs.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub pin_pool_id: Option<Name>,
    /// Pools to try first.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub prefer_pools: Option<Vec<Name>>,
    /// Pools to avoid.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub avoid_pools: Option<Vec<Name>>,
    /// The devices it needs.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub require_device_mask: Option<Name>,
    /// Whether another pool may take the task when the preferred ones cannot; true unless said
    /// otherwise.
    #[cfg_attr(feature = "serde", serde(default = "json::yes"))]
    pub allow_fallback: bool,
}

impl Placement {
    /// A placement that names no pool and allows fallback.
    #[must_use]
    pub fn new(mode: PlacementMode) -> Self {
        Self {
            mode,
            pin_pool_id: None,
            prefer_pools: None,
            avoid_pools: None,
            require_device_mask: None,
            allow_fallback: true,
        }
    }
}

/// The fields that every task has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Required {
    /// The task's id; [`cancel`](crate::adapter::WorkerAdapter::cancel) takes it.
    pub task_id: Uuid,
    /// The session it belongs to.
    pub session_id: Uuid,
    /// What is asked for.
    pub workload: Workload,
    /// Which model.
    pub model_ref: ModelRef,
    /// Which engine.
    pub engine: EngineName,
    /// Context length the task needs, in tokens, up to [`MAX_COUNT`].
    pub ctx: u32,
    /// How urgent it is.
    pub priority: Priority,
    /// The most tokens to generate, up to [`MAX_COUNT`].
    pub max_tokens: u32,
    /// Time budget in milliseconds from submission.
    pub deadline_ms: i64,
}

/// The fields of a task; [`TaskRequest::new`] checks them.
///
/// They are fixed by the contract. What this project adds goes into `extensions`.
///
/// As JSON (feature `serde`) unset fields are left out and unknown ones refused. The texts of a
/// JSON library's errors may repeat what they refuse; those of `TaskRequest::from_json` do not.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct TaskFields {
    /// The task's id; [`cancel`](crate::adapter::WorkerAdapter::cancel) takes it.
    pub task_id: Uuid,
    /// The session it belongs to.
    pub session_id: Uuid,
    /// What is asked for.
    pub workload: Workload,
    /// Which model.
    pub model_ref: ModelRef,
    /// Which engine.
    pub engine: EngineName,
    /// Context length the task needs, in tokens, up to [`MAX_COUNT`]; more than the engine has is
    /// refused.
    pub ctx: u32,
    /// How urgent it is.
    pub priority: Priority,
    /// The most tokens to generate, up to [`MAX_COUNT`]; a completion needs at least 1.
    pub max_tokens: u32,
    /// Time budget in milliseconds from submission.
    pub deadline_ms: i64,
    /// Sampling seed; generated, sent and reported when unset.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub seed: Option<i64>,
    /// How far the answer must be repeatable.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub determinism: Option<Determinism>,
    /// Names a sampler profile of the adapter's configuration; an unknown one is `INVALID_PARAMS`.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub sampler_profile_version: Option<Name>,
    /// The prompt of a completion, the text of an embedding, the query of a rerank.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub prompt: Option<Text>,
    /// The texts of an embedding, the documents of a rerank.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub inputs: Option<Vec<Text>>,
    /// How many tokens the orchestrator expects, up to [`MAX_COUNT`].
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub expected_tokens: Option<u32>,
    /// Whether the engine may reuse its prompt cache.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub kv_hint: Option<KvHint>,
    /// Where the task shall run.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub placement: Option<Placement>,
    /// What goes beyond the contract.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub extensions: Option<Box<TaskExtensions>>,
}

impl From<Required> for TaskFields {
    fn from(required: Required) -> Self {
        let Required {
            task_id,
            session_id,
            workload,
            model_ref,
            engine,
            ctx,
            priority,
            max_tokens,
            deadline_ms,
        } = required;
        Self {
            task_id,
            session_id,
            workload,
            model_ref,
            engine,
            ctx,
            priority,
            max_tokens,
            deadline_ms,
            seed: None,
            determinism: None,
            sampler_profile_version: None,
            prompt: None,
            inputs: None,
            expected_tokens: None,
            kv_hint: None,
            placement: None,
            extensions: None,
        }
    }
}

/// One task, valid by construction; its fields are read through [`TaskFields`].
///
/// What a workload needs: `completion` a `prompt` and `max_tokens` of at least 1, `embedding`
/// `inputs` or a `prompt`, `rerank` a `prompt` (the query) and `inputs` (the documents).
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRequest(TaskFields);

impl TaskRequest {
    /// Checks the fields, with what `allowed` allows beyond the contract.
    ///
    /// # Errors
    ///
    /// The first rule that they do not keep.
    pub fn new(fields: TaskFields, allowed: &Extensions) -> Result<Self, InvalidTask> {
        fields.check(allowed)?;
        Ok(Self(fields))
    }

    /// The fields, taken out.
    #[must_use]
    pub fn into_fields(self) -> TaskFields {
        self.0
    }
}

impl Deref for TaskRequest {
    type Target = TaskFields;

    fn deref(&self) -> &TaskFields {
        &self.0
    }
}

impl TaskFields {
    fn check(&self, allowed: &Extensions) -> Result<(), InvalidTask> {
        allowed.check_engine(&self.engine)?;
        let counts = [
            ("ctx", Some(self.ctx)),
            ("max_tokens", Some(self.max_tokens)),
            ("expected_tokens", self.expected_tokens),
        ];
        for (field, count) in counts {
            count_fits(field, count)?;
        }
        if let Some(placement) = &self.placement
            && placement.mode == PlacementMode::Pin
            && placement.pin_pool_id.is_none()
        {
            return Err(InvalidTask::new("placement.pin_pool_id", "mode 'pin' needs pin_pool_id"));
        }
        if let Some(extensions) = &self.extensions {
            extensions.check()?;
            allowed.check_features(extensions)?;
        }
        self.check_workload()
    }

    fn check_workload(&self) -> Result<(), InvalidTask> {
        let has_messages = self.extensions.as_ref().is_some_and(|more| more.messages.is_some());
        let has_inputs = self.inputs.as_ref().is_some_and(|inputs| !inputs.is_empty());
        let has_prompt = self.prompt.is_some();
        let broken = match self.workload {
            Workload::Completion if !has_prompt && !has_messages => {
                ("prompt", "workload 'completion' needs a prompt")
            }
            Workload::Completion if has_prompt && has_messages => {
                ("prompt", "a completion has a prompt or messages, not both")
            }
            Workload::Completion if self.max_tokens < 1 => {
                ("max_tokens", "workload 'completion' needs max_tokens of at least 1")
            }
            Workload::Embedding if !has_inputs && !has_prompt => {
                ("inputs", "workload 'embedding' needs inputs or a prompt")
            }
            Workload::Rerank if !has_prompt || !has_inputs => (
                if has_prompt { "inputs" } else { "prompt" },
                "workload 'rerank' needs a prompt (the query) and inputs (the documents)",
            ),
            _ => return Ok(()),
        };
        Err(InvalidTask::new(broken.0, broken.1))
    }
}

fn count_fits(field: &'static str, count: Option<u32>) -> Result<(), InvalidTask> {
    if count.is_some_and(|count| count > MAX_COUNT) {
        return Err(InvalidTask::new(field, "must be less than 2147483648"));
    }
    Ok(())
}

/// Why a task, or what goes with one, is refused: the field and its rule, never a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidTask {
    field: Cow<'static, str>,
    rule: Cow<'static, str>,
}

impl InvalidTask {
    /// A broken rule. Neither text may repeat a value.
    pub fn new(field: impl Into<Cow<'static, str>>, rule: impl Into<Cow<'static, str>>) -> Self {
        Self { field: field.into(), rule: rule.into() }
    }

    /// The field, by its path: `placement.pin_pool_id`.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }

    /// The rule, as a sentence.
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// The error of the contract: `Adapter`, `INVALID_PARAMS`, nothing was sent.
    #[must_use]
    pub fn into_error(self, engine: impl Into<Arc<str>>) -> WorkerError {
        // The name of an unknown field may be anything.
        WorkerError::new(engine, Detail::InvalidRequest, Phase::Validate)
            .with_message(&self.to_string(), &Redactor::default())
    }
}

impl fmt::Display for InvalidTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.rule)
    }
}

impl std::error::Error for InvalidTask {}

/// What the orchestrator knows about a task beyond its [`TaskRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct SubmitContext {
    /// The orchestrator's job.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub job_id: Option<LineText>,
    /// Sent as `X-Correlation-Id` and reported in every event and error; generated when unset.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub correlation_id: Option<HeaderText>,
    /// The task's place in the orchestrator's queue, up to [`MAX_COUNT`]; `started` reports it.
    #[cfg_attr(
        feature = "serde",
        serde(skip_serializing_if = "Option::is_none", deserialize_with = "json::count")
    )]
    pub queue_position: Option<u32>,
    /// When the orchestrator expects it to start, in milliseconds; `started` reports it.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub predicted_start_ms: Option<i64>,
    /// W3C trace context, forwarded as it is.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub traceparent: Option<HeaderText>,
    /// What tracing systems add to it (W3C Trace Context, section 3.3), forwarded as it is.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub tracestate: Option<HeaderText>,
}

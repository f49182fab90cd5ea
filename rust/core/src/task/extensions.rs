//! What a task may carry beyond the contract, and the gate in front of it.
//!
//! The contract is stable: an orchestrator that has not opted in can neither send nor be sent
//! anything beyond it. An adapter translates each field for its engine or refuses the task naming
//! it; it never drops one silently.

use super::{EngineName, HeaderText, InvalidTask, JsonObject, LineText, Text, count_fits};
use crate::words::words;

words! {
    /// A field of [`TaskExtensions`], as [`Extensions`] allows it.
    Feature {
        /// A conversation instead of a prompt.
        Messages = "messages",
        /// Functions the model may call.
        Tools = "tools",
        /// Which of them it must call.
        ToolChoice = "tool_choice",
        /// What the answer has to look like.
        Constraint = "constraint",
        /// Texts that end the generation.
        Stop = "stop",
        /// Sampling parameters.
        Sampling = "sampling",
        /// Log probabilities.
        Logprobs = "logprobs",
        /// Token ids.
        TokenIds = "token_ids",
        /// A LoRA adapter.
        Lora = "lora",
        /// The engine's own priority.
        Priority = "priority",
        /// A data-parallel rank.
        DataParallelRank = "data_parallel_rank",
        /// A key of placement.
        AffinityKey = "affinity_key",
    }
}

words! {
    /// Who speaks in a [`ChatMessage`].
    Role {
        /// Instructions to the model.
        System = "system",
        /// The user.
        User = "user",
        /// The model.
        Assistant = "assistant",
        /// The result of a call.
        Tool = "tool",
    }
}

/// Which additions to the contract an orchestrator has opted in to; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct Extensions {
    /// Engines beyond those of the contract: `openai`, `sglang`, third parties' own.
    pub engines: Vec<EngineName>,
    /// Fields of [`TaskExtensions`] that a task may set.
    pub features: Vec<Feature>,
}

impl Extensions {
    /// Allows everything, and these third-party engines.
    #[must_use]
    pub fn all(engines: impl IntoIterator<Item = EngineName>) -> Self {
        let ours = [EngineName::OPENAI, EngineName::SGLANG];
        Self { engines: ours.into_iter().chain(engines).collect(), features: Feature::ALL.to_vec() }
    }

    pub(super) fn check_engine(&self, engine: &EngineName) -> Result<(), InvalidTask> {
        if EngineName::CONTRACT.contains(engine) || self.engines.contains(engine) {
            return Ok(());
        }
        let rule = if matches!(engine.as_str(), "openai" | "sglang") {
            "is an extension of the contract; allow it in Extensions::engines"
        } else {
            "must be one of llamacpp, vllm, tgi, triton"
        };
        Err(InvalidTask::new("engine", rule))
    }

    pub(super) fn check_features(&self, used: &TaskExtensions) -> Result<(), InvalidTask> {
        let refused = used.features().find(|feature| !self.features.contains(feature));
        refused.map_or(Ok(()), |feature| {
            Err(InvalidTask::new(
                format!("extensions.{feature}"),
                "is an extension of the contract; allow it in Extensions::features",
            ))
        })
    }
}

/// Sampling parameters; one left unset is the engine's own default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct Sampling {
    /// 0 to 100; 0 is greedy decoding.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub temperature: Option<f64>,
    /// 0 considers every token.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub top_k: Option<u32>,
    /// Above 0, up to 1.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub top_p: Option<f64>,
    /// 0 to 1.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub min_p: Option<f64>,
    /// Above 0, up to 100; 1 penalises nothing.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub repeat_penalty: Option<f64>,
    /// -2 to 2.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub presence_penalty: Option<f64>,
    /// -2 to 2.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub frequency_penalty: Option<f64>,
}

impl Sampling {
    fn check(&self) -> Result<(), InvalidTask> {
        let between = |low: f64, high: f64| move |value: f64| (low..=high).contains(&value);
        let above = |high: f64| move |value: f64| value > 0.0 && value <= high;
        fits("temperature", self.temperature, between(0.0, 100.0), "must be from 0 to 100")?;
        count_fits("extensions.sampling.top_k", self.top_k)?;
        fits("top_p", self.top_p, above(1.0), "must be above 0 and at most 1")?;
        fits("min_p", self.min_p, between(0.0, 1.0), "must be from 0 to 1")?;
        fits("repeat_penalty", self.repeat_penalty, above(100.0), "must be above 0, at most 100")?;
        let penalty = "must be from -2 to 2";
        fits("presence_penalty", self.presence_penalty, between(-2.0, 2.0), penalty)?;
        fits("frequency_penalty", self.frequency_penalty, between(-2.0, 2.0), penalty)
    }
}

fn fits(
    field: &'static str,
    value: Option<f64>,
    is_fine: impl Fn(f64) -> bool,
    rule: &'static str,
) -> Result<(), InvalidTask> {
    // Neither infinities nor NaN are within any range.
    if value.is_none_or(is_fine) {
        return Ok(());
    }
    Err(InvalidTask::new(format!("extensions.sampling.{field}"), rule))
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)
)]
pub enum Part {
    /// A text.
    Text {
        /// It.
        text: Text,
    },
    /// An image.
    Image {
        /// An `https://` URL that the engine fetches, or a `data:` URL that holds it.
        url: Text,
    },
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(untagged))]
pub enum Content {
    /// Text alone.
    Text(Text),
    /// Texts and images, at least one.
    Parts(Vec<Part>),
}

/// A call that the assistant made earlier in the conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct ToolCall {
    /// The call's id.
    pub id: LineText,
    /// The tool's name.
    pub name: LineText,
    /// The arguments as JSON text, as the model wrote them.
    pub arguments: Text,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said; an assistant may call tools instead.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub content: Option<Content>,
    /// The speaker's name.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub name: Option<LineText>,
    /// [`Role::Tool`]: the call that this is the result of.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub tool_call_id: Option<LineText>,
    /// [`Role::Assistant`]: the calls it made.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub tool_calls: Option<Vec<ToolCall>>,
}

impl ChatMessage {
    /// A message of text alone.
    #[must_use]
    pub fn new(role: Role, text: &str) -> Self {
        Self {
            role,
            content: Some(Content::Text(text.into())),
            name: None,
            tool_call_id: None,
            tool_calls: None,
        }
    }

    /// Whether an image is part of it.
    #[must_use]
    pub fn has_image(&self) -> bool {
        self.parts().iter().any(|part| matches!(part, Part::Image { .. }))
    }

    fn parts(&self) -> &[Part] {
        match &self.content {
            Some(Content::Parts(parts)) => parts,
            Some(Content::Text(_)) | None => &[],
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        if matches!(&self.content, Some(Content::Parts(parts)) if parts.is_empty()) {
            return Err("content must have at least one part");
        }
        if !self.parts().iter().all(is_fine_part) {
            return Err("an image must be an https:// or a data: URL");
        }
        if self.content.is_none() && self.tool_calls.as_ref().is_none_or(Vec::is_empty) {
            return Err("a message needs content or tool_calls");
        }
        if self.tool_calls.is_some() && self.role != Role::Assistant {
            return Err("only an assistant's message has tool_calls");
        }
        if self.tool_call_id.is_some() != (self.role == Role::Tool) {
            return Err("a tool's message, and no other, has a tool_call_id");
        }
        Ok(())
    }
}

fn is_fine_part(part: &Part) -> bool {
    let Part::Image { url } = part else { return true };
    ["https://", "data:"].iter().any(|scheme| {
        url.strip_prefix(scheme).is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic())
        })
    })
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct Tool {
    /// 1 to 64 letters, digits, `_`, `.` and `-`.
    pub name: Box<str>,
    /// What it does, for the model.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub description: Option<Text>,
    /// JSON Schema of the arguments; any object unless said otherwise.
    #[cfg_attr(feature = "serde", serde(default = "JsonObject::any_object"))]
    pub parameters: JsonObject,
}

/// Words of `tool_choice`; no tool may be called like one.
const CHOICES: [&str; 3] = ["auto", "none", "required"];

fn is_tool_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// What the answer has to look like.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Constraint {
    /// JSON that this schema describes.
    JsonSchema(JsonObject),
    /// Text that this regular expression matches.
    Regex(Text),
    /// Text of a grammar in the engine's own language (GBNF for llama.cpp, EBNF elsewhere).
    Grammar(Text),
    /// One of these texts.
    Choice(Vec<Text>),
}

impl Constraint {
    /// Which kind it is: `json_schema`, `regex`, `grammar` or `choice`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "json_schema",
            Self::Regex(_) => "regex",
            Self::Grammar(_) => "grammar",
            Self::Choice(_) => "choice",
        }
    }

    fn is_fine(&self) -> bool {
        match self {
            Self::JsonSchema(_) => true,
            Self::Regex(text) | Self::Grammar(text) => !text.is_empty(),
            Self::Choice(texts) => are_words(texts),
        }
    }
}

/// At least one, and none empty.
fn are_words(texts: &[Text]) -> bool {
    !texts.is_empty() && texts.iter().all(|text| !text.is_empty())
}

/// What a task may carry beyond the contract; every field is optional.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct TaskExtensions {
    /// A conversation instead of a prompt, at least one message; the engine applies its chat
    /// template.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub messages: Option<Vec<ChatMessage>>,
    /// Functions the model may call, at least one; they need `messages`.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub tools: Option<Vec<Tool>>,
    /// `auto`, `none`, `required`, or the name of a tool; needs `tools`.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub tool_choice: Option<LineText>,
    /// What the answer has to look like.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub constraint: Option<Constraint>,
    /// Texts that end the generation and are not part of it, at least one.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub stop: Option<Vec<Text>>,
    /// Overrides the sampler profile, parameter by parameter.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub sampling: Option<Sampling>,
    /// Report each token's log probability, and those of so many alternatives, up to 20.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub logprobs: Option<u32>,
    /// Report token ids.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub token_ids: Option<bool>,
    /// The LoRA adapter to apply, by the name the engine knows it under.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub lora: Option<LineText>,
    /// Higher is sooner, whatever the engine's own sign; not `i32::MIN`.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub priority: Option<i32>,
    /// The data-parallel rank to run on.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub data_parallel_rank: Option<u32>,
    /// Tasks with one key profit from running on the same replica.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub affinity_key: Option<HeaderText>,
}

impl TaskExtensions {
    /// What is set, field by field.
    pub fn features(&self) -> impl Iterator<Item = Feature> + '_ {
        Feature::ALL.iter().copied().filter(|feature| match feature {
            Feature::Messages => self.messages.is_some(),
            Feature::Tools => self.tools.is_some(),
            Feature::ToolChoice => self.tool_choice.is_some(),
            Feature::Constraint => self.constraint.is_some(),
            Feature::Stop => self.stop.is_some(),
            Feature::Sampling => self.sampling.is_some(),
            Feature::Logprobs => self.logprobs.is_some(),
            Feature::TokenIds => self.token_ids.is_some(),
            Feature::Lora => self.lora.is_some(),
            Feature::Priority => self.priority.is_some(),
            Feature::DataParallelRank => self.data_parallel_rank.is_some(),
            Feature::AffinityKey => self.affinity_key.is_some(),
        })
    }

    /// What is set, as an adapter declares what it can translate: field names, `constraint` as
    /// `constraint.KIND`, and `messages.image` where a message holds an image.
    #[must_use]
    pub fn used(&self) -> Vec<String> {
        let mut used: Vec<String> = self
            .features()
            .map(|feature| match (feature, &self.constraint) {
                (Feature::Constraint, Some(constraint)) => {
                    format!("constraint.{}", constraint.kind())
                }
                (feature, _) => feature.as_str().to_owned(),
            })
            .collect();
        if self.messages.iter().flatten().any(ChatMessage::has_image) {
            used.push("messages.image".to_owned());
        }
        used
    }

    pub(super) fn check(&self) -> Result<(), InvalidTask> {
        let broken = |field: &str, rule: &'static str| {
            Err(InvalidTask::new(format!("extensions.{field}"), rule))
        };
        if self.messages.as_ref().is_some_and(Vec::is_empty) {
            return broken("messages", "must have at least one message");
        }
        for (at, message) in self.messages.iter().flatten().enumerate() {
            if let Err(rule) = message.check() {
                return broken(&format!("messages[{at}]"), rule);
            }
        }
        if let Err((field, rule)) = self.check_tools() {
            return broken(field, rule);
        }
        if self.constraint.as_ref().is_some_and(|constraint| !constraint.is_fine()) {
            return broken("constraint", "must not be empty");
        }
        if self.stop.as_deref().is_some_and(|stop| !are_words(stop)) {
            return broken("stop", "must have at least one text, and none that is empty");
        }
        if self.logprobs.is_some_and(|alternatives| alternatives > 20) {
            return broken("logprobs", "must be from 0 to 20");
        }
        if self.priority == Some(i32::MIN) {
            return broken("priority", "must be above -2147483648");
        }
        count_fits("extensions.data_parallel_rank", self.data_parallel_rank)?;
        self.sampling.as_ref().map_or(Ok(()), Sampling::check)
    }

    fn check_tools(&self) -> Result<(), (&'static str, &'static str)> {
        let tools = self.tools.as_deref().unwrap_or_default();
        if self.tools.is_some() && tools.is_empty() {
            return Err(("tools", "must have at least one tool"));
        }
        if !tools.iter().all(|tool| is_tool_name(&tool.name)) {
            return Err(("tools", "a name must be 1 to 64 letters, digits, '_', '.' and '-'"));
        }
        if self.tools.is_some() && self.messages.is_none() {
            return Err(("tools", "tools need messages"));
        }
        let mut names: Vec<&str> = tools.iter().map(|tool| &*tool.name).chain(CHOICES).collect();
        names.sort_unstable();
        names.dedup();
        if names.len() < tools.len() + CHOICES.len() {
            return Err((
                "tools",
                "each tool needs a name of its own, and not auto, none or required",
            ));
        }
        let Some(choice) = &self.tool_choice else { return Ok(()) };
        if self.tools.is_none() {
            return Err(("tool_choice", "tool_choice needs tools"));
        }
        if !names.contains(&choice.as_str()) {
            return Err((
                "tool_choice",
                "tool_choice must be auto, none, required or one of the tools",
            ));
        }
        Ok(())
    }
}

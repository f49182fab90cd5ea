//! `Debug` of every public type that can hold what a user wrote, what a model said, or a key.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::cell::RefCell;
use std::fmt::Debug;
use std::rc::Rc;

use worker_adapters_core::adapter::Collected;
use worker_adapters_core::dialects::{Dialect, FrameParser};
use worker_adapters_core::engine_error::EngineError;
use worker_adapters_core::error::{Detail, Phase, WorkerError};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::http::ResponseHead;
use worker_adapters_core::json::{JsonError, Reader};
use worker_adapters_core::redact::Redactor;
use worker_adapters_core::rules::RuleTable;
use worker_adapters_core::sse::{SseDecoder, SseEvent, SseItem};
use worker_adapters_core::stream::{FrameSink, StreamConfig, StreamDecoder, UnaryAnswer};
use worker_adapters_core::task::{
    ChatMessage, Constraint, Content, EngineName, Extensions, JsonObject, ModelRef, Part, Priority,
    Required, Role, TaskExtensions, TaskFields, TaskRequest, Text, Tool, ToolCall, Uuid, Workload,
};
use worker_adapters_core::time::Instant;

const CANARY: &str = "Zephyrina told nobody";
/// What would show of it, escaped or cut.
const SHOWS: &str = "Zephyrina";
const KEY: &str = "canary-key-0123456789";

fn check(shown: &str) {
    assert!(!shown.contains(SHOWS), "{shown}");
    assert!(!shown.contains(KEY), "{shown}");
}

fn show(value: &dyn Debug) {
    check(&format!("{value:?}"));
    check(&format!("{value:#?}"));
}

/// A parser that has itself, its frames and its sink printed.
struct Printed(Dialect, Rc<RefCell<usize>>);

impl FrameParser for Printed {
    fn frame(&mut self, frame: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
        let read = self.0.frame(frame, sink);
        show(&self.0);
        show(frame);
        show(sink);
        show(&read);
        *self.1.borrow_mut() += 1;
        read
    }

    fn end_marker(&self) -> Option<&str> {
        self.0.end_marker()
    }
}

type Options = &'static [(&'static str, &'static str)];

/// Dialects with the options that quote the user, and a frame of each that says the canary.
const STREAMS: &[(&str, Options, &str)] = &[
    (
        "llamacpp",
        &[],
        r#"{"index":0,"content":"CANARY","tokens":[1],"stop":false,"tokens_predicted":1}"#,
    ),
    ("openai", &[], r#"{"id":"x","model":"m","choices":[{"index":0,"text":"CANARY"}]}"#),
    (
        "openai",
        &[],
        r#"{"id":"x","choices":[{"index":0,"delta":{"content":"CANARY","reasoning_content":"CANARY"}}]}"#,
    ),
    ("openai", &[STOP], r#"{"choices":[{"index":0,"text":"CANARY. CANARY"}]}"#),
    (
        "tgi",
        &[],
        r#"{"index":1,"token":{"id":1,"text":"CANARY","logprob":-1.0,"special":false},"generated_text":null,"details":null}"#,
    ),
    (
        "tgi",
        &[STOP],
        r#"{"index":1,"token":{"id":1,"text":"CANARY. CANARY","logprob":-1.0,"special":false}}"#,
    ),
    ("triton", &[], r#"{"model_name":"m","model_version":"1","text_output":"CANARY"}"#),
    (
        "triton",
        &[("text", "accumulated"), ("echo", "CANARY"), STOP],
        r#"{"model_name":"m","model_version":"1","text_output":"CANARY! CANARY. CANARY"}"#,
    ),
    (
        "sglang",
        &[],
        r#"{"text":"CANARY","meta_info":{"id":"x","completion_tokens":1,"prompt_tokens":1,"finish_reason":null}}"#,
    ),
    ("field_map", &[("text_pointer", "/t")], r#"{"t":"CANARY"}"#),
    ("field_map", &[("text_pointer", "/t"), ("text", "cumulative")], r#"{"t":"CANARY\ufffd"}"#),
];

/// A stop text that the canary may become.
const STOP: (&str, &str) = ("stop", r#"["CANARY?"]"#);

/// What follows in mid-stream: nothing, nonsense, an error that quotes.
const AFTER: &[&str] = &[
    "",
    "data: {\"CANARY\": nonsense CANARY\n\n",
    "data: {\"error\":{\"message\":\"lost CANARY with KEY\",\"type\":\"server_error\",\"code\":500}}\n\n",
    "event: error\ndata: {\"error\":\"lost CANARY with KEY\",\"error_type\":\"generation\"}\n\n",
    "CANARY: no field\n\n",
];

/// A text of [`STREAMS`] or [`AFTER`] that quotes.
fn filled(text: &str) -> String {
    text.replace("CANARY", CANARY).replace("KEY", KEY)
}

fn check_stream(name: &str, options: &[(&str, &str)], frame: &str, after: &str) {
    let head = [(&b"Content-Type"[..], &b"text/event-stream"[..]), (b"Set-Cookie", KEY.as_bytes())];
    let options: Vec<_> = options.iter().map(|(key, value)| (*key, filled(value))).collect();
    let options = options.iter().map(|(key, value)| (*key, value.as_str()));
    let frames = Rc::default();
    let parser = Printed(Dialect::new(name, options).unwrap(), Rc::clone(&frames));
    show(&parser.0);
    let mut config = StreamConfig::new(name);
    config.redactor = Redactor::new([KEY]).unwrap().with_private_texts([CANARY]);
    show(&config);
    let mut decoder = StreamDecoder::new(parser, config);
    let mut events = Vec::new();
    let now = Instant::from_nanos(0);
    decoder.dispatched(now);
    let head = ResponseHead { status: 200, headers: &head };
    show(&head);
    decoder.head(&head, now, &mut events);
    decoder.feed(filled(&format!("data: {frame}\n\n{after}")).as_bytes(), now, &mut events);
    show(&decoder);
    decoder.finish(false, now, &mut events);
    show(&decoder);
    assert!(*frames.borrow() > 0);
    let is_told =
        |event: &TokenEvent| matches!(event, TokenEvent::Token(token) if token.t.contains(SHOWS));
    assert!(events.iter().any(is_told), "{name}");
    for event in &events {
        show(event);
        event.fields(&mut |name, value| show(&(name, value)));
        if let TokenEvent::Error(error) = event {
            check(&error.to_string());
        }
    }
}

#[test]
fn streams_of_every_dialect() {
    for (name, options, frame) in STREAMS {
        // What is escaped goes through a buffer of the dialect's.
        let escaped = frame.replace("CANARY", "\\u005aephyrina told nobody");
        for after in AFTER {
            check_stream(name, options, frame, after);
            check_stream(name, options, &escaped, after);
        }
    }
}

#[test]
fn log_probabilities_and_answers() {
    let frame = format!(
        r#"{{"choices":[{{"index":0,"text":"{CANARY}","logprobs":{{"tokens":["{CANARY}"],"token_logprobs":[-1.0],"top_logprobs":[{{"{CANARY}":-1.0}}]}}}}]}}"#
    );
    let mut decoder = StreamDecoder::new(
        Dialect::new("openai", [("logprobs", "true")]).unwrap(),
        StreamConfig::new("openai"),
    );
    let (mut events, now) = (Vec::new(), Instant::from_nanos(0));
    decoder.dispatched(now);
    decoder.head(
        &ResponseHead { status: 200, headers: &[(b"Content-Type", b"text/event-stream")] },
        now,
        &mut events,
    );
    decoder.feed(format!("data: {frame}\n\n").as_bytes(), now, &mut events);
    let [_, TokenEvent::Token(token)] = &events[..] else { panic!("{events:?}") };
    let detail = token.detail.as_ref().unwrap();
    assert!(detail.logprobs[0].token.contains(SHOWS));
    show(&events);
    show(detail);
    show(&UnaryAnswer { tokens_in: Some(1), ..UnaryAnswer::default() });
    let mut collected = Collected::default();
    collected.text = CANARY.into();
    collected.reasoning = CANARY.into();
    show(&collected);
}

#[test]
fn readers_and_their_errors() {
    let document = format!(r#"{{"{CANARY}": "{CANARY}", "b": {CANARY}}}"#);
    let mut reader = Reader::new(&document);
    let read = reader.object(|_, reader| {
        show(reader);
        show(&reader.string_or_null()?);
        Ok(())
    });
    show(&read);
    show(&reader);

    let mut decoder = SseDecoder::new();
    let body = format!("id: 1\ndata: {CANARY}\n\n{CANARY}\ndata: {CANARY}");
    let mut items = 0;
    let read = decoder.feed(body.as_bytes(), &mut |item: SseItem<'_>| {
        items += 1;
        if let SseItem::Event(event) = item {
            show(&event);
        }
    });
    show(&read);
    show(&decoder);
    assert_eq!(items, 2);
}

#[test]
fn errors_of_engines() {
    let redactor = Redactor::new([KEY]).unwrap().with_private_texts([CANARY]);
    show(&redactor);
    for said in [
        format!(r#"{{"error":{{"message":"bad: {CANARY} {KEY}","type":"invalid","code":"x"}}}}"#),
        format!("<h1>{CANARY}</h1> Authorization: Bearer {KEY}"),
    ] {
        let answer = EngineError::from_body(400, said.as_bytes());
        show(&answer);
        let error = RuleTable::default().classify("e", &answer, Phase::Head, &redactor);
        show(&error);
        check(&error.to_string());
    }
    // Nobody has registered anything.
    let error = WorkerError::new("e", Detail::Connect, Phase::Connect)
        .with_message(&format!("http://u:{KEY}@h/?token={KEY}"), &Redactor::default());
    show(&error);
}

#[test]
fn tasks() {
    let text = || Text::from(CANARY);
    let json = || JsonObject::new(&format!(r#"{{"description":"{CANARY}"}}"#)).unwrap();
    let mut asked = ChatMessage::new(Role::User, CANARY);
    asked.content = Some(Content::Parts(vec![
        Part::Text { text: text() },
        Part::Image { url: format!("data:image/png;base64,{SHOWS}").into() },
    ]));
    let mut answered = ChatMessage::new(Role::Assistant, CANARY);
    answered.tool_calls = Some(vec![ToolCall {
        id: "c".try_into().unwrap(),
        name: "look".try_into().unwrap(),
        arguments: text(),
    }]);
    let tool = Tool { name: "look".into(), description: Some(text()), parameters: json() };
    let mut fields = TaskFields::from(Required {
        task_id: Uuid::from_u128(1),
        session_id: Uuid::from_u128(2),
        workload: Workload::Rerank,
        model_ref: ModelRef::new("hf:org/repo").unwrap(),
        engine: EngineName::new("vllm"),
        ctx: 0,
        priority: Priority::Batch,
        max_tokens: 1,
        deadline_ms: 1000,
    });
    fields.prompt = Some(text());
    fields.inputs = Some(vec![text()]);
    show(&TaskRequest::new(fields.clone(), &Extensions::default()).unwrap());
    for constraint in [
        Constraint::JsonSchema(json()),
        Constraint::Regex(text()),
        Constraint::Grammar(text()),
        Constraint::Choice(vec![text()]),
    ] {
        fields.extensions = Some(Box::new(TaskExtensions {
            messages: Some(vec![asked.clone(), answered.clone()]),
            tools: Some(vec![tool.clone()]),
            constraint: Some(constraint),
            stop: Some(vec![text()]),
            ..TaskExtensions::default()
        }));
        show(&fields);
        show(&TaskRequest::new(fields.clone(), &Extensions::default()));
    }
}

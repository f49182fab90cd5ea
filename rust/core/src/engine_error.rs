//! What an engine says went wrong, out of whatever shape it says it in.
//!
//! Engines report errors as `{"error":{…}}`, `{"error":"text"}`, flat (`{"object":"error",…}`), as
//! `{"detail":…}` (FastAPI), with `error_type` (TGI), framed as server-sent events or as plain
//! text. [`EngineError`] is the one shape they are all brought into, before any rule is applied.

use std::fmt;

use crate::json::{JsonError, Kind, Reader};
use crate::pause;

/// How much of an error body is kept.
pub const ERROR_BODY_BYTES: usize = 8 << 10;

/// An engine's own account of an error.
///
/// The message may quote the request: it is shown only through
/// [`WorkerError`](crate::error::WorkerError), redacted.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineError {
    /// HTTP status, or the status that the error names inside a 200.
    pub status: Option<u16>,
    /// The engine's `code`, a number as its digits.
    pub code: Option<String>,
    /// The engine's `type` (TGI: `error_type`).
    pub r#type: Option<String>,
    /// The engine's words.
    pub message: Option<String>,
    /// How long it asks to wait, in a field (`retry_after`, `retryDelay` …) or in those words, in
    /// milliseconds and at most [`MAX_RETRY_AFTER_MS`](crate::http::MAX_RETRY_AFTER_MS).
    pub retry_after_ms: Option<u64>,
}

impl fmt::Debug for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineError")
            .field("status", &self.status)
            .field("code", &self.code)
            .field("type", &self.r#type)
            .finish_non_exhaustive()
    }
}

impl EngineError {
    /// The error in a JSON document, or None when the document is none or reports no error.
    #[must_use]
    pub fn from_json(text: &str) -> Option<Self> {
        let mut fields = Fields::default();
        let mut reader = Reader::new(text);
        fields.read(&mut reader, true).ok()?;
        reader.end().ok()?;
        fields.reports_error.then(|| fields.into_error())
    }

    /// The error in the body of an answer with an error status: JSON, server-sent events that hold
    /// JSON, or text. A body of anything else gives an error with no message.
    #[must_use]
    pub fn from_body(status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body.get(..ERROR_BODY_BYTES).unwrap_or(body));
        let text = text.trim();
        let mut error = Self::from_json(text)
            .or_else(|| text.lines().find_map(Self::from_field_line))
            .unwrap_or_else(|| Self::from_error_value(text));
        error.status = Some(status);
        error
    }

    /// The error in an `error: {…}` or `data: {…}` line (llama.cpp before PR 16109 reports errors
    /// under a field name that readers of server-sent events must ignore).
    #[must_use]
    pub fn from_field_line(line: &str) -> Option<Self> {
        match line.strip_prefix("error:") {
            Some(value) => Some(Self::from_error_value(value)),
            None => Self::from_json(line.strip_prefix("data:").unwrap_or(line)),
        }
    }

    /// The error in a text that is known to report one: an error object, a document that holds one,
    /// or words.
    #[must_use]
    pub fn from_error_value(text: &str) -> Self {
        let mut fields = Fields::default();
        let mut reader = Reader::new(text);
        if fields.read(&mut reader, true).and_then(|()| reader.end()).is_ok() {
            return fields.into_error();
        }
        let text = text.trim();
        let message = (!text.is_empty() && !text.starts_with(['<', '{'])).then_some(text);
        Self {
            message: message.map(Into::into),
            retry_after_ms: message.and_then(pause::in_words),
            ..Self::default()
        }
    }
}

#[derive(Default)]
struct Fields {
    code: Option<String>,
    r#type: Option<String>,
    message: Option<String>,
    retry_after_ms: Option<u64>,
    reports_error: bool,
}

impl Fields {
    /// Reads an error object; `outer` says that it may be a document that holds one.
    fn read(&mut self, reader: &mut Reader<'_>, outer: bool) -> Result<(), JsonError> {
        reader.object(|key, reader| {
            let kind = reader.peek()?;
            match (key, kind) {
                ("error", Kind::Object) if outer => {
                    self.reports_error = true;
                    return self.read(reader, false);
                }
                ("error", Kind::String) if outer => {
                    self.reports_error = true;
                    if self.message.is_none() {
                        self.message = Some(reader.string()?.value().into_owned());
                        return Ok(());
                    }
                }
                ("object", Kind::String) if outer => {
                    self.reports_error |= reader.string()?.value() == "error";
                    return Ok(());
                }
                ("message", Kind::String) => {
                    self.message = Some(reader.string()?.value().into_owned());
                    return Ok(());
                }
                ("detail", Kind::String) if outer => {
                    self.reports_error = true;
                    self.message = Some(reader.string()?.value().into_owned());
                    return Ok(());
                }
                ("detail", Kind::Array) if outer => {
                    self.reports_error = true;
                    return self.read_details(reader);
                }
                ("type", Kind::String) => {
                    self.r#type = Some(reader.string()?.value().into_owned());
                    return Ok(());
                }
                ("error_type", Kind::String) => {
                    self.reports_error = true;
                    self.r#type = Some(reader.string()?.value().into_owned());
                    return Ok(());
                }
                ("details", Kind::Array) => {
                    return reader.array(|_, reader| match reader.peek()? {
                        Kind::Object => self.read_pause(reader),
                        _ => reader.skip(),
                    });
                }
                ("code", Kind::String) => {
                    self.code = Some(reader.string()?.value().into_owned());
                    return Ok(());
                }
                ("code", Kind::Number) => {
                    self.code = Some(reader.number()?.to_owned());
                    return Ok(());
                }
                _ => {}
            }
            self.pause_field(key, kind, reader)
        })
    }

    /// What one of the details says of a pause; the rest is not looked at.
    fn read_pause(&mut self, reader: &mut Reader<'_>) -> Result<(), JsonError> {
        reader.object(|key, reader| {
            let kind = reader.peek()?;
            self.pause_field(key, kind, reader)
        })
    }

    fn pause_field(
        &mut self,
        key: &str,
        kind: Kind,
        reader: &mut Reader<'_>,
    ) -> Result<(), JsonError> {
        let read = match key {
            "retry_after_ms" => pause::in_milliseconds,
            "retry_after" | "retry_after_seconds" | "retryDelay" => pause::in_seconds,
            _ => return reader.skip(),
        };
        let pause = match kind {
            Kind::Number => read(reader.number()?),
            Kind::String => read(&reader.string()?.value()),
            _ => return reader.skip(),
        };
        self.retry_after_ms = self.retry_after_ms.or(pause);
        Ok(())
    }

    /// FastAPI's validation errors: the first one's `msg`, behind the field it is about.
    fn read_details(&mut self, reader: &mut Reader<'_>) -> Result<(), JsonError> {
        reader.array(|at, reader| {
            if at > 0 || reader.peek()? != Kind::Object {
                return reader.skip();
            }
            let (mut field, mut message) = (String::new(), None);
            reader.object(|key, reader| {
                match (key, reader.peek()?) {
                    ("msg", Kind::String) => message = Some(reader.string()?.value()),
                    ("loc", Kind::Array) => reader.array(|_, reader| {
                        let step = if reader.peek()? == Kind::String {
                            reader.string()?.value()
                        } else {
                            reader.raw_value()?.into()
                        };
                        // Where it was looked for says less than its name.
                        if step != "body" {
                            let dot = if field.is_empty() { "" } else { "." };
                            field.push_str(dot);
                            field.push_str(&step);
                        }
                        Ok(())
                    })?,
                    _ => reader.skip()?,
                }
                Ok(())
            })?;
            self.message = message.map(|message| match field.as_str() {
                "" => message.into_owned(),
                field => format!("{field}: {message}"),
            });
            Ok(())
        })
    }

    fn into_error(self) -> EngineError {
        let status = self.code.as_deref().and_then(|code| code.parse().ok());
        EngineError {
            status: status.filter(|status| (400..600).contains(status)),
            code: self.code,
            r#type: self.r#type,
            retry_after_ms: self
                .retry_after_ms
                .or_else(|| self.message.as_deref().and_then(pause::in_words)),
            message: self.message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(error: &EngineError) -> (Option<u16>, Option<&str>, Option<&str>, Option<&str>) {
        (error.status, error.code.as_deref(), error.r#type.as_deref(), error.message.as_deref())
    }

    #[test]
    fn every_shape_is_read() {
        let cases = [
            (
                r#"{"error":{"code":500,"message":"boom","type":"server_error"}}"#,
                (Some(500), Some("500"), Some("server_error"), Some("boom")),
            ),
            (
                r#"{"object":"error","message":"m","type":"BadRequestError","param":null,"code":400}"#,
                (Some(400), Some("400"), Some("BadRequestError"), Some("m")),
            ),
            (
                r#"{"error":{"message":"m","type":"x","code":"model_not_found"}}"#,
                (None, Some("model_not_found"), Some("x"), Some("m")),
            ),
            (r#"{"error":"Unauthorized"}"#, (None, None, None, Some("Unauthorized"))),
            (
                r#"{"error":"Request failed","error_type":"generation"}"#,
                (None, None, Some("generation"), Some("Request failed")),
            ),
            (r#"{"detail":"Not Found"}"#, (None, None, None, Some("Not Found"))),
            (
                r#"{"detail":[{"loc":["body"],"msg":"field required"}]}"#,
                (None, None, None, Some("field required")),
            ),
            (
                r#"{"detail":[{"type":"x","loc":["body","messages",0,"role"],"msg":"no"},{"msg":"m"}]}"#,
                (None, None, None, Some("messages.0.role: no")),
            ),
            // What marks a document as an error is a field like any other inside one.
            (
                r#"{"error":{"message":"m","error":{"message":"deeper"}}}"#,
                (None, None, None, Some("m")),
            ),
            (r#"{"error":{"error":"deeper","code":"c"}}"#, (None, Some("c"), None, None)),
            (r#"{"error":{"message":"m","detail":"d"}}"#, (None, None, None, Some("m"))),
            (r#"{"error":{"message":"m","detail":[{"msg":"d"}]}}"#, (None, None, None, Some("m"))),
        ];
        for (text, expected) in cases {
            let error = EngineError::from_json(text).unwrap();
            assert_eq!(parts(&error), expected, "{text}");
        }
    }

    #[test]
    fn a_pause_is_read_wherever_it_is_said() {
        for (body, expected) in [
            (r#"{"error":{"message":"m","retry_after":1.5}}"#, Some(1_500)),
            (r#"{"error":{"message":"m"},"retry_after":2}"#, Some(2_000)),
            (r#"{"error":{"message":"m","retry_after_ms":250}}"#, Some(250)),
            (r#"{"error":{"message":"m","retry_after_seconds":"3"}}"#, Some(3_000)),
            (
                r#"{"error":{"code":429,"message":"Quota","status":"RESOURCE_EXHAUSTED","details":
                [{"@type":"…QuotaFailure","violations":[{"quotaId":"x"}]},5,
                {"@type":"…RetryInfo","retryDelay":"34.07s"}]}}"#,
                Some(34_070),
            ),
            (r#"{"error":{"message":"Please try again in 1.5s."}}"#, Some(1_500)),
            (r#"{"error":{"message":"Please try again in 9s","retry_after":1}}"#, Some(1_000)),
            (r#"{"detail":"Busy, retry in 5 s"}"#, Some(5_000)),
            ("Too many requests. Please retry after 7 seconds.", Some(7_000)),
            ("<p>try again in 7s</p>", None),
            (r#"{"error":{"message":"m","retry_after":null}}"#, None),
            (r#"{"error":{"message":"m","retry_after":{"s":1}}}"#, None),
            (r#"{"error":{"message":"m","retry_after":-1}}"#, None),
            (r#"{"error":{"message":"m","details":{"retryDelay":"1s"}}}"#, None),
        ] {
            assert_eq!(
                EngineError::from_body(429, body.as_bytes()).retry_after_ms,
                expected,
                "{body}"
            );
        }
        // Nothing is read behind what is kept of a body.
        let far = format!("{}try again in 7s", " x".repeat(ERROR_BODY_BYTES / 2));
        assert_eq!(EngineError::from_body(429, far.as_bytes()).retry_after_ms, None);
    }

    #[test]
    fn documents_that_report_no_error_are_none() {
        for text in [
            r#"{"content":"x","stop":false}"#,
            r#"{"error":null,"choices":[]}"#,
            r#"{"message":"hello"}"#,
            r#"{"error":{"code":500}"#,
            "[]",
            "",
        ] {
            assert!(EngineError::from_json(text).is_none(), "{text}");
        }
    }

    #[test]
    fn bodies_of_any_kind_give_an_error_with_the_status() {
        let error = EngineError::from_body(503, b"data: {\"error\":{\"message\":\"busy\"}}\n\n");
        assert_eq!(parts(&error), (Some(503), None, None, Some("busy")));
        let error = EngineError::from_body(500, b"Internal Server Error");
        assert_eq!(parts(&error), (Some(500), None, None, Some("Internal Server Error")));
        for body in [&b""[..], b"<html>", b"{\"half\":", b"\xff"] {
            assert_eq!(EngineError::from_body(502, body).status, Some(502));
        }
    }

    #[test]
    fn the_error_field_of_old_llama_cpp_is_read() {
        let line = r#"error: {"code":400,"message":"too long","type":"invalid_request_error"}"#;
        let error = EngineError::from_field_line(line).unwrap();
        assert_eq!(error.status, Some(400));
        assert_eq!(error.r#type.as_deref(), Some("invalid_request_error"));
    }

    #[test]
    fn debug_does_not_quote_the_engine() {
        let error = EngineError::from_json(r#"{"error":"a prompt"}"#).unwrap();
        assert!(!format!("{error:?}").contains("prompt"));
    }
}

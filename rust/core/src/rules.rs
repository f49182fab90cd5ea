//! An engine's error rule table: which of its errors means what.
//!
//! Adapters declare rules as data; they are applied here, to the answer of a status and to the same
//! error inside a 200 alike. Where no rule matches, the status decides.

use crate::engine_error::EngineError;
use crate::error::{Detail, ErrorKind, Phase, Processed, WorkerError, WorkerErrorKind};
use crate::redact::Redactor;

/// One row of a [`RuleTable`]. All conditions that are set must hold.
///
/// Prefer status, type and code: engines change their wording. `message` is for errors that differ
/// in nothing else.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Rule {
    /// The status, of the answer or named by the error.
    pub status: Option<u16>,
    /// The engine's `type`, exactly.
    pub r#type: Option<String>,
    /// The engine's `code`, exactly.
    pub code: Option<String>,
    /// A part of the engine's message.
    pub message: Option<String>,
    /// What such an error is.
    pub kind: WorkerErrorKind,
    /// Its code.
    pub error_code: ErrorKind,
    /// Its stable word.
    pub detail: Detail,
    /// Whether the same task may succeed elsewhere or later.
    pub retriable: bool,
    /// Whether the engine worked on the request, where the error tells.
    pub processed: Option<Processed>,
}

impl Rule {
    /// A rule without conditions that gives `detail` its default meaning.
    #[must_use]
    pub fn new(detail: Detail) -> Self {
        let class = detail.class();
        Self {
            status: None,
            r#type: None,
            code: None,
            message: None,
            kind: class.kind,
            error_code: class.code,
            detail,
            retriable: class.retriable,
            processed: None,
        }
    }

    fn matches(&self, error: &EngineError) -> bool {
        fn equal(rule: Option<&String>, value: Option<&String>) -> bool {
            rule.is_none_or(|rule| value == Some(rule))
        }
        let contains = |part: &String| error.message.as_ref().is_some_and(|m| m.contains(part));
        self.status.is_none_or(|status| error.status == Some(status))
            && equal(self.r#type.as_ref(), error.r#type.as_ref())
            && equal(self.code.as_ref(), error.code.as_ref())
            && self.message.as_ref().is_none_or(contains)
    }
}

/// Rules in order of precedence: the first that matches wins.
///
/// ```
/// use worker_adapters_core::engine_error::EngineError;
/// use worker_adapters_core::error::{Detail, Phase};
/// use worker_adapters_core::redact::Redactor;
/// use worker_adapters_core::rules::{Rule, RuleTable};
///
/// let mut loading = Rule::new(Detail::Loading);
/// loading.status = Some(503);
/// let table = RuleTable::new(vec![loading]);
/// let answer = EngineError::from_body(503, br#"{"error":{"message":"Loading model"}}"#);
/// let error = table.classify("llamacpp", &answer, Phase::Head, &Redactor::default());
/// assert_eq!(error.detail, Detail::Loading);
/// assert_eq!(error.message, "Loading model");
/// ```
#[derive(Clone, Debug, Default)]
pub struct RuleTable {
    rules: Vec<Rule>,
}

impl RuleTable {
    /// A table of these rules.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is no rule.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What `error` means, arising in `phase`. The pause it asks for is kept where it is retriable.
    #[must_use]
    pub fn classify(
        &self,
        engine: &str,
        error: &EngineError,
        phase: Phase,
        redactor: &Redactor,
    ) -> WorkerError {
        self.classify_or(Detail::EngineRejected, engine, error, phase, redactor)
    }

    /// As [`classify`](Self::classify); `fallback` is what an error is that has no rule and no
    /// status.
    pub(crate) fn classify_or(
        &self,
        fallback: Detail,
        engine: &str,
        error: &EngineError,
        phase: Phase,
        redactor: &Redactor,
    ) -> WorkerError {
        let mut out = if let Some(rule) = self.rules.iter().find(|rule| rule.matches(error)) {
            WorkerError {
                kind: rule.kind,
                code: rule.error_code,
                retriable: rule.retriable,
                processed: rule.processed.unwrap_or(rule.detail.processed()),
                ..WorkerError::new(engine, rule.detail, phase)
            }
        } else {
            let detail = error.status.map_or(fallback, Detail::from_status);
            WorkerError::new(engine, detail, phase)
        };
        out.status = error.status;
        out.retry_after_ms = error.retry_after_ms.filter(|_| out.retriable);
        match (&error.message, error.status) {
            (Some(message), _) if !message.trim().is_empty() => out.with_message(message, redactor),
            (_, Some(status)) => out.with_message(&format!("status {status}"), redactor),
            (_, None) => out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classify(table: &RuleTable, error: &EngineError) -> Detail {
        table.classify("x", error, Phase::Stream, &Redactor::default()).detail
    }

    #[test]
    fn all_conditions_must_hold_and_the_first_match_wins() {
        let mut first = Rule::new(Detail::ContextOverflow);
        first.status = Some(400);
        first.r#type = Some("exceed_context_size_error".into());
        let mut second = Rule::new(Detail::EngineError);
        second.status = Some(400);
        second.message = Some("EngineCore encountered an issue".into());
        let table = RuleTable::new(vec![first, second]);
        let body = br#"{"error":{"type":"exceed_context_size_error","message":"m"}}"#;
        let overflow = EngineError::from_body(400, body);
        assert_eq!(classify(&table, &overflow), Detail::ContextOverflow);
        let dead = EngineError::from_body(400, b"EngineCore encountered an issue. See log");
        assert_eq!(classify(&table, &dead), Detail::EngineError);
        let other = EngineError::from_body(400, b"temperature must be positive");
        assert_eq!(classify(&table, &other), Detail::InvalidRequest);
    }

    #[test]
    fn what_a_rule_says_goes_before_what_its_detail_says() {
        let plain = Rule::new(Detail::EngineError);
        let other = Rule::new(Detail::Loading);
        let mut rule = plain.clone();
        rule.kind = other.kind;
        rule.error_code = other.error_code;
        rule.retriable = !plain.retriable;
        rule.processed = Some(Processed::No);
        let body = EngineError::from_body(500, b"m");
        let said = |rule: Rule| {
            let table = RuleTable::new(vec![rule]);
            let error = table.classify("x", &body, Phase::Stream, &Redactor::default());
            (error.detail, error.kind, error.code, error.retriable, error.processed)
        };
        let (detail, kind, code, retriable, processed) = said(plain);
        // Otherwise this would show nothing.
        assert_ne!(kind, other.kind);
        assert_ne!(code, other.error_code);
        assert_ne!(processed, Processed::No);
        assert_eq!(said(rule), (detail, other.kind, other.error_code, !retriable, Processed::No));
    }

    #[test]
    fn a_table_tells_how_many_rules_it_has() {
        let rules = || (0..2).map(|_| Rule::new(Detail::EngineError)).collect();
        assert_eq!((RuleTable::new(rules()).len(), RuleTable::new(rules()).is_empty()), (2, false));
        assert_eq!((RuleTable::default().len(), RuleTable::default().is_empty()), (0, true));
    }

    #[test]
    fn an_error_with_no_status_and_no_rule_is_an_engine_rejection() {
        let error = EngineError::from_json(r#"{"error":"no"}"#).unwrap();
        assert_eq!(classify(&RuleTable::default(), &error), Detail::EngineRejected);
    }
}

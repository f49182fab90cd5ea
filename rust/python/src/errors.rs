//! The one place that turns Rust errors into Python ones.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use worker_adapters_core::engine_error::EngineError;
use worker_adapters_core::error::{Detail, Phase, Processed, WorkerError};
use worker_adapters_core::http::{ResponseHead, retry_after_ms};

use crate::redact::PyRedactor;
use crate::rules::PyErrorRules;

/// A fresh `worker_adapters.errors.WorkerError` with every field.
pub(crate) fn to_python<'py>(py: Python<'py>, error: &WorkerError) -> PyResult<Bound<'py, PyAny>> {
    static FROM_FIELDS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let from_fields = FROM_FIELDS.import(py, "worker_adapters.errors", "from_fields")?;
    let fields = PyDict::new(py);
    fields.set_item("kind", error.kind.as_str())?;
    fields.set_item("code", error.code.as_str())?;
    fields.set_item("detail", error.detail.as_str())?;
    fields.set_item("retriable", error.retriable)?;
    fields.set_item("retry_after_ms", error.retry_after_ms)?;
    fields.set_item("phase", error.phase.as_str())?;
    fields.set_item("status", error.status)?;
    fields.set_item("processed", error.processed.as_str())?;
    fields.set_item("tokens_emitted", error.tokens_emitted)?;
    fields.set_item("engine", &*error.engine)?;
    fields.set_item("correlation_id", error.correlation_id.as_deref())?;
    fields.set_item("message", &error.message)?;
    from_fields.call1((fields,))
}

/// The member of a closed set, or a ValueError that names the set.
pub(crate) fn word<T>(
    name: &str,
    value: &str,
    from_word: impl Fn(&str) -> Option<T>,
) -> PyResult<T> {
    from_word(value)
        .ok_or_else(|| PyValueError::new_err(format!("{value:?} is not a known {name}")))
}

/// A `worker_adapters.WorkerError` for a stable word, classified as a stream's errors are.
#[pyfunction]
#[pyo3(signature = (engine, detail, phase, *, message="", redactor=None, correlation_id=None,
    status=None, processed=None, retry_after_ms=None))]
#[expect(clippy::too_many_arguments, reason = "they are the error's fields, by keyword")]
pub(crate) fn make_error<'py>(
    py: Python<'py>,
    engine: &str,
    detail: &str,
    phase: &str,
    message: &str,
    redactor: Option<&PyRedactor>,
    correlation_id: Option<&str>,
    status: Option<u16>,
    processed: Option<&str>,
    retry_after_ms: Option<u64>,
) -> PyResult<Bound<'py, PyAny>> {
    let detail = word("detail", detail, Detail::from_word)?;
    let phase = word("phase", phase, Phase::from_word)?;
    let mut error = WorkerError::new(engine, detail, phase);
    if !message.is_empty() {
        let redactor = redactor.map(|redactor| redactor.0.clone()).unwrap_or_default();
        error = error.with_message(message, &redactor);
    }
    error.correlation_id = correlation_id.map(Arc::from);
    error.status = status;
    error.retry_after_ms = retry_after_ms;
    if let Some(processed) = processed {
        error.processed = word("processed", processed, Processed::from_word)?;
    }
    to_python(py, &error)
}

/// The `worker_adapters.WorkerError` that an HTTP error answer means for this engine.
#[pyfunction]
#[pyo3(signature = (engine, status, headers, body, *, phase="head", rules=None, redactor=None,
    correlation_id=None, wall=None))]
#[expect(clippy::too_many_arguments, reason = "an answer and what it is judged by, by keyword")]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned sequences")]
pub(crate) fn classify_response<'py>(
    py: Python<'py>,
    engine: &str,
    status: u16,
    headers: Vec<(PyBackedBytes, PyBackedBytes)>,
    body: &[u8],
    phase: &str,
    rules: Option<&PyErrorRules>,
    redactor: Option<&PyRedactor>,
    correlation_id: Option<&str>,
    wall: Option<f64>,
) -> PyResult<Bound<'py, PyAny>> {
    let phase = word("phase", phase, Phase::from_word)?;
    let rules = rules.map(|rules| Arc::clone(&rules.0)).unwrap_or_default();
    let redactor = redactor.map(|redactor| redactor.0.clone()).unwrap_or_default();
    let headers: Vec<(&[u8], &[u8])> =
        headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    let head = ResponseHead { status, headers: &headers };
    let answer = EngineError::from_body(status, body);
    let mut error = rules.classify(engine, &answer, phase, &redactor);
    let asked = retry_after_ms(&head, wall.and_then(wall_time));
    error.retry_after_ms = asked.or(error.retry_after_ms);
    error.correlation_id = correlation_id.map(Arc::from);
    to_python(py, &error)
}

/// What `time.time` says, as the standard library has it; None for what is no time after 1970.
pub(crate) fn wall_time(secs: f64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(secs).ok()?)
}

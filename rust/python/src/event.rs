//! Events as frozen Python objects. Text becomes a Python string only when it is read.

use std::hash::{Hash, Hasher};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};
use worker_adapters_core::event::{
    End, FinishReason, Logprob, Metrics, Score, Started, Token, TokenEvent, UsageSource, Value,
};

use crate::errors::to_python;

/// One event of a stream.
#[pyclass(frozen, name = "TokenEvent", module = "worker_adapters._core", eq, hash)]
#[derive(PartialEq)]
pub(crate) struct PyTokenEvent(pub(crate) TokenEvent);

impl Hash for PyTokenEvent {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut json = Vec::new();
        self.0.write_json(&mut json);
        json.hash(state);
    }
}

impl PyTokenEvent {
    fn token(&self) -> Option<&Token> {
        if let TokenEvent::Token(token) = &self.0 { Some(token) } else { None }
    }

    fn started(&self) -> Option<&Started> {
        if let TokenEvent::Started(started) = &self.0 { Some(started) } else { None }
    }

    fn metrics(&self) -> Option<&Metrics> {
        if let TokenEvent::Metrics(metrics) = &self.0 { Some(metrics) } else { None }
    }

    fn end(&self) -> Option<&End> {
        if let TokenEvent::End(end) = &self.0 { Some(end) } else { None }
    }
}

#[pymethods]
impl PyTokenEvent {
    #[classattr]
    fn __match_args__() -> (&'static str, &'static str) {
        ("kind", "data")
    }

    #[getter]
    fn kind<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        match &self.0 {
            TokenEvent::Started(_) => intern!(py, "started"),
            TokenEvent::Token(_) => intern!(py, "token"),
            TokenEvent::Metrics(_) => intern!(py, "metrics"),
            TokenEvent::End(_) => intern!(py, "end"),
            _ => intern!(py, "error"),
        }
    }

    #[getter]
    fn data<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let data = PyDict::new(py);
        let mut outcome = Ok(());
        self.0.fields(&mut |name, value| {
            if outcome.is_ok() {
                outcome = set_item(&data, name, value);
            }
        });
        outcome.map(|()| data)
    }

    #[getter]
    fn is_terminal(&self) -> bool {
        self.0.is_terminal()
    }

    #[getter]
    fn t<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyString>> {
        self.token().map(|token| PyString::new(py, &token.t))
    }

    #[getter]
    fn i(&self) -> Option<u64> {
        self.token().map(|token| token.i)
    }

    #[getter]
    fn n(&self) -> Option<u32> {
        self.token().map(|token| token.n)
    }

    #[getter]
    fn channel(&self) -> Option<&'static str> {
        self.token().map(|token| token.channel.as_str())
    }

    #[getter]
    fn token_ids(&self) -> Option<Vec<u64>> {
        let detail = self.token()?.detail.as_ref()?;
        (!detail.ids.is_empty()).then(|| detail.ids.clone())
    }

    #[getter]
    fn logprobs<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        let detail = self.token().and_then(|token| token.detail.as_ref());
        let logprobs = detail.map(|detail| &detail.logprobs).filter(|list| !list.is_empty());
        logprobs.map(|list| logprob_list(py, list)).transpose()
    }

    #[getter]
    fn cached_tokens_in(&self) -> Option<u64> {
        self.metrics()
            .map_or_else(|| self.end()?.cached_tokens_in, |metrics| metrics.cached_tokens_in)
    }

    #[getter]
    fn stop_reason(&self) -> Option<&str> {
        self.end()?.stop_reason.as_deref()
    }

    #[getter]
    fn tokens_in(&self) -> Option<u64> {
        match &self.0 {
            TokenEvent::Started(started) => started.tokens_in,
            TokenEvent::Metrics(metrics) => metrics.tokens_in,
            TokenEvent::End(end) => end.tokens_in,
            _ => None,
        }
    }

    #[getter]
    fn tokens_out(&self) -> Option<u64> {
        match &self.0 {
            TokenEvent::Metrics(metrics) => metrics.tokens_out,
            TokenEvent::End(end) => Some(end.tokens_out),
            _ => None,
        }
    }

    #[getter]
    fn decode_ms(&self) -> Option<u64> {
        self.end().map(|end| end.decode_ms)
    }

    #[getter]
    fn latency_first_token_ms(&self) -> Option<u64> {
        match &self.0 {
            TokenEvent::Metrics(metrics) => metrics.latency_first_token_ms,
            TokenEvent::End(end) => end.latency_first_token_ms,
            _ => None,
        }
    }

    #[getter]
    fn finish_reason(&self) -> Option<&'static str> {
        self.end()?.finish_reason.map(FinishReason::as_str)
    }

    #[getter]
    fn finish_reason_raw(&self) -> Option<&str> {
        self.end()?.finish_reason_raw.as_deref()
    }

    #[getter]
    fn usage_source(&self) -> Option<&'static str> {
        self.end()?.usage_source.map(UsageSource::as_str)
    }

    #[getter]
    fn seed(&self) -> Option<i64> {
        match &self.0 {
            TokenEvent::Started(started) => started.seed,
            TokenEvent::End(end) => end.seed,
            _ => None,
        }
    }

    #[getter]
    fn engine(&self) -> Option<&str> {
        match &self.0 {
            TokenEvent::Started(started) => Some(&started.engine),
            TokenEvent::Error(error) => Some(&error.engine),
            _ => None,
        }
    }

    #[getter]
    fn engine_version(&self) -> Option<&str> {
        match &self.0 {
            TokenEvent::Started(started) => started.engine_version.as_deref(),
            TokenEvent::End(end) => end.engine_version.as_deref(),
            _ => None,
        }
    }

    #[getter]
    fn model(&self) -> Option<&str> {
        self.started()?.model.as_deref()
    }

    #[getter]
    fn correlation_id(&self) -> Option<&str> {
        match &self.0 {
            TokenEvent::Started(started) => started.correlation_id.as_deref(),
            TokenEvent::Error(error) => error.correlation_id.as_deref(),
            _ => None,
        }
    }

    #[getter]
    fn embeddings(&self) -> Option<Vec<Vec<f64>>> {
        self.end()?.embeddings.clone()
    }

    #[getter]
    fn scores<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        let scores = self.end().and_then(|end| end.scores.as_deref());
        scores.map(|scores| score_list(py, scores)).transpose()
    }

    #[getter]
    fn code(&self) -> Option<&'static str> {
        if let TokenEvent::Error(error) = &self.0 { Some(error.code.as_str()) } else { None }
    }

    #[getter]
    fn message(&self) -> Option<&str> {
        if let TokenEvent::Error(error) = &self.0 { Some(&error.message) } else { None }
    }

    #[getter]
    fn retriable(&self) -> Option<bool> {
        if let TokenEvent::Error(error) = &self.0 { Some(error.retriable) } else { None }
    }

    #[getter]
    fn error<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match &self.0 {
            TokenEvent::Error(error) => to_python(py, error).map(Some),
            _ => Ok(None),
        }
    }

    fn to_sse<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let mut out = Vec::with_capacity(96);
        self.0.write_sse(&mut out);
        PyBytes::new(py, &out)
    }

    fn to_json(&self) -> String {
        let mut out = Vec::with_capacity(96);
        self.0.write_json(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    // Shows no text: an event may end up in a log.
    fn __repr__(&self) -> String {
        match &self.0 {
            TokenEvent::Token(token) => format!(
                "TokenEvent(kind='token', i={}, n={}, channel='{}', bytes={})",
                token.i,
                token.n,
                token.channel,
                token.t.len()
            ),
            TokenEvent::End(end) => format!(
                "TokenEvent(kind='end', tokens_out={}, finish_reason={})",
                end.tokens_out,
                end.finish_reason.map_or("None".into(), |reason| format!("'{reason}'"))
            ),
            TokenEvent::Error(error) => {
                format!(
                    "TokenEvent(kind='error', code='{}', detail='{}')",
                    error.code, error.detail
                )
            }
            _ => format!("TokenEvent(kind='{}')", self.0.kind()),
        }
    }
}

fn set_item(data: &Bound<'_, PyDict>, name: &'static str, value: Value<'_>) -> PyResult<()> {
    let py = data.py();
    match value {
        Value::Bool(value) => data.set_item(name, value),
        Value::UInt(value) => data.set_item(name, value),
        Value::Int(value) => data.set_item(name, value),
        Value::Float(value) => data.set_item(name, value),
        Value::Str(value) => data.set_item(name, value),
        Value::Embeddings(vectors) => {
            let vectors = vectors.iter().map(|vector| PyList::new(py, vector));
            data.set_item(name, vectors.collect::<PyResult<Vec<_>>>()?)
        }
        Value::Scores(scores) => data.set_item(name, score_list(py, scores)?),
        Value::Ids(ids) => data.set_item(name, ids),
        Value::Logprobs(logprobs) => data.set_item(name, logprob_list(py, logprobs)?),
        _ => data.set_item(name, py.None()),
    }
}

fn logprob_list<'py>(py: Python<'py>, logprobs: &[Logprob]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for logprob in logprobs {
        let entry = PyDict::new(py);
        entry.set_item("token", &*logprob.token)?;
        if let Some(id) = logprob.id {
            entry.set_item("id", id)?;
        }
        entry.set_item("logprob", logprob.logprob)?;
        if !logprob.top.is_empty() {
            entry.set_item("top", logprob_list(py, &logprob.top)?)?;
        }
        list.append(entry)?;
    }
    Ok(list)
}

fn score_list<'py>(py: Python<'py>, scores: &[Score]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for score in scores {
        let entry = PyDict::new(py);
        entry.set_item("index", score.index)?;
        entry.set_item("score", score.score)?;
        list.append(entry)?;
    }
    Ok(list)
}

/// One dispatched server-sent event.
#[pyclass(frozen, get_all, name = "SseEvent", module = "worker_adapters._core")]
pub(crate) struct PySseEvent {
    pub(crate) event: String,
    pub(crate) data: String,
    pub(crate) id: String,
    pub(crate) retry: Option<u64>,
}

#[pymethods]
impl PySseEvent {
    #[classattr]
    fn __match_args__() -> (&'static str, &'static str, &'static str, &'static str) {
        ("event", "data", "id", "retry")
    }

    fn __repr__(&self) -> String {
        format!("SseEvent(data_bytes={})", self.data.len())
    }
}

//! The event-stream decoder as a Python object.

use std::sync::{Mutex, MutexGuard};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use worker_adapters_core::error::{Detail, Phase, WorkerError};
use worker_adapters_core::redact::Redactor;
use worker_adapters_core::sse::{DEFAULT_MAX_EVENT_BYTES, SseDecoder, SseError, SseItem};

use crate::errors::to_python;
use crate::event::PySseEvent;

/// Incremental decoder of `text/event-stream` bytes.
#[pyclass(frozen, name = "SseDecoder", module = "worker_adapters._core")]
pub(crate) struct PySseDecoder(Mutex<Inner>);

struct Inner {
    decoder: SseDecoder,
    /// A failure that came behind events of the same read, to be raised by the next call.
    unreported: Option<SseError>,
}

fn raise(py: Python<'_>, error: SseError) -> PyErr {
    if !matches!(error, SseError::EventTooLarge { .. }) {
        return PyValueError::new_err(error.to_string());
    }
    let error = WorkerError::new("sse", Detail::FrameTooLarge, Phase::Stream)
        .with_message(&error.to_string(), &Redactor::default());
    to_python(py, &error).map_or_else(|error| error, PyErr::from_value)
}

impl PySseDecoder {
    fn lock<'s>(&'s self, py: Python<'_>) -> MutexGuard<'s, Inner> {
        // A panic cannot leave the decoder in a state that is unsafe to look at.
        self.0.lock_py_attached(py).unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[pymethods]
impl PySseDecoder {
    #[new]
    #[pyo3(signature = (*, max_event_bytes=DEFAULT_MAX_EVENT_BYTES),
        text_signature = "(*, max_event_bytes=1048576)")]
    fn new(max_event_bytes: usize) -> Self {
        let decoder = SseDecoder::with_max_event_bytes(max_event_bytes);
        Self(Mutex::new(Inner { decoder, unreported: None }))
    }

    fn feed(&self, py: Python<'_>, data: &[u8]) -> PyResult<Vec<PySseEvent>> {
        let mut events = Vec::new();
        let mut inner = self.lock(py);
        let fed = inner.decoder.feed(data, |item| {
            if let SseItem::Event(event) = item {
                events.push(PySseEvent {
                    event: event.event.to_owned(),
                    data: event.data.to_owned(),
                    id: event.id.to_owned(),
                    retry: event.retry,
                });
            }
        });
        let Err(error) = fed else { return Ok(events) };
        if events.is_empty() {
            inner.unreported = None;
            drop(inner);
            return Err(raise(py, error));
        }
        inner.unreported = Some(error);
        Ok(events)
    }

    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let mut inner = self.lock(py);
        inner.decoder.finish();
        let unreported = inner.unreported.take();
        drop(inner);
        unreported.map_or(Ok(()), |error| Err(raise(py, error)))
    }

    #[getter]
    fn last_event_id(&self, py: Python<'_>) -> String {
        self.lock(py).decoder.last_event_id().to_owned()
    }

    #[getter]
    fn retry(&self, py: Python<'_>) -> Option<u64> {
        self.lock(py).decoder.retry()
    }

    #[getter]
    fn unknown_lines(&self, py: Python<'_>) -> Vec<String> {
        self.lock(py).decoder.unknown_lines().to_vec()
    }

    #[getter]
    fn eof_pending(&self, py: Python<'_>) -> Option<String> {
        self.lock(py).decoder.eof_pending().map(str::to_owned)
    }

    #[getter]
    fn eof_partial(&self, py: Python<'_>) -> Option<String> {
        self.lock(py).decoder.eof_partial().map(str::to_owned)
    }

    #[getter]
    fn utf8_replaced(&self, py: Python<'_>) -> u64 {
        self.lock(py).decoder.utf8_replaced()
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!("{:?}", self.lock(py).decoder)
    }
}

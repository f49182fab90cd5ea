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
pub(crate) struct PySseDecoder(Mutex<SseDecoder>);

impl PySseDecoder {
    fn lock<'s>(&'s self, py: Python<'_>) -> MutexGuard<'s, SseDecoder> {
        // A panic cannot leave the decoder in a state that is unsafe to look at.
        self.0.lock_py_attached(py).unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[pymethods]
impl PySseDecoder {
    #[new]
    #[pyo3(signature = (*, max_event_bytes=DEFAULT_MAX_EVENT_BYTES))]
    fn new(max_event_bytes: usize) -> Self {
        Self(Mutex::new(SseDecoder::with_max_event_bytes(max_event_bytes)))
    }

    fn feed(&self, py: Python<'_>, data: &[u8]) -> PyResult<Vec<PySseEvent>> {
        let mut events = Vec::new();
        let fed = self.lock(py).feed(data, |item| {
            if let SseItem::Event(event) = item {
                events.push(PySseEvent {
                    event: event.event.to_owned(),
                    data: event.data.to_owned(),
                    id: event.id.to_owned(),
                    retry: event.retry,
                });
            }
        });
        match fed {
            Ok(()) => Ok(events),
            Err(error @ SseError::EventTooLarge { .. }) => {
                let error = WorkerError::new("sse", Detail::FrameTooLarge, Phase::Stream)
                    .with_message(&error.to_string(), &Redactor::default());
                Err(PyErr::from_value(to_python(py, &error)?))
            }
            Err(error) => Err(PyValueError::new_err(error.to_string())),
        }
    }

    fn finish(&self, py: Python<'_>) {
        self.lock(py).finish();
    }

    #[getter]
    fn last_event_id(&self, py: Python<'_>) -> String {
        self.lock(py).last_event_id().to_owned()
    }

    #[getter]
    fn retry(&self, py: Python<'_>) -> Option<u64> {
        self.lock(py).retry()
    }

    #[getter]
    fn unknown_lines(&self, py: Python<'_>) -> Vec<String> {
        self.lock(py).unknown_lines().to_vec()
    }

    #[getter]
    fn eof_pending(&self, py: Python<'_>) -> Option<String> {
        self.lock(py).eof_pending().map(str::to_owned)
    }

    #[getter]
    fn eof_partial(&self, py: Python<'_>) -> Option<String> {
        self.lock(py).eof_partial().map(str::to_owned)
    }

    #[getter]
    fn utf8_replaced(&self, py: Python<'_>) -> u64 {
        self.lock(py).utf8_replaced()
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!("{:?}", self.lock(py))
    }
}

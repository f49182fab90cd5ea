//! The stream decoder as a Python object: one call and one list per network read.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::sync::MutexExt;
use pyo3::types::{PyBytes, PyList, PyMapping, PyMappingMethods};
use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::error::{Detail, Phase, Processed};
use worker_adapters_core::event::{Score, Started, TokenEvent};
use worker_adapters_core::http::ResponseHead;
use worker_adapters_core::sse::DEFAULT_MAX_EVENT_BYTES;
use worker_adapters_core::stream::{StreamConfig, StreamDecoder, UnaryAnswer};
use worker_adapters_core::time::Instant;

use crate::errors::{wall_time, word};
use crate::event::PyTokenEvent;
use crate::metrics::PyTaskMetrics;
use crate::redact::PyRedactor;
use crate::rules::PyErrorRules;

/// What most events take as a server-sent event.
const SSE_BYTES: usize = 96;

/// Bytes of one response in, events out.
#[pyclass(frozen, name = "StreamDecoder", module = "worker_adapters._core")]
pub(crate) struct PyStreamDecoder(Mutex<Inner>);

struct Inner {
    /// None once a native stream has taken it over.
    decoder: Option<Box<StreamDecoder>>,
    /// Reused by every call; empty between them unless they are held.
    events: Vec<TokenEvent>,
    /// Whether events wait here until they are taken.
    held: bool,
    terminal: Option<TokenEvent>,
}

impl PyStreamDecoder {
    fn lock<'s>(&'s self, py: Python<'_>) -> MutexGuard<'s, Inner> {
        // A panic cannot leave the decoder in a state that is unsafe to look at.
        self.0.lock_py_attached(py).unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes the decoder out, for a stream that does without Python.
    pub(crate) fn detach(&self, py: Python<'_>) -> Option<Box<StreamDecoder>> {
        self.lock(py).decoder.take()
    }

    fn look<T>(&self, py: Python<'_>, look: impl FnOnce(&mut StreamDecoder) -> T) -> PyResult<T> {
        self.lock(py).decoder.as_deref_mut().map(look).ok_or_else(taken_over)
    }

    /// Runs one input and hands its events over. Making Python objects can run arbitrary Python
    /// code, so the lock is not held meanwhile.
    fn run<'py>(
        &self,
        py: Python<'py>,
        input: impl FnOnce(&mut StreamDecoder, &mut Vec<TokenEvent>),
    ) -> PyResult<Bound<'py, PyList>> {
        let mut events = {
            let inner = &mut *self.lock(py);
            let decoder = inner.decoder.as_deref_mut().ok_or_else(taken_over)?;
            input(decoder, &mut inner.events);
            if inner.terminal.is_none() && decoder.is_terminal() {
                inner.terminal = inner.events.last().filter(|event| event.is_terminal()).cloned();
            }
            if inner.held || inner.events.is_empty() {
                return Ok(PyList::empty(py));
            }
            std::mem::take(&mut inner.events)
        };
        let list = PyList::new(py, events.drain(..).map(PyTokenEvent));
        self.lock(py).events = events;
        list
    }
}

#[pymethods]
impl PyStreamDecoder {
    #[new]
    #[pyo3(signature = (engine, *, options=None, started=None, rules=None, redactor=None,
        max_event_bytes=DEFAULT_MAX_EVENT_BYTES, first_token_timeout=None, token_gap_timeout=None,
        idle_timeout=None, deadline=None, wall=None, metrics=None),
        text_signature = "(engine, *, options=None, started=None, rules=None, redactor=None, \
        max_event_bytes=1048576, first_token_timeout=None, token_gap_timeout=None, \
        idle_timeout=None, deadline=None, wall=None, metrics=None)")]
    #[expect(clippy::too_many_arguments, reason = "a configuration, by keyword")]
    fn new(
        engine: &str,
        options: Option<&Bound<'_, PyMapping>>,
        started: Option<&Bound<'_, PyMapping>>,
        rules: Option<&PyErrorRules>,
        redactor: Option<&PyRedactor>,
        max_event_bytes: usize,
        first_token_timeout: Option<f64>,
        token_gap_timeout: Option<f64>,
        idle_timeout: Option<f64>,
        deadline: Option<f64>,
        wall: Option<(f64, f64)>,
        metrics: Option<&PyTaskMetrics>,
    ) -> PyResult<Self> {
        let options: Vec<(String, String)> = match options {
            Some(options) => options.items()?.extract()?,
            None => Vec::new(),
        };
        let pairs = options.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let dialect = Dialect::new(engine, pairs)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let mut config = StreamConfig::new(engine);
        if let Some(started) = started {
            read_started(started, &mut config.started)?;
        }
        if let Some(rules) = rules {
            config.rules = Arc::clone(&rules.0);
        }
        if let Some(redactor) = redactor {
            config.redactor = redactor.0.clone();
        }
        config.max_event_bytes = max_event_bytes;
        config.clocks.first_token = clock("first_token_timeout", first_token_timeout)?;
        config.clocks.token_gap = clock("token_gap_timeout", token_gap_timeout)?;
        config.clocks.idle = clock("idle_timeout", idle_timeout)?;
        config.clocks.deadline = deadline.map(|at| instant("deadline", at)).transpose()?;
        if let Some((at, said)) = wall {
            config.wall =
                wall_time(said).zip(Some(instant("wall", at)?)).map(|(said, at)| (at, said));
        }
        config.metrics = metrics.map(|task| task.0.clone());
        let decoder = Some(Box::new(StreamDecoder::new(dialect, config)));
        Ok(Self(Mutex::new(Inner { decoder, events: Vec::new(), held: false, terminal: None })))
    }

    fn dispatched(&self, py: Python<'_>, now: f64) -> PyResult<()> {
        let now = instant("now", now)?;
        self.look(py, |decoder| decoder.dispatched(now))
    }

    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned sequences")]
    fn head<'py>(
        &self,
        py: Python<'py>,
        status: u16,
        headers: Vec<(PyBackedBytes, PyBackedBytes)>,
        now: f64,
    ) -> PyResult<Bound<'py, PyList>> {
        let now = instant("now", now)?;
        let headers: Vec<(&[u8], &[u8])> =
            headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        let head = ResponseHead { status, headers: &headers };
        self.run(py, |decoder, out| decoder.head(&head, now, out))
    }

    fn feed<'py>(&self, py: Python<'py>, data: &[u8], now: f64) -> PyResult<Bound<'py, PyList>> {
        let now = instant("now", now)?;
        self.run(py, |decoder, out| decoder.feed(data, now, out))
    }

    #[pyo3(signature = (now, complete=true))]
    fn finish<'py>(
        &self,
        py: Python<'py>,
        now: f64,
        complete: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let now = instant("now", now)?;
        self.run(py, |decoder, out| decoder.finish(complete, now, out))
    }

    #[pyo3(signature = (detail, phase, now, *, message="", processed=None))]
    fn fail<'py>(
        &self,
        py: Python<'py>,
        detail: &str,
        phase: &str,
        now: f64,
        message: &str,
        processed: Option<&str>,
    ) -> PyResult<Bound<'py, PyList>> {
        let detail = word("detail", detail, Detail::from_word)?;
        let phase = word("phase", phase, Phase::from_word)?;
        let processed = processed
            .map(|processed| word("processed", processed, Processed::from_word))
            .transpose()?;
        let now = instant("now", now)?;
        self.run(py, |decoder, out| decoder.fail(detail, phase, processed, message, now, out))
    }

    fn cancel<'py>(&self, py: Python<'py>, now: f64) -> PyResult<Bound<'py, PyList>> {
        let now = instant("now", now)?;
        self.run(py, |decoder, out| {
            // Only held events are there before an input.
            out.retain(TokenEvent::is_terminal);
            decoder.cancel(now, out);
        })
    }

    fn reader(&self, py: Python<'_>, paused: bool, now: f64) -> PyResult<()> {
        let now = instant("now", now)?;
        self.look(py, |decoder| decoder.reader(paused, now))
    }

    fn tick<'py>(&self, py: Python<'py>, now: f64) -> PyResult<Bound<'py, PyList>> {
        let now = instant("now", now)?;
        self.run(py, |decoder, out| decoder.tick(now, out))
    }

    fn next_wakeup(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        self.look(py, |decoder| decoder.next_wakeup().map(Instant::as_secs_f64))
    }

    #[pyo3(signature = (now, *, tokens_in=None, embeddings=None, scores=None))]
    fn complete<'py>(
        &self,
        py: Python<'py>,
        now: f64,
        tokens_in: Option<u64>,
        embeddings: Option<Vec<Vec<f64>>>,
        scores: Option<Vec<(u64, f64)>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let now = instant("now", now)?;
        let scores = scores.map(|scores| {
            scores.into_iter().map(|(index, score)| Score { index, score }).collect()
        });
        let answer = UnaryAnswer { tokens_in, embeddings, scores };
        self.run(py, |decoder, out| decoder.complete(answer, now, out))
    }

    fn hold(&self, py: Python<'_>) {
        self.lock(py).held = true;
    }

    #[pyo3(signature = (max_events=None))]
    fn take<'py>(
        &self,
        py: Python<'py>,
        max_events: Option<usize>,
    ) -> PyResult<Bound<'py, PyList>> {
        let taken: Vec<TokenEvent> = {
            let inner = &mut *self.lock(py);
            let count = max_events.unwrap_or(usize::MAX).min(inner.events.len());
            inner.events.drain(..count).collect()
        };
        PyList::new(py, taken.into_iter().map(PyTokenEvent))
    }

    fn take_sse<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let mut rendered = Vec::new();
        {
            let inner = &mut *self.lock(py);
            rendered.reserve(SSE_BYTES * inner.events.len());
            for event in inner.events.drain(..) {
                event.write_sse(&mut rendered);
            }
        }
        PyBytes::new(py, &rendered)
    }

    #[getter]
    fn pending(&self, py: Python<'_>) -> usize {
        self.lock(py).events.len()
    }

    #[getter]
    fn terminal(&self, py: Python<'_>) -> Option<PyTokenEvent> {
        self.lock(py).terminal.clone().map(PyTokenEvent)
    }

    #[getter]
    fn phase(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.look(py, |decoder| decoder.phase().as_str())
    }

    #[getter]
    fn is_terminal(&self, py: Python<'_>) -> PyResult<bool> {
        self.look(py, |decoder| decoder.is_terminal())
    }

    #[getter]
    fn tokens_emitted(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |decoder| decoder.tokens_emitted())
    }

    #[getter]
    fn dropped_after_end(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |decoder| decoder.dropped_after_end())
    }

    #[getter]
    fn dropped_choices(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |decoder| decoder.dropped_choices())
    }

    #[getter]
    fn metrics_dropped(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |decoder| decoder.metrics_dropped())
    }

    #[getter]
    fn utf8_replaced(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |decoder| decoder.utf8_replaced())
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        match &self.lock(py).decoder {
            Some(decoder) => format!("{decoder:?}"),
            None => "StreamDecoder { taken over }".to_owned(),
        }
    }
}

fn taken_over() -> PyErr {
    PyRuntimeError::new_err("the decoder has been taken over by a native stream")
}

pub(crate) fn instant(name: &str, secs: f64) -> PyResult<Instant> {
    if secs.is_finite() && secs >= 0.0 {
        Ok(Instant::from_secs_f64(secs))
    } else {
        Err(PyValueError::new_err(format!("{name} must be a finite number of seconds, not {secs}")))
    }
}

fn clock(name: &str, secs: Option<f64>) -> PyResult<Option<Duration>> {
    secs.map(|secs| {
        Duration::try_from_secs_f64(secs)
            .map_err(|error| PyValueError::new_err(format!("{name}: {error} ({secs})")))
    })
    .transpose()
}

fn read_started(mapping: &Bound<'_, PyMapping>, started: &mut Started) -> PyResult<()> {
    for item in mapping.items()? {
        let (key, value): (String, Bound<'_, PyAny>) = item.extract()?;
        if value.is_none() {
            continue;
        }
        let mut text = None;
        match key.as_str() {
            "queue_position" => started.queue_position = Some(value.extract()?),
            "predicted_start_ms" => started.predicted_start_ms = Some(value.extract()?),
            "seed" => started.seed = Some(value.extract()?),
            "engine" => started.engine = value.extract::<&str>()?.into(),
            "engine_version" => text = Some(&mut started.engine_version),
            "model" => text = Some(&mut started.model),
            "model_digest" => text = Some(&mut started.model_digest),
            "sampler_profile_version" => text = Some(&mut started.sampler_profile_version),
            "correlation_id" => text = Some(&mut started.correlation_id),
            _ => {
                return Err(PyValueError::new_err(format!("{key:?} is not a field of 'started'")));
            }
        }
        if let Some(text) = text {
            *text = Some(value.extract::<&str>()?.into());
        }
    }
    Ok(())
}

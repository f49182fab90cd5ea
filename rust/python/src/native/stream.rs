//! The events of one native stream, handed over when Python asks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyBytes, PyList};
use pyo3::{PyTraverseError, PyVisit};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_net::EventStream;

use super::events::{Next, second_reader};
use super::reactor::PyReactor;
use super::wait::PyNativeWait;
use super::wakes::StreamWaker;
use crate::event::PyTokenEvent;

/// What most events take as a server-sent event.
const SSE_BYTES: usize = 96;

/// One task's answer, while it comes.
#[pyclass(frozen, name = "NativeStream", module = "worker_adapters._core")]
pub(crate) struct PyNativeStream {
    inner: Mutex<Inner>,
    /// Somebody reads who does not iterate natively.
    is_filling: AtomicBool,
    waker: Arc<StreamWaker>,
    std_waker: Waker,
    reactor: Py<PyReactor>,
}

/// In what form a reader wants what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// One event at a time.
    Events,
    /// A list of all that has come.
    Batches,
    /// All that has come, as server-sent events.
    Sse,
}

impl Form {
    pub(crate) fn from_word(word: &str) -> PyResult<Self> {
        match word {
            "events" => Ok(Self::Events),
            "batches" => Ok(Self::Batches),
            "sse" => Ok(Self::Sse),
            _ => Err(PyValueError::new_err("form must be 'events', 'batches' or 'sse'")),
        }
    }
}

enum Taken {
    None,
    One(TokenEvent),
    Batch(Vec<TokenEvent>),
}

impl Taken {
    fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }
}

struct Inner {
    /// None once it is closed.
    stream: Option<EventStream>,
    /// Taken from the stream, not yet from here.
    held: VecDeque<TokenEvent>,
    batch: Vec<TokenEvent>,
    has_started: bool,
    terminal: Option<TokenEvent>,
    tokens_emitted: u64,
    metrics_dropped: u64,
}

impl PyNativeStream {
    pub(crate) fn new(
        stream: EventStream,
        waker: Arc<StreamWaker>,
        reactor: Py<PyReactor>,
    ) -> Self {
        let inner = Inner {
            stream: Some(stream),
            held: VecDeque::new(),
            batch: Vec::new(),
            has_started: false,
            terminal: None,
            tokens_emitted: 0,
            metrics_dropped: 0,
        };
        let std_waker = waker.waker();
        Self {
            inner: Mutex::new(inner),
            is_filling: AtomicBool::new(false),
            waker,
            std_waker,
            reactor,
        }
    }

    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, Inner> {
        self.inner.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }

    fn list<'py>(
        &self,
        py: Python<'py>,
        mut batch: Vec<TokenEvent>,
    ) -> PyResult<Bound<'py, PyList>> {
        // Making Python objects can run arbitrary Python code, so no lock is held meanwhile.
        let list = PyList::new(py, batch.drain(..).map(PyTokenEvent));
        self.lock(py).give_back(batch);
        list
    }

    /// The next value in this form; else `reader` is woken when there is one. Fails where somebody
    /// else waits.
    pub(crate) fn next<'py>(
        &self,
        py: Python<'py>,
        form: Form,
        reader: &Bound<'py, PyNativeWait>,
    ) -> PyResult<Next<'py>> {
        if self.is_filling() {
            return Err(second_reader());
        }
        self.reactor.get().read_clock(py)?;
        let taken = {
            let mut inner = self.lock(py);
            let taken = inner.take_next(form);
            if taken.is_empty() {
                let Some(stream) = &mut inner.stream else { return Ok(Next::End) };
                let mut context = Context::from_waker(&self.std_waker);
                if stream.poll_beyond(0, &mut context).is_pending() {
                    drop(inner);
                    if self.waker.is_awaited(py) {
                        return Err(second_reader());
                    }
                    self.waker.set_reader(reader.clone().unbind());
                    return Ok(Next::Wait);
                }
                inner.take_next(form)
            } else {
                taken
            }
        };
        self.hand_over(py, form, taken)
    }

    fn hand_over<'py>(&self, py: Python<'py>, form: Form, taken: Taken) -> PyResult<Next<'py>> {
        let batch = match taken {
            Taken::None => return Ok(Next::End),
            Taken::One(event) => {
                if event.is_terminal() || is_started(&event) {
                    self.waker.tell_unattended(py)?;
                }
                return Ok(Next::Value(Bound::new(py, PyTokenEvent(event))?.into_any()));
            }
            Taken::Batch(batch) => batch,
        };
        if batch.last().is_some_and(TokenEvent::is_terminal)
            || batch.first().is_some_and(is_started)
        {
            self.waker.tell_unattended(py)?;
        }
        let value = if form == Form::Sse {
            let bytes = rendered(py, &batch).into_any();
            self.lock(py).give_back(batch);
            bytes
        } else {
            self.list(py, batch)?.into_any()
        };
        Ok(Next::Value(value))
    }

    /// In a forked process the events are the parent's.
    pub(crate) fn check_owner(&self) -> PyResult<()> {
        if self.reactor.get().reactor.is_forked() {
            return Err(PyRuntimeError::new_err(
                "forked: this stream belongs to the parent process",
            ));
        }
        Ok(())
    }

    /// Whether somebody reads already.
    pub(crate) fn is_awaited(&self, py: Python<'_>) -> bool {
        self.is_filling() || self.waker.is_awaited(py)
    }

    /// Has `future` be told, unless `poll` says that there is nothing to wait for; whether so.
    fn await_by(
        &self,
        py: Python<'_>,
        future: Py<PyAny>,
        poll: impl FnOnce(&mut Inner, &mut Context<'_>) -> bool,
    ) -> bool {
        // Before looking: what comes in between must find it.
        self.waker.set_future(future);
        let mut context = Context::from_waker(&self.std_waker);
        let is_ready = poll(&mut self.lock(py), &mut context);
        if is_ready {
            drop(self.waker.take_waiting());
        }
        is_ready
    }
}

impl Inner {
    /// Moves everything that has come to `batch`, which is empty before.
    fn collect(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.take(&mut self.batch);
        }
        self.has_started |= self.batch.first().is_some_and(is_started);
        if self.batch.last().is_some_and(TokenEvent::is_terminal) {
            self.terminal = self.batch.last().cloned();
        }
    }

    /// Everything that can be taken, at most `most`.
    fn take(&mut self, most: usize) -> Vec<TokenEvent> {
        // No more than asked for: what stays in the stream's own queue holds the engine back.
        if self.held.len() < most {
            self.collect();
        }
        if self.held.is_empty() && self.batch.len() <= most {
            return std::mem::take(&mut self.batch);
        }
        self.held.extend(self.batch.drain(..));
        let count = most.min(self.held.len());
        self.held.drain(..count).collect()
    }

    fn take_next(&mut self, form: Form) -> Taken {
        if form != Form::Events {
            let batch = self.take(usize::MAX);
            return if batch.is_empty() { Taken::None } else { Taken::Batch(batch) };
        }
        if self.held.is_empty() {
            self.collect();
            self.held.extend(self.batch.drain(..));
        }
        self.held.pop_front().map_or(Taken::None, Taken::One)
    }

    fn give_back(&mut self, mut batch: Vec<TokenEvent>) {
        batch.clear();
        if self.batch.is_empty() && batch.capacity() <= 64 {
            self.batch = batch;
        }
    }
}

#[pymethods]
impl PyNativeStream {
    /// Whether more than `seen` events can be taken without waiting, or as many as ever will be;
    /// else `future` is told when that changes.
    #[pyo3(signature = (future, seen=0))]
    fn wait(&self, py: Python<'_>, future: Py<PyAny>, seen: usize) -> bool {
        self.await_by(py, future, |inner, context| {
            let held = inner.held.len();
            let Some(stream) = &mut inner.stream else { return true };
            held > seen || stream.poll_beyond(seen - held, context).is_ready()
        })
    }

    /// Whether the answer is known to be a stream, or to be over; as `wait`.
    fn head(&self, py: Python<'_>, future: Py<PyAny>) -> bool {
        self.await_by(py, future, |inner, context| {
            inner.stream.as_mut().is_none_or(|stream| stream.poll_head(context).is_ready())
        })
    }

    /// Hands over what has come, the oldest first; all, or as many as that.
    #[pyo3(signature = (most=None))]
    fn take<'py>(&self, py: Python<'py>, most: Option<usize>) -> PyResult<Bound<'py, PyList>> {
        self.reactor.get().read_clock(py)?;
        let batch = self.lock(py).take(most.unwrap_or(usize::MAX));
        self.list(py, batch)
    }

    /// Hands over what has come as server-sent events.
    fn take_sse<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.reactor.get().read_clock(py)?;
        let batch = self.lock(py).take(usize::MAX);
        Ok(rendered(py, &batch))
    }

    /// Ends the stream for its caller and closes the connection; whether there was anything to end.
    fn cancel(&self, py: Python<'_>) -> PyResult<bool> {
        self.reactor.get().read_clock(py)?;
        let inner = &mut *self.lock(py);
        inner.held.retain(TokenEvent::is_terminal);
        Ok(inner.stream.as_mut().is_some_and(EventStream::cancel))
    }

    /// Lets everything go, connection and waiters; what has come is lost. Idempotent.
    fn close(&self, py: Python<'_>) {
        let stream = {
            let inner = &mut *self.lock(py);
            inner.collect();
            inner.batch = Vec::new();
            inner.held = VecDeque::new();
            inner.tokens_emitted =
                inner.stream.as_ref().map_or(inner.tokens_emitted, EventStream::tokens_emitted);
            inner.metrics_dropped =
                inner.stream.as_ref().map_or(inner.metrics_dropped, EventStream::metrics_dropped);
            inner.stream.take()
        };
        drop(stream);
        drop(self.waker.forget());
    }

    /// How many events can be taken.
    #[getter]
    fn pending(&self, py: Python<'_>) -> usize {
        let inner = &*self.lock(py);
        inner.held.len() + inner.stream.as_ref().map_or(0, EventStream::pending)
    }

    /// Whether nothing more comes before some of them are taken.
    #[getter]
    fn is_full(&self, py: Python<'_>) -> bool {
        self.lock(py).stream.as_ref().is_some_and(EventStream::is_full)
    }

    /// Whether somebody reads otherwise than by `NativeEvents`, which then fails.
    #[getter]
    fn is_filling(&self) -> bool {
        self.is_filling.load(Ordering::Relaxed)
    }

    #[setter]
    fn set_is_filling(&self, is_filling: bool) {
        self.is_filling.store(is_filling, Ordering::Relaxed);
    }

    /// Whether somebody reads, or waits in `NativeEvents`.
    #[getter(is_awaited)]
    fn is_awaited_by(&self, py: Python<'_>) -> bool {
        self.is_awaited(py)
    }

    #[getter]
    fn status(&self, py: Python<'_>) -> Option<u16> {
        self.lock(py).stream.as_ref().and_then(EventStream::status)
    }

    #[getter]
    fn phase(&self, py: Python<'_>) -> &'static str {
        self.lock(py).stream.as_ref().map_or("drain", |stream| stream.phase().as_str())
    }

    #[getter]
    fn is_sent(&self, py: Python<'_>) -> bool {
        self.lock(py).stream.as_ref().is_none_or(EventStream::is_sent)
    }

    /// Whether the engine has begun to answer.
    #[getter]
    fn has_started(&self, py: Python<'_>) -> bool {
        let inner = &*self.lock(py);
        let Some(stream) = &inner.stream else { return inner.has_started };
        // Of a stream that has not, nothing can come but its terminal event.
        inner.has_started || stream.pending() > usize::from(stream.is_terminal())
    }

    /// Whether the terminal event exists, taken or not.
    #[getter]
    fn is_terminal(&self, py: Python<'_>) -> bool {
        self.lock(py).stream.as_ref().is_none_or(EventStream::is_terminal)
    }

    /// The terminal event, once it exists.
    #[getter]
    fn terminal(&self, py: Python<'_>) -> Option<PyTokenEvent> {
        let inner = &mut *self.lock(py);
        if inner.terminal.is_none() && inner.stream.as_ref().is_some_and(EventStream::is_terminal) {
            inner.collect();
            inner.held.extend(inner.batch.drain(..));
        }
        inner.terminal.clone().map(PyTokenEvent)
    }

    #[getter]
    fn tokens_emitted(&self, py: Python<'_>) -> u64 {
        let inner = &*self.lock(py);
        inner.stream.as_ref().map_or(inner.tokens_emitted, EventStream::tokens_emitted)
    }

    #[getter]
    fn metrics_dropped(&self, py: Python<'_>) -> u64 {
        let inner = &*self.lock(py);
        inner.stream.as_ref().map_or(inner.metrics_dropped, EventStream::metrics_dropped)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!("<NativeStream {}>", self.phase(py))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.reactor)?;
        self.waker.visit(&visit)
    }

    fn __clear__(&self) {
        drop(self.waker.forget());
    }
}

fn is_started(event: &TokenEvent) -> bool {
    matches!(event, TokenEvent::Started(_))
}

fn rendered<'py>(py: Python<'py>, batch: &[TokenEvent]) -> Bound<'py, PyBytes> {
    let mut rendered = Vec::with_capacity(batch.len() * SSE_BYTES);
    for event in batch {
        event.write_sse(&mut rendered);
    }
    PyBytes::new(py, &rendered)
}

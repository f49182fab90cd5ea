//! What `async for` runs over: iterator, awaitable and future in one object.
//!
//! An asyncio task that has to wait hands the event loop a future, and is resumed by the loop after
//! the future's result has been set: one object, one scheduled call and one more round of the loop
//! for each wake-up. Here the iterator is the future (the protocol of `asyncio.isfuture`), made once
//! for a stream; and the reactor's turn, which runs as a callback of the loop, resumes the task
//! itself. No Python frame is between the task and the event.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyRuntimeError, PyStopAsyncIteration, PyStopIteration};
use pyo3::prelude::*;
use pyo3::sync::{MutexExt, PyOnceLock};
use pyo3::types::{PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit, intern};

use super::stream::{Form, PyNativeStream};

/// The events of one stream, for one task at a time.
#[pyclass(frozen, name = "NativeEvents", module = "worker_adapters._core")]
pub(crate) struct PyNativeEvents {
    /// The `TokenStream`, which lives as long as somebody iterates.
    owner: Py<PyAny>,
    stream: Py<PyNativeStream>,
    event_loop: Py<PyAny>,
    form: Form,
    /// The task that waits: what resumes it, and in which context.
    task: Mutex<Option<(Py<PyAny>, Py<PyAny>)>>,
    is_blocking: AtomicBool,
    /// The task was cancelled while it waited, with this message.
    cancelled: Mutex<Option<Py<PyAny>>>,
}

impl PyNativeEvents {
    fn task(&self, py: Python<'_>) -> MutexGuard<'_, Option<(Py<PyAny>, Py<PyAny>)>> {
        self.task.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_awaited(&self, py: Python<'_>) -> bool {
        self.is_blocking.load(Ordering::Relaxed) || self.task(py).is_some()
    }

    /// Resumes the task that waits: at once from a callback of the loop, else as soon as the loop
    /// comes to it.
    pub(crate) fn wake(slf: &Bound<'_, Self>, at_once: bool) -> PyResult<()> {
        let py = slf.py();
        let Some((resume, context)) = slf.get().task(py).take() else { return Ok(()) };
        if at_once {
            context.call_method1(py, intern!(py, "run"), (resume, slf))?;
            return Ok(());
        }
        let keywords = PyDict::new(py);
        keywords.set_item(intern!(py, "context"), context)?;
        let call_soon = slf.get().event_loop.getattr(py, intern!(py, "call_soon"))?;
        call_soon.call(py, (resume, slf), Some(&keywords))?;
        Ok(())
    }
}

#[pymethods]
impl PyNativeEvents {
    #[new]
    fn new(
        owner: Py<PyAny>,
        stream: Py<PyNativeStream>,
        event_loop: Py<PyAny>,
        form: &str,
    ) -> PyResult<Self> {
        stream.get().check_owner()?;
        Ok(Self {
            owner,
            stream,
            event_loop,
            form: Form::from_word(form)?,
            task: Mutex::default(),
            is_blocking: AtomicBool::new(false),
            cancelled: Mutex::default(),
        })
    }

    // An asynchronous iterator, every step of which is …

    fn __aiter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __anext__<'py>(slf: PyRef<'py, Self>, py: Python<'py>) -> PyResult<PyRef<'py, Self>> {
        if slf.stream.get().is_awaited(py) {
            return Err(PyRuntimeError::new_err(
                "another task is reading this stream; a stream has one reader",
            ));
        }
        Ok(slf)
    }

    // … an awaitable, whose steps …

    fn __await__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        let py = slf.py();
        let this = slf.get();
        if this.is_blocking.swap(false, Ordering::Relaxed) {
            return Err(PyRuntimeError::new_err("await wasn't used with future"));
        }
        match this.stream.get().next(py, this.form, slf)? {
            Next::Value(value) => Err(PyStopIteration::new_err(value.unbind())),
            Next::Wait => {
                this.is_blocking.store(true, Ordering::Relaxed);
                Ok(slf.clone())
            }
            Next::End => {
                this.owner.call_method0(py, intern!(py, "_left"))?;
                Err(PyStopAsyncIteration::new_err(()))
            }
        }
    }

    fn send<'py>(slf: &Bound<'py, Self>, value: Bound<'py, PyAny>) -> PyResult<Bound<'py, Self>> {
        drop(value);
        Self::__next__(slf)
    }

    /// The task is given an exception where it waits: the stream ends, because the task that reads
    /// it does.
    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw(
        &self,
        py: Python<'_>,
        kind: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        drop(traceback);
        self.close(py)?;
        let exception = match value {
            Some(value) if !value.is_none() => value,
            _ => kind,
        };
        Err(PyErr::from_value(exception))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let waiting = self.task(py).take();
        self.is_blocking.store(false, Ordering::Relaxed);
        drop(waiting);
        self.owner.call_method0(py, intern!(py, "_given_up"))?;
        Ok(())
    }

    // … hand the loop a future.

    #[getter(_asyncio_future_blocking)]
    fn is_blocking(&self) -> bool {
        self.is_blocking.load(Ordering::Relaxed)
    }

    #[setter(_asyncio_future_blocking)]
    fn set_blocking(&self, blocking: bool) {
        self.is_blocking.store(blocking, Ordering::Relaxed);
    }

    fn get_loop(&self, py: Python<'_>) -> Py<PyAny> {
        self.event_loop.clone_ref(py)
    }

    #[pyo3(signature = (callback, *, context))]
    fn add_done_callback(&self, py: Python<'_>, callback: Py<PyAny>, context: Py<PyAny>) {
        let before = self.task(py).replace((callback, context));
        drop(before);
    }

    fn done(&self, py: Python<'_>) -> bool {
        self.task(py).is_none()
    }

    /// Nothing: the task takes what there is itself. Raises CancelledError where it was cancelled.
    fn result(&self, py: Python<'_>) -> PyResult<()> {
        static CANCELLED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let message =
            self.cancelled.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner).take();
        let Some(message) = message else { return Ok(()) };
        let cancelled = CANCELLED.import(py, "asyncio", "CancelledError")?;
        let args =
            if message.is_none(py) { PyTuple::empty(py) } else { PyTuple::new(py, [message])? };
        Err(PyErr::from_value(cancelled.call1(args)?))
    }

    /// Cancels the waiting, for the task that waits; whether there was one.
    #[pyo3(signature = (msg=None))]
    fn cancel(slf: &Bound<'_, Self>, msg: Option<Py<PyAny>>) -> PyResult<bool> {
        let py = slf.py();
        if slf.get().task(py).is_none() {
            return Ok(false);
        }
        let message = msg.unwrap_or_else(|| py.None());
        let before = slf
            .get()
            .cancelled
            .lock_py_attached(py)
            .unwrap_or_else(PoisonError::into_inner)
            .replace(message);
        drop(before);
        Self::wake(slf, false)?;
        Ok(true)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.owner)?;
        visit.call(&self.stream)?;
        visit.call(&self.event_loop)?;
        if let Ok(task) = self.task.try_lock()
            && let Some((resume, context)) = &*task
        {
            visit.call(resume)?;
            visit.call(context)?;
        }
        if let Ok(cancelled) = self.cancelled.try_lock() {
            visit.call(&*cancelled)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let waiting = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(waiting);
    }
}

/// What a step of the iteration comes to.
pub(crate) enum Next<'py> {
    Value(Bound<'py, PyAny>),
    Wait,
    End,
}

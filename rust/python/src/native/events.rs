//! What `async for` runs over: iterator and awaitable in one object.
//!
//! An asyncio task that has to wait hands the event loop a future, and is resumed by the loop after
//! the future's result has been set: one object, one scheduled call and one more round of the loop
//! for each wake-up. Here the future is made once for an iteration; and the reactor's turn, which
//! runs as a callback of the loop, resumes the task itself. No Python frame is between the task and
//! the event.
//!
//! The awaitable is not the future itself: `asyncio.wait_for` and its like take what looks like a
//! future for one, and anything else that can be awaited for something to make a task of.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyRuntimeError, PyStopAsyncIteration, PyStopIteration};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit, intern};

use super::stream::{Form, PyNativeStream};
use super::wait::PyNativeWait;

/// The events of one stream, for one task at a time.
#[pyclass(frozen, name = "NativeEvents", module = "worker_adapters._core")]
pub(crate) struct PyNativeEvents {
    /// The `TokenStream`, which lives as long as somebody iterates.
    owner: Py<PyAny>,
    stream: Py<PyNativeStream>,
    form: Form,
    wait: Py<PyNativeWait>,
    /// A task was given `wait` and has not gone on since.
    is_suspended: AtomicBool,
}

#[pymethods]
impl PyNativeEvents {
    #[new]
    fn new(
        py: Python<'_>,
        owner: Py<PyAny>,
        stream: Py<PyNativeStream>,
        event_loop: Py<PyAny>,
        form: &str,
    ) -> PyResult<Self> {
        stream.get().check_owner()?;
        Ok(Self {
            owner,
            stream,
            form: Form::from_word(form)?,
            wait: Py::new(py, PyNativeWait::new(event_loop))?,
            is_suspended: AtomicBool::new(false),
        })
    }

    // An asynchronous iterator, every step of which is …

    fn __aiter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __anext__<'py>(slf: PyRef<'py, Self>, py: Python<'py>) -> PyResult<PyRef<'py, Self>> {
        if slf.stream.get().is_awaited(py) {
            return Err(second_reader());
        }
        Ok(slf)
    }

    // … an awaitable.

    fn __await__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyNativeWait>> {
        let py = slf.py();
        let this = slf.get();
        let wait = this.wait.bind(py);
        if this.is_suspended.load(Ordering::Relaxed) {
            if wait.get().unblock() {
                this.is_suspended.store(false, Ordering::Relaxed);
                return Err(PyRuntimeError::new_err("await wasn't used with future"));
            }
            if wait.get().is_awaited(py) {
                return Err(second_reader());
            }
            this.is_suspended.store(false, Ordering::Relaxed);
        }
        match this.stream.get().next(py, this.form, wait)? {
            Next::Value(value) => Err(PyStopIteration::new_err(value.unbind())),
            Next::Wait => {
                wait.get().block();
                this.is_suspended.store(true, Ordering::Relaxed);
                Ok(wait.clone())
            }
            Next::End => {
                this.owner.call_method0(py, intern!(py, "_left"))?;
                Err(PyStopAsyncIteration::new_err(()))
            }
        }
    }

    fn send<'py>(
        slf: &Bound<'py, Self>,
        value: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyNativeWait>> {
        drop(value);
        Self::__next__(slf)
    }

    /// The task is given an exception. Where it was waiting the stream ends, because the task that
    /// reads it does.
    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw(
        &self,
        py: Python<'_>,
        kind: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        drop(traceback);
        let wait = self.wait.get();
        if wait.unblock() {
            // A task of another loop's, which cannot wait here and says so.
            self.is_suspended.store(false, Ordering::Relaxed);
        } else if !wait.is_awaited(py) {
            // Whoever still waits is another task than this.
            self.close(py)?;
        }
        let exception = match value {
            Some(value) if !value.is_none() => value,
            _ => kind,
        };
        Err(PyErr::from_value(exception))
    }

    /// The task that waits is gone, and with it the stream.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_suspended.swap(false, Ordering::Relaxed) {
            self.wait.get().unblock();
            self.wait.get().forget(py);
            self.owner.call_method0(py, intern!(py, "_given_up"))?;
        }
        Ok(())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.owner)?;
        visit.call(&self.stream)?;
        visit.call(&self.wait)
    }
}

/// What a step of the iteration comes to.
pub(crate) enum Next<'py> {
    Value(Bound<'py, PyAny>),
    Wait,
    End,
}

pub(crate) fn second_reader() -> PyErr {
    PyRuntimeError::new_err("another task is reading this stream; a stream has one reader")
}

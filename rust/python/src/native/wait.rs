//! What a task that iterates hands its event loop: a future, made once for an iteration.
//!
//! It is a future by the protocol of `asyncio.isfuture`, and no more of one than a task needs; it
//! waits for one thing after the other. Nobody but the task and its loop gets to see it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::sync::{MutexExt, PyOnceLock};
use pyo3::types::{PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit, intern};

/// Waits for what comes next for one stream, on behalf of one task.
#[pyclass(frozen, name = "NativeWait", module = "worker_adapters._core")]
pub(crate) struct PyNativeWait {
    event_loop: Py<PyAny>,
    /// The task that waits: what resumes it, and in which context.
    task: Mutex<Option<(Py<PyAny>, Py<PyAny>)>>,
    is_blocking: AtomicBool,
    /// The task was cancelled while it waited, with this message.
    cancelled: Mutex<Option<Py<PyAny>>>,
}

impl PyNativeWait {
    pub(crate) fn new(event_loop: Py<PyAny>) -> Self {
        Self {
            event_loop,
            task: Mutex::default(),
            is_blocking: AtomicBool::new(false),
            cancelled: Mutex::default(),
        }
    }

    fn task(&self, py: Python<'_>) -> MutexGuard<'_, Option<(Py<PyAny>, Py<PyAny>)>> {
        self.task.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a task waits that nobody has woken yet.
    pub(crate) fn is_awaited(&self, py: Python<'_>) -> bool {
        self.is_blocking.load(Ordering::Relaxed) || self.task(py).is_some()
    }

    /// A task is about to be given this to wait for.
    pub(crate) fn block(&self) {
        self.is_blocking.store(true, Ordering::Relaxed);
    }

    /// Whether no task has taken it since.
    pub(crate) fn unblock(&self) -> bool {
        self.is_blocking.swap(false, Ordering::Relaxed)
    }

    /// Nobody is to be resumed any more.
    pub(crate) fn forget(&self, py: Python<'_>) {
        let waiting = self.task(py).take();
        drop(waiting);
    }

    /// Resumes the task that waits, if one does: at once from a callback of the loop, else as soon
    /// as the loop comes to it.
    pub(crate) fn wake(slf: &Bound<'_, Self>, at_once: bool) -> PyResult<bool> {
        let py = slf.py();
        let Some((resume, context)) = slf.get().task(py).take() else { return Ok(false) };
        if at_once {
            context.call_method1(py, intern!(py, "run"), (resume, slf))?;
            return Ok(true);
        }
        let keywords = PyDict::new(py);
        keywords.set_item(intern!(py, "context"), context)?;
        let call_soon = slf.get().event_loop.getattr(py, intern!(py, "call_soon"))?;
        call_soon.call(py, (resume, slf), Some(&keywords))?;
        Ok(true)
    }
}

#[pymethods]
impl PyNativeWait {
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
        Self::wake(slf, false)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
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

//! A reactor as an event loop sees it: a descriptor to watch, and a call to make when it is ready.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::{PyTraverseError, PyVisit};
use worker_adapters_core::time::Instant;
use worker_adapters_net::{Clock, Driver, Reactor, ReactorConfig};

use super::forks::forks;
use super::wakes::{Bell, Wakes};

const BELL: mio::Token = mio::Token(0);

/// The sockets of one event loop.
#[pyclass(frozen, weakref, name = "Reactor", module = "worker_adapters._core")]
pub(crate) struct PyReactor {
    pub(crate) reactor: Reactor,
    pub(crate) wakes: Arc<Wakes>,
    clock: Option<(Py<PyAny>, Arc<ToldClock>)>,
    /// Told in how many seconds `ring` is to be called.
    rearm: Py<PyAny>,
    /// When it will be; nanoseconds, `u64::MAX` for never.
    armed: AtomicU64,
    thread: Mutex<Option<Thread>>,
    is_closed: AtomicBool,
}

/// A thread that turns the reactor, and what tells the loop of it.
struct Thread {
    bell: mio::Poll,
    rung: mio::Events,
    /// Dropping it ends the thread.
    _driver: Driver,
}

/// A clock of Python's, as it was read last. It is never read with a lock held.
#[derive(Debug, Default)]
struct ToldClock(AtomicU64);

impl Clock for ToldClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

impl PyReactor {
    /// Reads the clock, where it is one of Python's.
    pub(crate) fn read_clock(&self, py: Python<'_>) -> PyResult<()> {
        if let Some((clock, told)) = &self.clock {
            let now = Instant::from_secs_f64(clock.call0(py)?.extract(py)?);
            told.0.store(nanos(now), Ordering::Relaxed);
        }
        Ok(())
    }
}

#[pymethods]
impl PyReactor {
    #[new]
    #[pyo3(signature = (rearm, *, clock=None, threaded=false))]
    fn new(
        py: Python<'_>,
        rearm: Py<PyAny>,
        clock: Option<Py<PyAny>>,
        threaded: bool,
    ) -> PyResult<Self> {
        let mut config = ReactorConfig::default();
        config.process = forks;
        let clock = clock.map(|clock| (clock, Arc::new(ToldClock::default())));
        if let Some((_, told)) = &clock {
            config.clock = Arc::clone(told) as Arc<dyn Clock>;
        }
        let reactor = Reactor::new(config)?;
        let (bell, thread) = if threaded {
            let poll = mio::Poll::new()?;
            let bell = mio::Waker::new(poll.registry(), BELL)?;
            let thread = Thread {
                bell: poll,
                rung: mio::Events::with_capacity(1),
                _driver: reactor.spawn()?,
            };
            (Bell::Own(bell), Some(thread))
        } else {
            (Bell::Reactor(reactor.clone()), None)
        };
        let made = Self {
            reactor,
            wakes: Arc::new(Wakes::new(bell)),
            clock,
            rearm,
            armed: AtomicU64::new(u64::MAX),
            thread: Mutex::new(thread),
            is_closed: AtomicBool::new(false),
        };
        made.read_clock(py)?;
        Ok(made)
    }

    /// What becomes readable when there is something to `turn` for.
    fn fileno(&self, py: Python<'_>) -> i32 {
        match &*self.lock(py) {
            Some(thread) => thread.bell.as_raw_fd(),
            None => self.reactor.as_raw_fd(),
        }
    }

    /// Moves on every stream for which something has come, and wakes whoever waits for it; whether
    /// there was anybody.
    fn turn(&self, py: Python<'_>) -> PyResult<bool> {
        self.turned(py, true)
    }

    /// A `turn` for whoever is no callback of the loop: tasks that are woken go on later.
    fn settle(&self, py: Python<'_>) -> PyResult<bool> {
        self.turned(py, false)
    }

    /// A `turn` at the time that was asked for.
    fn ring(&self, py: Python<'_>) -> PyResult<bool> {
        self.armed.store(u64::MAX, Ordering::Relaxed);
        self.turned(py, true)
    }
    /// Ends the thread, if there is one. Idempotent.
    fn close(&self, py: Python<'_>) {
        self.is_closed.store(true, Ordering::Relaxed);
        let thread = self.lock(py).take();
        py.detach(|| drop(thread));
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.rearm)?;
        if let Some((clock, _)) = &self.clock {
            visit.call(clock)?;
        }
        self.wakes.visit(&visit)
    }

    #[getter]
    fn connections(&self) -> usize {
        self.reactor.connections()
    }

    #[getter]
    fn resting(&self) -> usize {
        self.reactor.resting()
    }

    #[getter]
    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    #[getter]
    fn is_forked(&self) -> bool {
        self.reactor.is_forked()
    }
}

impl PyReactor {
    fn turned(&self, py: Python<'_>, at_once: bool) -> PyResult<bool> {
        let has_thread = match &mut *self.lock(py) {
            Some(_) if self.reactor.is_forked() => return Ok(false),
            Some(thread) => {
                let polled = thread.bell.poll(&mut thread.rung, Some(Duration::ZERO));
                polled.map_err(PyOSError::new_err)?;
                true
            }
            None => false,
        };
        if has_thread {
            return self.wakes.tell(py, at_once);
        }
        self.read_clock(py)?;
        if self.reactor.is_forked() {
            // A callback of the parent's loop: whoever uses the adapter here is told, not the loop.
            return Ok(false);
        }
        let turned = self.wakes.during(|| self.reactor.turn(Some(Duration::ZERO)));
        // Whatever a task that goes on raises: the clocks of the other streams run.
        let anybody = self.wakes.tell(py, at_once);
        let next = turned?;
        if let Some(next) = next
            && nanos(next) < self.armed.load(Ordering::Relaxed)
        {
            self.armed.store(nanos(next), Ordering::Relaxed);
            let delay = next.saturating_since(self.reactor.now()).as_secs_f64();
            self.rearm.call1(py, (delay,))?;
        }
        anybody
    }

    fn lock(&self, py: Python<'_>) -> std::sync::MutexGuard<'_, Option<Thread>> {
        self.thread.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn forked() -> PyErr {
    PyRuntimeError::new_err(
        "forked: this adapter's connections belong to the parent process; make a new adapter",
    )
}

fn nanos(instant: Instant) -> u64 {
    u64::try_from(instant.saturating_since(Instant::default()).as_nanos()).unwrap_or(u64::MAX)
}

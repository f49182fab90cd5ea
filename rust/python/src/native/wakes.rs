//! How Python learns that something has come: once for all streams of a turn.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Wake, Waker};

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit, intern};
use worker_adapters_net::Reactor;

use super::mailbox::Mailbox;
use super::wait::PyNativeWait;

/// Whoever has been woken and not yet told, for one reactor.
pub(crate) struct Wakes {
    woken: Mailbox<Arc<StreamWaker>>,
    /// Those of every stream, and how many there may be before the gone ones are forgotten.
    streams: Mutex<(Vec<Weak<StreamWaker>>, usize)>,
    bell: Bell,
}

/// What makes an event loop look.
pub(crate) enum Bell {
    /// The reactor's own descriptor, which the loop watches.
    Reactor(Reactor),
    /// A descriptor of its own, where a thread turns the reactor.
    Own(mio::Waker),
}

impl Wakes {
    pub(crate) fn new(bell: Bell) -> Self {
        Self { woken: Mailbox::new(), streams: Mutex::default(), bell }
    }

    /// Runs a turn of the reactor, whose wakes are told by the `tell` that follows.
    pub(crate) fn during<T>(&self, turn: impl FnOnce() -> T) -> T {
        self.woken.during(turn)
    }

    /// Tells everybody who has been woken; whether there was anybody. Belongs to the loop's thread.
    ///
    /// Tasks go on `at_once` where no other task is running, which is so in callbacks of the loop.
    pub(crate) fn tell(&self, py: Python<'_>, at_once: bool) -> PyResult<bool> {
        let mut failure = None;
        let mut anybody = false;
        // A task that goes on may wake others.
        for waker in self.woken.empty() {
            anybody = true;
            if let Err(error) = waker.tell(py, at_once) {
                // The others are told all the same.
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(anybody), Err)
    }

    /// Shows the collector who waits for any of the streams.
    ///
    /// A task that waits is kept alive by the loop that will resume it, through the descriptor that
    /// it watches and the reactor; and not by the stream, which the task itself may be the only one
    /// to hold.
    pub(crate) fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Nobody else runs while the collector does; what is locked is in use.
        if let Ok(streams) = self.streams.try_lock() {
            for waker in streams.0.iter().filter_map(Weak::upgrade) {
                waker.visit_waiting(visit)?;
            }
        }
        Ok(())
    }

    fn add(&self, waker: &Arc<StreamWaker>) {
        let (streams, most) = &mut *lock(&self.streams);
        if streams.len() >= *most {
            streams.retain(|waker| waker.strong_count() > 0);
            *most = (streams.len() * 2).max(64);
        }
        streams.push(Arc::downgrade(waker));
    }

    fn push(&self, waker: Arc<StreamWaker>) {
        if self.woken.put(waker) {
            match &self.bell {
                Bell::Reactor(reactor) => reactor.kick(),
                Bell::Own(bell) => {
                    let _ = bell.wake();
                }
            }
        }
    }
}

/// Who waits for one stream.
pub(crate) enum Waiting {
    /// A future of the loop, whose result is set.
    Future(Py<PyAny>),
    /// A task that iterates.
    Reader(Py<PyNativeWait>),
}

/// Wakes whoever waits for one stream.
pub(crate) struct StreamWaker {
    /// Which holds it once it has been woken, and whose reactor does before.
    wakes: Weak<Wakes>,
    waiting: Mutex<Option<Waiting>>,
    /// Called where nobody waits.
    unattended: Mutex<Option<Py<PyAny>>>,
}

impl StreamWaker {
    pub(crate) fn new(wakes: &Arc<Wakes>, unattended: Py<PyAny>) -> Arc<Self> {
        let made = Arc::new(Self {
            wakes: Arc::downgrade(wakes),
            waiting: Mutex::default(),
            unattended: Mutex::new(Some(unattended)),
        });
        wakes.add(&made);
        made
    }

    pub(crate) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    /// Has `future` be the one that is told next; whoever waited before is forgotten.
    pub(crate) fn set_future(&self, future: Py<PyAny>) {
        let before = lock(&self.waiting).replace(Waiting::Future(future));
        drop(before);
    }

    /// As `set_future`, for the task that iterates.
    pub(crate) fn set_reader(&self, reader: Py<PyNativeWait>) {
        let before = lock(&self.waiting).replace(Waiting::Reader(reader));
        drop(before);
    }

    pub(crate) fn take_waiting(&self) -> Option<Waiting> {
        lock(&self.waiting).take()
    }

    /// Whether a task that iterates waits.
    pub(crate) fn is_awaited(&self, py: Python<'_>) -> bool {
        let reader = match &*lock(&self.waiting) {
            Some(Waiting::Reader(reader)) => reader.clone_ref(py),
            _ => return false,
        };
        reader.get().is_awaited(py)
    }

    /// Nobody is to be told any more; what is returned may be dropped with no lock held.
    pub(crate) fn forget(&self) -> (Option<Waiting>, Option<Py<PyAny>>) {
        (self.take_waiting(), lock(&self.unattended).take())
    }

    /// Shows the collector what is the stream's own.
    pub(crate) fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(unattended) = self.unattended.try_lock() {
            visit.call(&*unattended)?;
        }
        Ok(())
    }

    fn visit_waiting(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(waiting) = self.waiting.try_lock() {
            match &*waiting {
                Some(Waiting::Future(future)) => visit.call(future)?,
                Some(Waiting::Reader(reader)) => visit.call(reader)?,
                None => {}
            }
        }
        Ok(())
    }

    fn tell(&self, py: Python<'_>, at_once: bool) -> PyResult<()> {
        match self.take_waiting() {
            Some(Waiting::Reader(reader)) => {
                if PyNativeWait::wake(reader.bind(py), at_once)? {
                    return Ok(());
                }
                // It waited once, and does no more.
                self.tell_unattended(py)
            }
            Some(Waiting::Future(future)) => {
                let future = future.bind(py);
                let told = future.call_method1(intern!(py, "set_result"), (py.None(),));
                if told.is_err() && future.call_method0(intern!(py, "done"))?.is_truthy()? {
                    // Its task was cancelled in this very turn of the loop.
                    return Ok(());
                }
                told.map(drop)
            }
            None => self.tell_unattended(py),
        }
    }

    /// Tells whoever is to know though nobody waits.
    pub(crate) fn tell_unattended(&self, py: Python<'_>) -> PyResult<()> {
        let unattended = lock(&self.unattended).as_ref().map(|callable| callable.clone_ref(py));
        if let Some(unattended) = unattended {
            unattended.call0(py)?;
        }
        Ok(())
    }
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        if let Some(wakes) = self.wakes.upgrade() {
            wakes.push(self);
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(wakes) = self.wakes.upgrade() {
            wakes.push(Arc::clone(self));
        }
    }
}

impl fmt::Debug for StreamWaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamWaker").finish_non_exhaustive()
    }
}

/// A panic elsewhere cannot leave behind anything that is unsafe to look at. Held for moments only,
/// never across anything that runs Python.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The tasks in flight of one adapter: submitted as the contract has it, cancelled by their ids.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use worker_adapters_core::Stream;
use worker_adapters_core::adapter::{self, CancelMethod, CancelReceipt, TokenStream};
use worker_adapters_core::error::{Detail, Phase, WorkerError};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::redact::Redactor;
use worker_adapters_core::task::Uuid;

use crate::sink::Sink;
use crate::state::Leftovers;
use crate::stream::EventStream;
use crate::sync::{Mutex, MutexGuard};
use crate::target::{Bounds, Request, Target};

/// The tasks in flight of one adapter, by their ids.
///
/// A `WorkerAdapter` over this crate keeps one of these: it sends a task and waits for the engine's
/// answer, refuses an id that is in flight, and reaches every task to cancel it, in whatever phase
/// and from any thread. It does not keep a stream alive; who drops one, cancels it. A clone is
/// another handle on the same tasks.
///
/// Only connections are closed; an engine with an abort of its own is asked by its adapter.
#[derive(Clone)]
pub struct Tasks(Arc<Shared>);

struct Shared {
    engine: Arc<str>,
    registry: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    is_closed: bool,
    slots: HashMap<Uuid, Weak<Slot>>,
}

/// One task: its stream, once there is one.
#[derive(Default)]
struct Slot(Mutex<InFlight>);

#[derive(Default)]
struct InFlight {
    is_cancelled: bool,
    stream: Option<EventStream>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, InFlight> {
        lock(&self.0)
    }

    fn is_terminal(&self) -> bool {
        self.lock().stream.as_ref().is_some_and(EventStream::is_terminal)
    }

    /// Whether there was anything to cancel.
    fn cancel(&self) -> bool {
        let (was_running, leftovers) = {
            let mut task = self.lock();
            let was_cancelled = std::mem::replace(&mut task.is_cancelled, true);
            match &mut task.stream {
                Some(stream) => stream.cancel_unheard(),
                None => (!was_cancelled, Leftovers::default()),
            }
        };
        // With no lock held: whoever is woken may come right back.
        leftovers.settle();
        was_running
    }
}

impl Tasks {
    /// No tasks, of this engine.
    #[must_use]
    pub fn new(engine: &str) -> Self {
        Self(Arc::new(Shared { engine: engine.into(), registry: Mutex::default() }))
    }

    /// Sends a task and returns its stream once the engine has answered 200; a task that is
    /// cancelled before gives a stream of the one event `end`. Nothing is sent twice. Dropping the
    /// future closes the connection.
    ///
    /// # Errors
    ///
    /// Everything that fails before the 200; a task of this id is in flight; the request cannot be
    /// written as HTTP; [`close`](Self::close) was called.
    pub async fn submit(
        &self,
        task_id: Uuid,
        target: &Target,
        request: &Request<'_>,
        sink: Box<dyn Sink>,
        bounds: Bounds,
    ) -> Result<TokenStream, WorkerError> {
        let mut task = self.enter(task_id)?;
        let mut stream = target.submit(request, sink, bounds).map_err(|error| {
            self.error(Detail::InvalidRequest)
                .with_message(&error.to_string(), &Redactor::default())
        })?;
        {
            let mut in_flight = task.slot.lock();
            // A cancel may have come while there was no stream yet.
            if in_flight.is_cancelled {
                stream.cancel();
            }
            in_flight.stream = Some(stream);
        }
        poll_fn(|context| {
            task.slot.lock().stream.as_mut().map_or(Poll::Ready(()), |it| it.poll_head(context))
        })
        .await;
        if let Some(error) = task.refusal() {
            return Err(error);
        }
        Ok(Box::pin(task))
    }

    /// Cancels a task and closes its connection. Idempotent; an unknown id is no error. No token is
    /// handed out after it returns.
    #[must_use]
    pub fn cancel(&self, task_id: Uuid) -> CancelReceipt {
        let slot = lock(&self.0.registry).slots.get(&task_id).and_then(Weak::upgrade);
        let is_cancelled = slot.is_some_and(|slot| slot.cancel());
        let method = if is_cancelled { CancelMethod::Close } else { CancelMethod::None };
        // Nothing is waited for.
        CancelReceipt::new(method, None, Duration::ZERO)
    }

    /// Cancels every task and refuses further ones.
    pub fn close(&self) {
        let slots: Vec<_> = {
            let mut registry = lock(&self.0.registry);
            registry.is_closed = true;
            registry.slots.values().filter_map(Weak::upgrade).collect()
        };
        for slot in slots {
            slot.cancel();
        }
    }

    /// How many tasks there are whose streams have not been dropped.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.0.registry).slots.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn enter(&self, task_id: Uuid) -> Result<TaskStream, WorkerError> {
        // Dropped after the lock: what is dropped last closes a connection, and wakes others.
        let previous;
        let slot = Arc::new(Slot::default());
        {
            let mut registry = lock(&self.0.registry);
            if registry.is_closed {
                return Err(self.error(Detail::Closed));
            }
            previous = registry.slots.get(&task_id).and_then(Weak::upgrade);
            if previous.as_ref().is_some_and(|slot| !slot.is_terminal()) {
                drop(registry);
                return Err(self.error(Detail::DuplicateId));
            }
            registry.slots.insert(task_id, Arc::downgrade(&slot));
        }
        drop(previous);
        Ok(TaskStream { task_id, slot, tasks: self.clone(), answered: None })
    }

    fn error(&self, detail: Detail) -> WorkerError {
        WorkerError::new(Arc::clone(&self.0.engine), detail, Phase::Validate)
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("engine", &self.0.engine)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// The stream of a task in flight. Whoever cancels the task by its id shares the lock, which is
/// taken once per batch.
struct TaskStream {
    task_id: Uuid,
    slot: Arc<Slot>,
    tasks: Tasks,
    /// The one event of a task that was over before its answer.
    answered: Option<TokenEvent>,
}

impl TaskStream {
    /// Why the task was not taken up, if it was not.
    fn refusal(&mut self) -> Option<WorkerError> {
        let mut in_flight = self.slot.lock();
        let stream = in_flight.stream.as_mut()?;
        if stream.status() == Some(200) {
            return None;
        }
        let mut events = Vec::new();
        stream.take(&mut events);
        match events.pop()? {
            TokenEvent::Error(error) => Some(*error),
            event => {
                drop(in_flight);
                self.answered = Some(event);
                None
            }
        }
    }
}

impl adapter::EventStream for TaskStream {
    fn task_id(&self) -> Uuid {
        self.task_id
    }

    fn is_terminal(&self) -> bool {
        self.slot.is_terminal()
    }

    fn cancel(self: Pin<&mut Self>) {
        self.slot.cancel();
    }

    fn poll_batch(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        events: &mut Vec<TokenEvent>,
    ) -> Poll<usize> {
        let this = self.get_mut();
        if let Some(event) = this.answered.take() {
            events.push(event);
            return Poll::Ready(1);
        }
        let before = events.len();
        let mut in_flight = this.slot.lock();
        let stream = in_flight.stream.as_mut();
        stream
            .map_or(Poll::Ready(()), |stream| stream.poll_batch(context, events))
            .map(|()| events.len() - before)
    }
}

impl Stream for TaskStream {
    type Item = TokenEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        let this = self.get_mut();
        if let Some(event) = this.answered.take() {
            return Poll::Ready(Some(event));
        }
        let mut in_flight = this.slot.lock();
        let stream = in_flight.stream.as_mut();
        stream.map_or(Poll::Ready(None), |stream| Pin::new(stream).poll_next(context))
    }
}

impl Drop for TaskStream {
    fn drop(&mut self) {
        let mut registry = lock(&self.tasks.0.registry);
        let ours = Arc::downgrade(&self.slot);
        // Once it was over, a task of the same id may have taken its place.
        if registry.slots.get(&self.task_id).is_some_and(|slot| slot.ptr_eq(&ours)) {
            registry.slots.remove(&self.task_id);
        }
    }
}

/// A panic elsewhere cannot leave behind anything that is unsafe to look at.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

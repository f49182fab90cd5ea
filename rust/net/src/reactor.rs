//! The reactor: waits for sockets and clocks, and tells whoever waits for what they brought.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
#[cfg(unix)]
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mio::{Events, Poll, Token};
use worker_adapters_core::time::Instant;

use crate::announced::Announced;
use crate::clock::{Clock, Monotonic};
use crate::exchange::Exchange;
use crate::resolver::{Resolve, Resolver, SystemResolver};
use crate::state::{Leftovers, State, Stats};
use crate::target::{Target, TargetConfig};

/// How many sockets one wait can report; the rest follow in the next.
const EVENTS: usize = 1024;

const WAKER: Token = Token(usize::MAX);

/// What a reactor is made with.
#[derive(Clone)]
#[non_exhaustive]
pub struct ReactorConfig {
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Looks names up.
    pub resolve: Arc<dyn Resolve>,
    /// Tells a process from its forks: gives the same number for as long as there was no fork, and
    /// another in the child. It is asked before each turn and each read. By default it gives the
    /// process's id, which is a system call; who is told of forks, or makes none, knows cheaper.
    pub process: fn() -> u32,
}

impl Default for ReactorConfig {
    fn default() -> Self {
        Self {
            clock: Arc::new(Monotonic),
            resolve: Arc::new(SystemResolver),
            process: std::process::id,
        }
    }
}

impl fmt::Debug for ReactorConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReactorConfig").field("clock", &self.clock).finish_non_exhaustive()
    }
}

/// Any number of exchanges over any number of targets, all moved on by [`turn`](Self::turn).
///
/// Somebody has to call it: [`spawn`](Self::spawn) starts a thread that does nothing else, and an
/// event loop can do it itself, whenever the reactor's file descriptor is readable and when
/// [`turn`](Self::turn) said that a clock would run out. A clone is another handle on the same
/// reactor.
#[derive(Clone)]
pub struct Reactor(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    poll: Mutex<(Poll, Events)>,
    waker: Arc<mio::Waker>,
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    answers: Arc<Mutex<Vec<Answer>>>,
    announced: Announced,
    fd: RawFd,
    process: fn() -> u32,
    /// The process whose sockets these are.
    owner: u32,
}

type Answer = (u64, io::Result<Vec<SocketAddr>>);

impl Reactor {
    /// A reactor with nothing to do.
    ///
    /// # Errors
    ///
    /// What the operating system says when it has no descriptors left.
    pub fn new(config: ReactorConfig) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(mio::Waker::new(poll.registry(), WAKER)?);
        let answers: Arc<Mutex<Vec<Answer>>> = Arc::default();
        let resolver = {
            let (answers, waker) = (Arc::clone(&answers), Arc::clone(&waker));
            Resolver::new(config.resolve, move |ticket, answer| {
                lock(&answers).push((ticket, answer));
                let _ = waker.wake();
            })
        };
        let state = State::new(poll.registry().try_clone()?, resolver);
        let fd = poll.as_raw_fd();
        Ok(Self(Arc::new(Shared {
            poll: Mutex::new((poll, Events::with_capacity(EVENTS))),
            waker,
            state: Mutex::new(state),
            clock: config.clock,
            answers,
            announced: Announced::never(),
            fd,
            process: config.process,
            owner: (config.process)(),
        })))
    }

    /// Where requests to one address start from.
    #[must_use]
    pub fn target(&self, config: TargetConfig) -> Target {
        let config = Arc::new(config);
        // What a forked process makes here, it can submit nothing to.
        let key = self.0.outside(|state, _| state.add_pool(Arc::clone(&config)));
        Target::new(self.clone(), key, config)
    }

    /// Waits for up to `timeout` (`None`: until something happens), moves on every exchange for
    /// which something has come or run out, and wakes whoever waits for one of them.
    ///
    /// Returns when it has to be called again at the latest, if ever.
    ///
    /// # Errors
    ///
    /// What the operating system says when it cannot wait; no exchange is lost by it.
    pub fn turn(&self, timeout: Option<Duration>) -> io::Result<Option<Instant>> {
        let shared = &*self.0;
        if shared.is_forked() {
            return Err(io::Error::other("the reactor belongs to the process that was forked"));
        }
        let (next, leftovers) = {
            let (poll, events) = &mut *lock(&shared.poll);
            match poll.poll(events, timeout) {
                Err(error) if error.kind() == ErrorKind::Interrupted => events.clear(),
                outcome => outcome?,
            }
            let now = shared.clock.now();
            let mut state = shared.state();
            state.resume(now);
            for event in events.iter().filter(|event| event.token() != WAKER) {
                state.ready(event, now);
            }
            for (ticket, answer) in std::mem::take(&mut *lock(&shared.answers)) {
                state.resolved(ticket, answer, now);
            }
            state.strike(now);
            state.admit(now);
            if state.has_unread() {
                let _ = shared.waker.wake();
            }
            let next = state.next_due();
            shared.announced.announce(next);
            (next, state.leave())
        };
        leftovers.settle();
        Ok(next)
    }

    /// Makes a [`turn`](Self::turn) that waits return; from any thread.
    pub fn kick(&self) {
        if !self.is_forked() {
            let _ = self.0.waker.wake();
        }
    }

    /// Whether this process is a fork of the one that made the reactor. It shares the sockets, and
    /// touches none of them: nothing can be submitted, and what is dropped is only forgotten.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        self.0.is_forked()
    }

    /// The present instant on the reactor's axis.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.0.clock.now()
    }

    /// How many connections there are: in use, at rest or being opened.
    #[must_use]
    pub fn connections(&self) -> usize {
        if self.is_forked() { 0 } else { self.0.state().open_connections() }
    }

    /// How many of them rest until the next request.
    #[must_use]
    pub fn resting(&self) -> usize {
        if self.is_forked() { 0 } else { self.0.state().resting_connections() }
    }

    /// What there is at the moment; nothing in a forked process.
    #[must_use]
    pub fn stats(&self) -> Stats {
        if self.is_forked() { Stats::default() } else { self.0.state().stats() }
    }

    /// Starts a thread that turns the reactor until the [`Driver`] is dropped.
    ///
    /// # Errors
    ///
    /// What the operating system says when it has no thread to give.
    pub fn spawn(&self) -> io::Result<Driver> {
        let reactor = self.clone();
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopped);
        let thread =
            thread::Builder::new().name("worker-adapters-io".to_owned()).spawn(move || {
                let mut next: Option<Instant> = None;
                while !stop.load(Ordering::Acquire) {
                    let timeout = next.map(|next| next.saturating_since(reactor.now()));
                    match reactor.turn(timeout) {
                        Ok(due) => next = due,
                        Err(_) => thread::yield_now(),
                    }
                }
            })?;
        Ok(Driver { reactor: self.clone(), stopped, thread: Some(thread) })
    }
}

#[cfg(unix)]
impl AsRawFd for Reactor {
    /// Readable when there is something to [`turn`](Reactor::turn) for.
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor").finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Has a reader look at an exchange, or take events from it. In a forked process there is none.
    pub(crate) fn read<T>(&self, key: usize, take: impl FnOnce(Option<&mut Exchange>) -> T) -> T {
        if self.is_forked() {
            return take(None);
        }
        let mut state = self.state();
        let Some(exchange) = state.exchange(key) else { return take(None) };
        let taken = take(Some(exchange));
        let displaced = exchange.displaced.take();
        if exchange.is_held_up() {
            state.release(key, self.clock.now());
            let _ = self.waker.wake();
        }
        drop(state);
        drop(displaced);
        taken
    }

    /// Does something to the state outside a turn, and sees to what follows from it.
    ///
    /// Does nothing in a forked process: its sockets, and whoever held the lock, are the other's.
    pub(crate) fn outside<T: Default>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let (outcome, leftovers) = self.change(change);
        leftovers.settle();
        outcome
    }

    /// As [`outside`](Self::outside), for a caller who has locks of its own to release before
    /// anybody is woken.
    pub(crate) fn change<T: Default>(
        &self,
        change: impl FnOnce(&mut State, Instant) -> T,
    ) -> (T, Leftovers) {
        if self.is_forked() {
            return Default::default();
        }
        let (outcome, next, is_unread, leftovers) = {
            let mut state = self.state();
            let outcome = change(&mut state, self.clock.now());
            (outcome, state.next_due(), state.has_unread(), state.leave())
        };
        if self.announced.is_later_than(next) || is_unread {
            let _ = self.waker.wake();
        }
        (outcome, leftovers)
    }

    pub(crate) fn is_forked(&self) -> bool {
        self.owner != (self.process)()
    }
}

/// Keeps the thread of [`Reactor::spawn`] going.
#[derive(Debug)]
pub struct Driver {
    reactor: Reactor,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        self.reactor.kick();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
            // The thread stayed behind in the process that was forked.
            && !self.reactor.is_forked()
        {
            let _ = thread.join();
        }
    }
}

/// A panic elsewhere cannot leave behind anything that is unsafe to look at.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

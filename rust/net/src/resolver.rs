//! Names to addresses, without blocking the reactor and without a thread per call.
//!
//! The system's resolver knows every source of names that its machine is configured for, but it
//! blocks, cannot be cancelled and may hang for as long as a DNS server is silent. So it runs in at
//! most [`MAX_THREADS`] threads, started when there is something to do and gone when there is not;
//! whoever waits is known by a ticket and may stop waiting at any time. What is stuck stays stuck
//! in those threads alone.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::sync::{Condvar, Mutex, MutexGuard, thread};

#[cfg(test)]
mod tests;

/// How many lookups run at once.
pub const MAX_THREADS: usize = 4;

/// How many names wait for a thread.
pub const MAX_QUEUED: usize = 256;

/// How many tickets wait for an answer.
pub const MAX_TICKETS: usize = 65_536;

/// How long a thread stays without work.
const IDLE: Duration = Duration::from_secs(10);

/// What looks names up.
pub trait Resolve: Send + Sync {
    /// The addresses of `host`, each with `port`, the preferred first. May block: it is called on a
    /// thread of the [`Resolver`]. An empty answer counts as an error.
    ///
    /// # Errors
    ///
    /// When the name cannot be resolved.
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The system's resolver: `getaddrinfo`.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        (host, port).to_socket_addrs().map(Iterator::collect)
    }
}

/// The address that `host` itself spells, be it IPv4 or IPv6, with or without brackets. To be asked
/// before a [`Resolver`]: such a host needs no lookup and no thread.
#[must_use]
pub fn literal(host: &str, port: u16) -> Option<SocketAddr> {
    let address = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => IpAddr::V6(inner.parse().ok()?),
        None => host.parse().ok()?,
    };
    Some(SocketAddr::new(address, port))
}

/// No lookup can be taken on: too many wait already, or this process can start no thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saturated;

impl fmt::Display for Saturated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many names are being resolved")
    }
}

impl std::error::Error for Saturated {}

/// A few threads that resolve names for many.
///
/// Dropping it never waits: queued lookups are forgotten, a running one ends unheard whenever the
/// system lets go of it.
pub struct Resolver {
    shared: Arc<Shared>,
}

/// A host and a port.
type Name = (Arc<str>, u16);

type Done = dyn Fn(u64, io::Result<Vec<SocketAddr>>) + Send + Sync;

struct Shared {
    state: Mutex<State>,
    /// Told when a name is queued and when the resolver is dropped.
    changed: Condvar,
    resolve: Arc<dyn Resolve>,
    done: Box<Done>,
    idle: Duration,
}

#[derive(Default)]
struct State {
    /// The lookups that run or are queued, with the tickets that wait for each.
    lookups: HashMap<Name, BTreeSet<u64>>,
    /// Those that no thread has begun.
    queue: VecDeque<Name>,
    /// What each ticket waits for.
    tickets: HashMap<u64, Name>,
    threads: usize,
    /// How many of the threads wait for work.
    idle: usize,
    closed: bool,
}

impl Resolver {
    /// A resolver that asks `resolve` and calls `done` once with the answer for each ticket, on one
    /// of its threads. `done` must not block. No thread is started yet.
    #[must_use]
    pub fn new(
        resolve: Arc<dyn Resolve>,
        done: impl Fn(u64, io::Result<Vec<SocketAddr>>) + Send + Sync + 'static,
    ) -> Self {
        Self::with_idle(resolve, done, IDLE)
    }

    pub(crate) fn with_idle(
        resolve: Arc<dyn Resolve>,
        done: impl Fn(u64, io::Result<Vec<SocketAddr>>) + Send + Sync + 'static,
        idle: Duration,
    ) -> Self {
        let shared = Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            resolve,
            done: Box::new(done),
            idle,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Looks `host` up for `ticket`. Tickets for a host and port that are queued or being looked up
    /// share that lookup; a ticket that waits for something else stops doing so.
    ///
    /// # Errors
    ///
    /// [`Saturated`] when [`MAX_TICKETS`] or [`MAX_QUEUED`] is reached or no thread can be started;
    /// `done` is not called then.
    pub fn resolve(&self, ticket: u64, host: &str, port: u16) -> Result<(), Saturated> {
        let mut state = self.shared.lock();
        state.forget(ticket);
        if state.tickets.len() >= MAX_TICKETS {
            return Err(Saturated);
        }
        let name: Name = (Arc::from(host), port);
        if !state.lookups.contains_key(&name) {
            if state.queue.len() >= MAX_QUEUED {
                return Err(Saturated);
            }
            // Each idle thread takes one of the queued names.
            if state.queue.len() >= state.idle && state.threads < MAX_THREADS {
                match self.start_thread() {
                    Ok(()) => state.threads += 1,
                    Err(_) if state.threads > 0 => {}
                    Err(_) => return Err(Saturated),
                }
            }
            state.queue.push_back(name.clone());
            self.shared.changed.notify_one();
        }
        state.lookups.entry(name.clone()).or_default().insert(ticket);
        state.tickets.insert(ticket, name);
        Ok(())
    }

    /// Nobody waits for `ticket` any more: a lookup that only it waited for is dropped, unless it
    /// runs. An answer that is on its way at this moment may still come.
    pub fn forget(&self, ticket: u64) {
        self.shared.lock().forget(ticket);
    }

    /// Starts a thread; it begins with what is in the queue once the state's lock is released.
    fn start_thread(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name("resolver".to_owned()).spawn(move || shared.work()).map(drop)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Resolver")
            .field("tickets", &state.tickets.len())
            .field("queued", &state.queue.len())
            .field("threads", &state.threads)
            .finish_non_exhaustive()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.lookups.clear();
        state.queue.clear();
        state.tickets.clear();
        self.shared.changed.notify_all();
    }
}

impl State {
    fn forget(&mut self, ticket: u64) {
        let Some(name) = self.tickets.remove(&ticket) else { return };
        let Some(waiting) = self.lookups.get_mut(&name) else { return };
        waiting.remove(&ticket);
        if !waiting.is_empty() {
            return;
        }
        if let Some(place) = self.queue.iter().position(|queued| *queued == name) {
            self.queue.remove(place);
            self.lookups.remove(&name);
        }
    }

    /// Who waits for `name`, which is no longer being looked up.
    fn finish(&mut self, name: &Name) -> BTreeSet<u64> {
        let waiting = self.lookups.remove(name).unwrap_or_default();
        for ticket in &waiting {
            self.tickets.remove(ticket);
        }
        waiting
    }
}

impl Shared {
    /// Nothing panics while the state is half changed, so poison says nothing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does: one lookup after another, until there has been none for a while.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(name) = state.queue.pop_front() {
                drop(state);
                self.look_up(&name);
                state = self.lock();
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            state = self
                .changed
                .wait_timeout_while(state, self.idle, |state| {
                    state.queue.is_empty() && !state.closed
                })
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            state.idle -= 1;
            if state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }

    /// Looks one name up and answers those who wait for it.
    fn look_up(&self, name: &Name) {
        let (host, port) = name;
        let answer = catch_unwind(AssertUnwindSafe(|| self.resolve.resolve(host, *port)))
            .unwrap_or_else(|_| Err(io::Error::other("the resolver panicked")))
            .and_then(|addresses| {
                if addresses.is_empty() {
                    return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
                }
                Ok(addresses)
            });
        let waiting = self.lock().finish(name);
        for ticket in waiting {
            let answer = match &answer {
                Ok(addresses) => Ok(addresses.clone()),
                Err(error) => Err(copy(error)),
            };
            // A panic over one answer takes neither the others nor the thread with it.
            let _ = catch_unwind(AssertUnwindSafe(|| (self.done)(ticket, answer)));
        }
    }
}

/// The same error for another who waits: an OS error keeps its number.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

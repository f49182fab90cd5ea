//! The events of one exchange, for whoever reads them.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use worker_adapters_core::Stream;
use worker_adapters_core::error::Phase;
use worker_adapters_core::event::TokenEvent;

use crate::exchange::Exchange;
use crate::state::Leftovers;
use crate::target::Target;

/// The events of one exchange, as they come.
///
/// Dropping it closes the connection, which frees the engine's slot. For one event at a time it is
/// a [`Stream`]; [`poll_batch`](Self::poll_batch) hands over all that has come at once.
pub struct EventStream {
    target: Target,
    key: usize,
    /// Events taken from the exchange and not yet handed on one by one, the next at the end.
    taken: Vec<TokenEvent>,
    is_over: bool,
}

impl EventStream {
    pub(crate) fn new(target: Target, key: usize) -> Self {
        Self { target, key, taken: Vec::new(), is_over: false }
    }

    /// Appends every event that has come to `out`; at least one, unless the terminal event has been
    /// handed over before.
    pub fn poll_batch(&mut self, context: &mut Context<'_>, out: &mut Vec<TokenEvent>) -> Poll<()> {
        if !self.taken.is_empty() {
            out.extend(self.taken.drain(..).rev());
            return Poll::Ready(());
        }
        if self.is_over {
            return Poll::Ready(());
        }
        let before = out.len();
        let outcome = self.target.shared().read(self.key, |exchange| {
            exchange.map_or(Poll::Ready(()), |exchange| exchange.poll_take(context, out))
        });
        self.note_end(before, out);
        outcome
    }

    /// `Ready` when more than `seen` events can be taken without waiting, or as many as ever will:
    /// the queue is full, or the terminal event is there.
    pub fn poll_beyond(&mut self, seen: usize, context: &mut Context<'_>) -> Poll<()> {
        if self.is_over || self.taken.len() > seen {
            return Poll::Ready(());
        }
        let seen = seen - self.taken.len();
        self.with(|exchange| {
            exchange.map_or(Poll::Ready(()), |exchange| exchange.poll_beyond(seen, context))
        })
    }

    /// `Ready` when the response head is there and says that a stream follows, or when there is a
    /// terminal event: for any other answer, when its body has been read.
    pub fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.with(|exchange| {
            exchange.map_or(Poll::Ready(()), |exchange| exchange.poll_head(context))
        })
    }

    /// How many events can be taken without waiting.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.taken.len() + self.with(|exchange| exchange.map_or(0, |exchange| exchange.pending()))
    }

    /// Whether nothing more comes before some of them are taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.with(|exchange| exchange.is_some_and(|exchange| !exchange.has_room()))
    }

    /// Appends every event that has come to `out`, without waiting; whether there were any.
    pub fn take(&mut self, out: &mut Vec<TokenEvent>) -> bool {
        let before = out.len();
        out.extend(self.taken.drain(..).rev());
        if !self.is_over {
            self.target
                .shared()
                .read(self.key, |exchange| exchange.is_some_and(|exchange| exchange.take(out)));
        }
        self.note_end(before, out);
        out.len() > before
    }

    /// Ends the exchange with `finish_reason: cancelled`, unless it has ended, and closes its
    /// connection. Tokens that nobody has taken are taken back. Whether there was anything to end.
    pub fn cancel(&mut self) -> bool {
        let (was_running, leftovers) = self.cancel_unheard();
        leftovers.settle();
        was_running
    }

    /// Cancels, and leaves it to the caller to tell whoever waits.
    pub(crate) fn cancel_unheard(&mut self) -> (bool, Leftovers) {
        self.taken.retain(TokenEvent::is_terminal);
        self.target.shared().change(|state, now| state.cancel(self.key, now))
    }

    /// The response's status, once it is there.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.with(|exchange| exchange.and_then(|exchange| exchange.status()))
    }

    /// Where the exchange is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.with(|exchange| exchange.map_or(Phase::Drain, |exchange| exchange.phase()))
    }

    /// Whether the engine can have seen anything of the request.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        self.with(|exchange| exchange.is_some_and(|exchange| exchange.is_sent()))
    }

    /// Whether the terminal event exists, taken or not.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.with(|exchange| exchange.is_none_or(|exchange| exchange.sink().is_terminal()))
    }

    /// How many tokens the events so far stand for.
    #[must_use]
    pub fn tokens_emitted(&self) -> u64 {
        self.with(|exchange| exchange.map_or(0, |exchange| exchange.sink().tokens_emitted()))
    }

    /// How many `metrics` events gave way to a later one before anybody had taken them.
    #[must_use]
    pub fn metrics_dropped(&self) -> u64 {
        self.with(|exchange| exchange.map_or(0, |exchange| exchange.sink().metrics_dropped()))
    }

    fn with<T>(&self, look: impl FnOnce(Option<&mut Exchange>) -> T) -> T {
        self.target.shared().read(self.key, look)
    }

    fn note_end(&mut self, before: usize, out: &[TokenEvent]) {
        self.is_over |= out.len() > before && out.last().is_some_and(TokenEvent::is_terminal);
    }
}

impl Stream for EventStream {
    type Item = TokenEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        let stream = self.get_mut();
        if stream.taken.is_empty() {
            let mut batch = Vec::new();
            if stream.poll_batch(context, &mut batch).is_pending() {
                return Poll::Pending;
            }
            batch.reverse();
            stream.taken = batch;
        }
        Poll::Ready(stream.taken.pop())
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.target.shared().outside(|state, now| state.remove(self.key, now));
    }
}

//! The events of one task as a stream: [`TokenStream`].

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::event::TokenEvent;
use crate::task::Uuid;

/// What a submit returns. Dropping it closes the connection, which frees the engine's slot.
pub type TokenStream = Pin<Box<dyn EventStream>>;

/// At most so many events are one batch, so that one busy stream does not starve its neighbours.
const MAX_BATCH: usize = 1024;

/// The events of one task: `started`, any `token`, then one `end` or `error`, and nothing more.
///
/// It is a [`Stream`], for whoever wants one event at a time. A reader that keeps up with many
/// streams takes [batches](Self::poll_batch): one call for all that has arrived, into a vector it
/// reuses.
pub trait EventStream: Stream<Item = TokenEvent> + Send {
    /// The task this is the stream of.
    fn task_id(&self) -> Uuid;

    /// Whether the terminal event exists, delivered or not.
    fn is_terminal(&self) -> bool;

    /// Cancels the task, unless it has ended: tokens that have not been taken are taken back, the
    /// connection is closed, and `end` with `finish_reason: cancelled` is what is left to read.
    /// Idempotent.
    ///
    /// Does not wait: [`WorkerAdapter::cancel`](super::WorkerAdapter::cancel) also asks the engine,
    /// where it has an abort of its own.
    fn cancel(self: Pin<&mut Self>);

    /// Appends all events that are there, but no endless number of them, and returns how many; 0
    /// once the terminal event has been taken.
    ///
    /// Pending, with the task registered to be woken, when none is there yet.
    fn poll_batch(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        events: &mut Vec<TokenEvent>,
    ) -> Poll<usize> {
        let mut taken = 0;
        while taken < MAX_BATCH {
            match self.as_mut().poll_next(context) {
                Poll::Ready(Some(event)) => events.push(event),
                Poll::Pending if taken == 0 => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break,
            }
            taken += 1;
        }
        Poll::Ready(taken)
    }
}

impl dyn EventStream + '_ {
    /// Waits for events and appends all that are there to `events`; resolves to how many, 0 once
    /// the terminal event has been taken.
    ///
    /// Nothing is lost when the future is dropped.
    pub fn next_batch<'a>(
        self: Pin<&'a mut Self>,
        events: &'a mut Vec<TokenEvent>,
    ) -> NextBatch<'a> {
        NextBatch { stream: self, events }
    }
}

impl fmt::Debug for dyn EventStream + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenStream")
            .field("task_id", &self.task_id())
            .field("is_terminal", &self.is_terminal())
            .finish_non_exhaustive()
    }
}

/// What [`next_batch`](trait.EventStream.html#method.next_batch) returns.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct NextBatch<'a> {
    stream: Pin<&'a mut dyn EventStream>,
    events: &'a mut Vec<TokenEvent>,
}

impl Future for NextBatch<'_> {
    type Output = usize;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<usize> {
        let this = self.get_mut();
        this.stream.as_mut().poll_batch(context, this.events)
    }
}

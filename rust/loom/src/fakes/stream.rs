//! The events of one exchange.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use worker_adapters_core::event::TokenEvent;

use crate::state::Leftovers;
use crate::target::{Exchange, Target};

pub struct EventStream(Target);

impl EventStream {
    pub fn new(target: Target) -> Self {
        Self(target)
    }

    fn with<T>(&self, look: impl FnOnce(&mut Exchange) -> T) -> T {
        look(&mut self.0.0.lock().unwrap())
    }

    pub fn is_terminal(&self) -> bool {
        self.with(|exchange| exchange.is_terminal())
    }

    pub fn status(&self) -> Option<u16> {
        self.with(|exchange| exchange.status)
    }

    pub fn cancel(&mut self) -> bool {
        let (was_running, leftovers) = self.cancel_unheard();
        leftovers.settle();
        was_running
    }

    pub fn cancel_unheard(&mut self) -> (bool, Leftovers) {
        self.with(Exchange::cancel)
    }

    pub fn take(&mut self, out: &mut Vec<TokenEvent>) -> bool {
        self.with(|exchange| {
            let has_events = !exchange.queue.is_empty();
            out.append(&mut exchange.queue);
            has_events
        })
    }

    pub fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.with(|exchange| {
            if exchange.status == Some(200) || exchange.is_terminal() {
                return Poll::Ready(());
            }
            exchange.waker = Some(context.waker().clone());
            Poll::Pending
        })
    }

    pub fn poll_batch(&mut self, context: &mut Context<'_>, out: &mut Vec<TokenEvent>) -> Poll<()> {
        self.with(|exchange| {
            if exchange.queue.is_empty() && !exchange.is_terminal() {
                exchange.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            out.append(&mut exchange.queue);
            Poll::Ready(())
        })
    }
}

impl Stream for EventStream {
    type Item = TokenEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        self.with(|exchange| {
            if !exchange.queue.is_empty() {
                return Poll::Ready(Some(exchange.queue.remove(0)));
            }
            if exchange.is_terminal() {
                return Poll::Ready(None);
            }
            exchange.waker = Some(context.waker().clone());
            Poll::Pending
        })
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.with(|exchange| exchange.is_removed = true);
    }
}

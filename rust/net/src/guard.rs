//! A sink whose panics end its own exchange, and nothing else.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use worker_adapters_core::error::{Detail, Phase, Processed, WorkerError};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::http::ResponseHead;
use worker_adapters_core::time::Instant;

use crate::sink::{Sink, Standing};

/// Calls a [`Sink`]. Once that has panicked, it is asked for its error and never called again.
///
/// Nothing that the panic says reaches the error: it may quote generated text.
pub(crate) struct Guard {
    sink: Box<dyn Sink>,
    standing: Standing,
    is_broken: Cell<bool>,
}

impl Guard {
    pub(crate) fn new(sink: Box<dyn Sink>) -> Self {
        Self { sink, standing: Standing::default(), is_broken: Cell::new(false) }
    }

    pub(crate) fn dispatched(&mut self, now: Instant, out: &mut Vec<TokenEvent>) {
        self.tell(now, out, |sink, _| sink.dispatched(now));
    }

    pub(crate) fn head(
        &mut self,
        head: &ResponseHead<'_>,
        now: Instant,
        out: &mut Vec<TokenEvent>,
    ) {
        self.tell(now, out, |sink, out| sink.head(head, now, out));
    }

    pub(crate) fn body(&mut self, bytes: &[u8], now: Instant, out: &mut Vec<TokenEvent>) {
        self.hear(now, out, |sink, out| sink.read(bytes, now, out));
    }

    pub(crate) fn finish(&mut self, complete: bool, now: Instant, out: &mut Vec<TokenEvent>) {
        self.tell(now, out, |sink, out| sink.finish(complete, now, out));
    }

    pub(crate) fn fail(
        &mut self,
        detail: Detail,
        phase: Phase,
        processed: Option<Processed>,
        message: &str,
        now: Instant,
        out: &mut Vec<TokenEvent>,
    ) {
        self.tell(now, out, |sink, out| sink.fail(detail, phase, processed, message, now, out));
    }

    pub(crate) fn cancel(&mut self, now: Instant, out: &mut Vec<TokenEvent>) {
        self.tell(now, out, |sink, out| sink.cancel(now, out));
    }

    pub(crate) fn reader(&mut self, paused: bool, now: Instant, out: &mut Vec<TokenEvent>) {
        self.tell(now, out, |sink, _| sink.reader(paused, now));
    }

    pub(crate) fn tick(&mut self, now: Instant, out: &mut Vec<TokenEvent>) {
        self.tell(now, out, |sink, out| sink.tick(now, out));
    }

    /// When the next clock runs out; at once where a panic waits to become an error.
    pub(crate) fn next_wakeup(&self) -> Option<Instant> {
        if self.standing.is_terminal {
            return None;
        }
        if self.is_broken.get() { Some(Instant::default()) } else { self.standing.next_wakeup }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.standing.deadline
    }

    pub(crate) fn phase(&self) -> Phase {
        self.ask(Phase::Drain, Sink::phase)
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.standing.is_terminal
    }

    pub(crate) fn tokens_emitted(&self) -> u64 {
        self.ask(0, Sink::tokens_emitted)
    }

    pub(crate) fn metrics_dropped(&self) -> u64 {
        self.ask(0, Sink::metrics_dropped)
    }

    /// A connection on which something went wrong here is not used again.
    pub(crate) fn has_surplus(&self) -> bool {
        self.ask(true, Sink::has_surplus)
    }

    fn ask<T>(&self, otherwise: T, question: impl FnOnce(&(dyn Sink + 'static)) -> T) -> T {
        if self.is_broken.get() {
            return otherwise;
        }
        let answer = catch_unwind(AssertUnwindSafe(|| question(&*self.sink)));
        answer.unwrap_or_else(|_| {
            self.is_broken.set(true);
            otherwise
        })
    }

    fn tell(
        &mut self,
        now: Instant,
        out: &mut Vec<TokenEvent>,
        news: impl FnOnce(&mut dyn Sink, &mut Vec<TokenEvent>),
    ) {
        self.hear(now, out, |sink, out| {
            news(sink, out);
            sink.standing()
        });
    }

    fn hear(
        &mut self,
        now: Instant,
        out: &mut Vec<TokenEvent>,
        news: impl FnOnce(&mut dyn Sink, &mut Vec<TokenEvent>) -> Standing,
    ) {
        if !self.is_broken.get() {
            let sink = &mut *self.sink;
            match catch_unwind(AssertUnwindSafe(|| news(sink, out))) {
                Ok(standing) => self.standing = standing,
                Err(_) => self.is_broken.set(true),
            }
        }
        if self.is_broken.get() && !self.standing.is_terminal {
            self.standing.is_terminal = true;
            self.fail_for_good(now, out);
        }
    }

    /// The sink knows better than anybody what its error has to say, if it still can.
    fn fail_for_good(&mut self, now: Instant, out: &mut Vec<TokenEvent>) {
        // A panic after the terminal event changes nothing about it.
        if out.last().is_some_and(TokenEvent::is_terminal) {
            return;
        }
        let sink = &mut *self.sink;
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let phase = sink.phase();
            sink.fail(Detail::Internal, phase, None, "", now, out);
        }));
        if !out.last().is_some_and(TokenEvent::is_terminal) {
            let error = WorkerError::new("", Detail::Internal, Phase::Stream);
            out.push(TokenEvent::Error(Box::new(error)));
        }
    }
}

//! Who a response is for: what an exchange tells, and asks.

use worker_adapters_core::dialects::FrameParser;
use worker_adapters_core::error::{Detail, Phase, Processed};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::http::ResponseHead;
use worker_adapters_core::stream::StreamDecoder;
use worker_adapters_core::time::Instant;

/// Where a [`Sink`] stands after it was told something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// [`Sink::is_terminal`].
    pub is_terminal: bool,
    /// [`Sink::next_wakeup`].
    pub next_wakeup: Option<Instant>,
    /// [`Sink::deadline`].
    pub deadline: Option<Instant>,
}

/// Takes in one response. Implemented by every [`StreamDecoder`], whatever its dialect.
///
/// Each call tells the time; events go to `out`. After a terminal event the exchange tells only
/// what is left of the body. What it answers to a question may change only with what it is told:
/// the exchange asks after each call, and remembers.
///
/// A sink that panics ends its own exchange with the detail `internal`, and no other.
pub trait Sink: Send {
    /// The request is on its way: it waits for a place, a connection or the response head.
    fn dispatched(&mut self, now: Instant);
    /// The response head has come.
    fn head(&mut self, head: &ResponseHead<'_>, now: Instant, out: &mut Vec<TokenEvent>);
    /// A part of the body has come.
    fn body(&mut self, bytes: &[u8], now: Instant, out: &mut Vec<TokenEvent>);
    /// The body has ended; `complete` says whether its framing was whole.
    fn finish(&mut self, complete: bool, now: Instant, out: &mut Vec<TokenEvent>);
    /// The exchange has failed; `message` says what is known beyond `detail`, if anything is.
    fn fail(
        &mut self,
        detail: Detail,
        phase: Phase,
        processed: Option<Processed>,
        message: &str,
        now: Instant,
        out: &mut Vec<TokenEvent>,
    );
    /// The caller does not want it any more.
    fn cancel(&mut self, now: Instant, out: &mut Vec<TokenEvent>);
    /// Whether the reader of the events is the slow side.
    fn reader(&mut self, paused: bool, now: Instant);
    /// Lets a clock that has run out end the exchange.
    fn tick(&mut self, now: Instant, out: &mut Vec<TokenEvent>);
    /// When the next clock runs out.
    fn next_wakeup(&self) -> Option<Instant>;
    /// When the task's time budget ends.
    fn deadline(&self) -> Option<Instant>;
    /// Where the response is.
    fn phase(&self) -> Phase;
    /// Whether the terminal event has been produced.
    fn is_terminal(&self) -> bool;
    /// How many tokens the events so far stand for.
    fn tokens_emitted(&self) -> u64;
    /// How many `metrics` events gave way to a later one before anybody had taken them.
    fn metrics_dropped(&self) -> u64 {
        0
    }
    /// Whether something came after the terminal event that did not belong there.
    fn has_surplus(&self) -> bool;

    /// All that the exchange asks after each call.
    fn standing(&self) -> Standing {
        Standing {
            is_terminal: self.is_terminal(),
            next_wakeup: self.next_wakeup(),
            deadline: self.deadline(),
        }
    }

    /// [`body`](Self::body) and [`standing`](Self::standing): a read of a token is one call.
    fn read(&mut self, bytes: &[u8], now: Instant, out: &mut Vec<TokenEvent>) -> Standing {
        self.body(bytes, now, out);
        self.standing()
    }
}

impl<P: FrameParser + Send> Sink for StreamDecoder<P> {
    fn dispatched(&mut self, now: Instant) {
        self.dispatched(now);
    }

    fn head(&mut self, head: &ResponseHead<'_>, now: Instant, out: &mut Vec<TokenEvent>) {
        self.head(head, now, out);
    }

    fn body(&mut self, bytes: &[u8], now: Instant, out: &mut Vec<TokenEvent>) {
        self.feed(bytes, now, out);
    }

    fn finish(&mut self, complete: bool, now: Instant, out: &mut Vec<TokenEvent>) {
        self.finish(complete, now, out);
    }

    fn fail(
        &mut self,
        detail: Detail,
        phase: Phase,
        processed: Option<Processed>,
        message: &str,
        now: Instant,
        out: &mut Vec<TokenEvent>,
    ) {
        self.fail(detail, phase, processed, message, now, out);
    }

    fn cancel(&mut self, now: Instant, out: &mut Vec<TokenEvent>) {
        self.cancel(now, out);
    }

    fn reader(&mut self, paused: bool, now: Instant) {
        self.reader(paused, now);
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<TokenEvent>) {
        self.tick(now, out);
    }

    fn next_wakeup(&self) -> Option<Instant> {
        self.next_wakeup()
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline()
    }

    fn phase(&self) -> Phase {
        self.phase()
    }

    fn is_terminal(&self) -> bool {
        self.is_terminal()
    }

    fn tokens_emitted(&self) -> u64 {
        self.tokens_emitted()
    }

    fn metrics_dropped(&self) -> u64 {
        self.metrics_dropped()
    }

    fn has_surplus(&self) -> bool {
        self.dropped_after_end() > 0
    }
}

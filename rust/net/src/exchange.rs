//! One request and its response, without the socket: what arrives, what is due, what waits to be
//! taken.

mod http2;

use std::task::{Context, Poll, Waker};
use std::time::Duration;

pub use worker_adapters_core::engine_error::ERROR_BODY_BYTES;
use worker_adapters_core::error::{Detail, Phase, Processed};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::http::ResponseHead;
use worker_adapters_core::time::Instant;

use crate::guard::Guard;
use crate::http1::{Item, Limits, ResponseReader};
use crate::http2::Stream;
use crate::sink::Sink;

/// How many events wait for the reader before the socket is no longer read.
pub const QUEUE_EVENTS: usize = 256;

/// How much of the body those events may have come from, where they are fewer.
pub const QUEUE_BYTES: usize = 32 << 10;

/// How long the body of an error answer may take once its head is there.
pub const ERROR_BODY_TIME: Duration = Duration::from_secs(2);

/// How much is read after the terminal event, to use the connection again.
pub const DRAIN_BYTES: usize = 64 << 10;

/// How long that may take.
pub const DRAIN_TIME: Duration = Duration::from_millis(250);

/// How long before the deadline bytes are taken to have come that waited when it passed.
const JUST_BEFORE: Duration = Duration::from_micros(1);

/// How far an exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Waits for a place.
    Queue,
    Resolve,
    Connect,
    Tls,
    Write,
    Head,
    Body,
    /// The terminal event is there; what is left of the body is read away.
    Drain,
    /// The connection has been given back or closed.
    Over,
}

impl Step {
    fn phase(self) -> Phase {
        match self {
            Self::Queue => Phase::Queue,
            Self::Resolve => Phase::Resolve,
            Self::Connect => Phase::Connect,
            Self::Tls => Phase::Tls,
            Self::Write => Phase::Write,
            Self::Head => Phase::Head,
            Self::Body => Phase::Stream,
            Self::Drain | Self::Over => Phase::Drain,
        }
    }
}

/// What is to become of the connection after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is still needed.
    Hold,
    /// It can carry another request.
    Keep,
    /// It cannot.
    Close,
}

#[expect(clippy::struct_excessive_bools, reason = "independent facts about one exchange")]
pub(crate) struct Exchange {
    pub(crate) pool: usize,
    /// Whether it is counted among those under way.
    pub(crate) has_place: bool,
    /// When another address is to be tried.
    pub(crate) next_attempt: Option<Instant>,
    pub(crate) connection: Option<usize>,
    /// Its part of a connection that it shares.
    pub(crate) stream: Option<Box<Stream>>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) tls_timeout: Option<Duration>,
    /// The request says that nothing follows it on its connection.
    pub(crate) is_last: bool,
    /// Under which instant and number the timers know it.
    pub(crate) armed: Option<(Instant, u64)>,
    /// Its number among those who wait for a place, or for a stream.
    pub(crate) waiting: Option<u64>,
    /// It is to be driven in the next turn, whatever the poll tells.
    pub(crate) is_unread: bool,
    /// Nobody will take its events; it only waits for the end of the body.
    pub(crate) is_orphan: bool,
    /// The queue was full, so the socket may hold more than the poll will tell of.
    pub(crate) is_paused: bool,
    pub(crate) step: Step,
    step_due: Option<Instant>,
    request: Vec<u8>,
    written: usize,
    is_sent: bool,
    sink: Guard,
    reader: ResponseReader,
    status: Option<u16>,
    /// How much of the body is still read, where that is bounded.
    allowance: Option<usize>,
    queue: Vec<TokenEvent>,
    /// How much of the body has come since the queue was last empty.
    queued_bytes: usize,
    waker: Option<Waker>,
    /// The waker before it, to be dropped when no lock is held: a task may go with it.
    pub(crate) displaced: Option<Waker>,
    is_awaited: bool,
    /// Whoever waits does so for the response head, not for events.
    is_head_awaited: bool,
    /// Whether the waker has been told of the terminal event.
    is_end_told: bool,
}

impl Exchange {
    pub(crate) fn new(pool: usize, request: Vec<u8>, sink: Box<dyn Sink>, limits: Limits) -> Self {
        Self {
            pool,
            has_place: false,
            next_attempt: None,
            connection: None,
            stream: None,
            connect_timeout: None,
            tls_timeout: None,
            is_last: false,
            armed: None,
            waiting: None,
            is_unread: false,
            is_orphan: false,
            is_paused: false,
            step: Step::Queue,
            step_due: None,
            request,
            written: 0,
            is_sent: false,
            sink: Guard::new(sink),
            reader: ResponseReader::new(false, limits),
            status: None,
            allowance: None,
            queue: Vec::new(),
            queued_bytes: 0,
            waker: None,
            displaced: None,
            is_awaited: false,
            is_head_awaited: false,
            is_end_told: false,
        }
    }

    pub(crate) fn sink(&self) -> &Guard {
        &self.sink
    }

    pub(crate) fn status(&self) -> Option<u16> {
        self.status
    }

    pub(crate) fn phase(&self) -> Phase {
        if self.step < Step::Body { self.step.phase() } else { self.sink.phase() }
    }

    /// Whether the engine can have seen anything of the request.
    pub(crate) fn is_sent(&self) -> bool {
        self.is_sent
    }

    /// Begins, unless there is nothing left to do.
    pub(crate) fn dispatched(&mut self, now: Instant) -> Next {
        self.sink.dispatched(now, &mut self.queue);
        if self.sink.deadline().is_some_and(|deadline| deadline <= now) {
            self.fail(Detail::Deadline, now);
        }
        if self.sink.is_terminal() { Next::Close } else { Next::Hold }
    }

    /// Begins a step that may last `bound`.
    pub(crate) fn enter(&mut self, step: Step, bound: Option<Duration>, now: Instant) {
        self.step = step;
        self.step_due = bound.map(|bound| now.saturating_add(bound));
    }

    /// Ends it: its connection is somebody else's from here on.
    pub(crate) fn end(&mut self) {
        self.step = Step::Over;
        self.step_due = None;
        self.next_attempt = None;
        self.request = Vec::new();
    }

    /// Begins a step within the bound of the one before.
    pub(crate) fn advance(&mut self, step: Step) {
        self.step = step;
    }

    /// When a clock runs out next, or another address is to be tried.
    pub(crate) fn due(&self) -> Option<Instant> {
        if self.step == Step::Over {
            return None;
        }
        self.step_due.into_iter().chain(self.next_attempt).chain(self.sink.next_wakeup()).min()
    }

    // The request.

    pub(crate) fn is_writing(&self) -> bool {
        self.step == Step::Write || !self.unwritten().is_empty()
    }

    pub(crate) fn unwritten(&self) -> &[u8] {
        self.request.get(self.written..).unwrap_or_default()
    }

    pub(crate) fn wrote(&mut self, size: usize, now: Instant) {
        self.is_sent = true;
        self.written = self.written.saturating_add(size).min(self.request.len());
        if self.written == self.request.len() {
            // It may hold a key and a prompt, and is not needed any more.
            self.request = Vec::new();
            self.written = 0;
            if self.step == Step::Write {
                self.enter(Step::Head, None, now);
            }
        }
    }

    // The response.

    /// Whether more may be read.
    pub(crate) fn wants_bytes(&self) -> bool {
        match self.step {
            Step::Write | Step::Head | Step::Body => self.has_room(),
            // No event comes any more, whoever has not taken the last ones.
            Step::Drain => true,
            Step::Queue | Step::Resolve | Step::Connect | Step::Tls | Step::Over => false,
        }
    }

    /// Whether its socket waits for a reader that has taken what there was.
    pub(crate) fn is_held_up(&self) -> bool {
        self.is_paused && self.wants_bytes()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.queue.is_empty()
            || (self.queue.len() < QUEUE_EVENTS && self.queued_bytes < QUEUE_BYTES)
    }

    /// Bytes have come.
    pub(crate) fn bytes(&mut self, mut input: &[u8], now: Instant) -> Next {
        let at = self.arrival(now);
        loop {
            match self.reader.next(&mut input) {
                Ok(Item::NeedMore) => break,
                Ok(Item::Head(head)) => {
                    let status = head.status;
                    let headers: Vec<_> = head.headers().collect();
                    let head = ResponseHead { status, headers: &headers };
                    self.sink.head(&head, at, &mut self.queue);
                    self.answered(status, now);
                }
                Ok(Item::Body(bytes)) => {
                    self.sink.body(bytes, at, &mut self.queue);
                    if !self.takes(bytes.len()) {
                        self.sink.finish(false, at, &mut self.queue);
                        return Next::Close;
                    }
                }
                Ok(Item::End) => {
                    self.sink.finish(true, at, &mut self.queue);
                    return self.settled(now);
                }
                Err(fault) => {
                    let detail = fault.detail();
                    if detail == Detail::Truncated {
                        self.sink.finish(false, at, &mut self.queue);
                    } else {
                        self.fail(detail, at);
                    }
                    return Next::Close;
                }
            }
        }
        self.settled(now)
    }

    /// The head has come.
    fn answered(&mut self, status: u16, now: Instant) {
        self.status = Some(status);
        self.step = Step::Body;
        self.step_due = None;
        if status != 200 {
            self.allowance = Some(ERROR_BODY_BYTES);
            self.step_due = Some(now.saturating_add(ERROR_BODY_TIME));
        }
    }

    /// Counts what has come of the body; false when it is more than is read of it.
    #[inline]
    fn takes(&mut self, bytes: usize) -> bool {
        self.queued_bytes =
            if self.queue.is_empty() { 0 } else { self.queued_bytes.saturating_add(bytes) };
        let Some(allowance) = &mut self.allowance else { return true };
        let left = allowance.checked_sub(bytes);
        *allowance = left.unwrap_or(0);
        left.is_some()
    }

    /// The peer has closed its side; `clean` says whether it said so.
    pub(crate) fn closed(&mut self, clean: bool, now: Instant) -> Next {
        let at = self.arrival(now);
        if self.step < Step::Body {
            self.fail(Detail::Reset, at);
        } else {
            let complete = clean && self.reader.eof().is_ok();
            self.sink.finish(complete, at, &mut self.queue);
        }
        Next::Close
    }

    /// The connection has broken.
    pub(crate) fn broken(&mut self, detail: Detail, message: &str, now: Instant) -> Next {
        let at = self.arrival(now);
        self.fail_with(detail, message, at);
        Next::Close
    }

    /// The exchange cannot go on, for this reason.
    pub(crate) fn fail(&mut self, detail: Detail, now: Instant) {
        self.fail_with(detail, "", now);
    }

    pub(crate) fn fail_with(&mut self, detail: Detail, message: &str, now: Instant) {
        let processed = match self.status {
            Some(_) => None,
            // Who refuses our certificate reads nothing of what came with it.
            None if detail == Detail::Tls => None,
            None if self.is_sent() => Some(Processed::Unknown),
            None => Some(Processed::No),
        };
        self.sink.fail(detail, self.phase(), processed, message, now, &mut self.queue);
    }

    pub(crate) fn cancel(&mut self, now: Instant) {
        // What nobody has taken is taken back; a terminal event that was there stands.
        self.queue.retain(TokenEvent::is_terminal);
        self.sink.cancel(now, &mut self.queue);
    }

    /// Lets the clocks that have run out strike.
    pub(crate) fn strike(&mut self, now: Instant) -> Next {
        if self.step_due.is_some_and(|due| due <= now) {
            match self.step {
                Step::Queue => self.fail(Detail::Saturated, now),
                Step::Resolve | Step::Connect => self.fail(Detail::ConnectTimeout, now),
                Step::Tls => self.fail(Detail::TlsTimeout, now),
                Step::Body => self.sink.finish(false, now, &mut self.queue),
                Step::Write | Step::Head | Step::Drain | Step::Over => {}
            }
            return Next::Close;
        }
        if self.sink.next_wakeup().is_none_or(|due| due > now) {
            return Next::Hold;
        }
        match self.step {
            // Where the deadline is what has passed, it is the deadline that is reported.
            Step::Queue => self.fail(Detail::Saturated, now),
            Step::Resolve | Step::Connect => self.fail(Detail::ConnectTimeout, now),
            Step::Tls => self.fail(Detail::TlsTimeout, now),
            Step::Write => self.fail(Detail::WriteTimeout, now),
            Step::Head if self.reader.has_partial_head() => {
                self.fail(Detail::HeaderTimeout, now);
            }
            _ => self.sink.tick(now, &mut self.queue),
        }
        if self.sink.is_terminal() { Next::Close } else { Next::Hold }
    }

    pub(crate) fn pause(&mut self, paused: bool, now: Instant) {
        if self.is_paused != paused {
            self.is_paused = paused;
            self.sink.reader(paused, now, &mut self.queue);
        }
    }

    /// What waited when the deadline passed came in time, however late we look.
    fn arrival(&self, now: Instant) -> Instant {
        match self.sink.deadline() {
            Some(deadline) if deadline <= now => deadline.saturating_sub(JUST_BEFORE),
            _ => now,
        }
    }

    /// What the connection is good for after some input.
    fn settled(&mut self, now: Instant) -> Next {
        if !self.sink.is_terminal() {
            return Next::Hold;
        }
        let has_failed =
            self.queue.last().is_some_and(|event| matches!(event, TokenEvent::Error(_)));
        if self.reader.is_complete() {
            let is_whole = self.unwritten().is_empty() && !self.sink.has_surplus();
            let is_sound = !has_failed || self.is_plain_refusal();
            let can_go_on = !self.is_last && self.reader.keeps_alive();
            return if is_whole && is_sound && can_go_on { Next::Keep } else { Next::Close };
        }
        if has_failed || self.sink.has_surplus() || self.reader.is_close_delimited() {
            return Next::Close;
        }
        if self.step != Step::Drain {
            self.allowance = Some(DRAIN_BYTES);
            self.enter(Step::Drain, Some(DRAIN_TIME), now);
        }
        Next::Hold
    }

    /// Whether the peer has only said no, and goes on as if nothing had happened.
    fn is_plain_refusal(&self) -> bool {
        // 408 and 425 speak of the connection as well.
        self.status
            .is_some_and(|status| matches!(status, 400..=599 if status != 408 && status != 425))
    }

    // The reader of the events.

    /// Moves what has come to `out`; `Pending` when nothing has and something may.
    pub(crate) fn poll_take(
        &mut self,
        context: &mut Context<'_>,
        out: &mut Vec<TokenEvent>,
    ) -> Poll<()> {
        if self.take(out) || self.sink.is_terminal() {
            self.is_awaited = false;
            return Poll::Ready(());
        }
        self.wait(context);
        Poll::Pending
    }

    /// `Ready` when more than `seen` events wait, as many as there is room for, or no more come.
    pub(crate) fn poll_beyond(&mut self, seen: usize, context: &mut Context<'_>) -> Poll<()> {
        if self.queue.len() > seen || !self.has_room() || self.sink.is_terminal() {
            return Poll::Ready(());
        }
        self.wait(context);
        Poll::Pending
    }

    /// `Ready` when the response is known to be a stream, or there is a terminal event.
    pub(crate) fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.status == Some(200) || self.sink.is_terminal() {
            return Poll::Ready(());
        }
        self.wait(context);
        self.is_head_awaited = true;
        Poll::Pending
    }

    fn wait(&mut self, context: &mut Context<'_>) {
        match &mut self.waker {
            Some(waker) if waker.will_wake(context.waker()) => {}
            waker => self.displaced = waker.replace(context.waker().clone()),
        }
        self.is_awaited = true;
        self.is_head_awaited = false;
    }

    /// Moves what has come to `out`; whether anything had.
    pub(crate) fn take(&mut self, out: &mut Vec<TokenEvent>) -> bool {
        let has_events = !self.queue.is_empty();
        out.append(&mut self.queue);
        self.queued_bytes = 0;
        if self.queue.capacity() > QUEUE_EVENTS {
            // What a burst took is given back: ten thousand streams had theirs once.
            self.queue = Vec::new();
        }
        has_events
    }

    /// How many events wait to be taken.
    pub(crate) fn pending(&self) -> usize {
        self.queue.len()
    }

    /// Whoever is to be woken, if there is something to wake for. The terminal event is told of
    /// even to whoever does not wait at the moment.
    pub(crate) fn waker(&mut self) -> Option<&Waker> {
        let is_terminal = self.sink.is_terminal();
        let has_something =
            !self.queue.is_empty() || (self.is_head_awaited && self.status == Some(200));
        let is_news = is_terminal && !self.is_end_told;
        self.is_end_told |= is_terminal;
        if !(is_news || (self.is_awaited && (has_something || is_terminal))) {
            return None;
        }
        self.is_awaited = false;
        self.is_head_awaited = false;
        self.waker.as_ref()
    }
}

//! A response that comes as a stream of a shared connection.

use worker_adapters_core::error::{Detail, Processed};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::http::ResponseHead;
use worker_adapters_core::time::Instant;

use super::{DRAIN_BYTES, DRAIN_TIME, Exchange, Next, Step};
use crate::http2::{Fault, Item, Stream};

impl Exchange {
    /// The request, to be sent in another form.
    pub(crate) fn take_request(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.request)
    }

    /// The request is on its way as this stream.
    pub(crate) fn sent_as(&mut self, stream: Stream, now: Instant) {
        self.stream = Some(Box::new(stream));
        self.is_sent = true;
        self.enter(Step::Head, None, now);
    }

    /// What the exchange has just failed of, with what is known of it.
    pub(crate) fn failure(&self) -> Option<(Detail, String)> {
        match self.queue.last() {
            Some(TokenEvent::Error(error)) => Some((error.detail, error.message.clone())),
            _ => None,
        }
    }

    /// Takes in what has come of the response. [`Next::Keep`] is for a stream that is complete,
    /// [`Next::Close`] for one of which no more is wanted.
    pub(crate) fn follow(&mut self, stream: &mut Stream, now: Instant) -> Next {
        let at = self.arrival(now);
        loop {
            if !self.wants_bytes() {
                if stream.hold() {
                    self.pause(true, now);
                }
                return Next::Hold;
            }
            match stream.next() {
                None => return Next::Hold,
                Some(Item::Head(head)) => {
                    let status = head.status.as_u16();
                    let headers: Vec<_> = head
                        .headers
                        .iter()
                        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
                        .collect();
                    let head = ResponseHead { status, headers: &headers };
                    self.sink.head(&head, at, &mut self.queue);
                    self.answered(status, now);
                }
                Some(Item::Data(bytes)) => {
                    self.sink.body(&bytes, at, &mut self.queue);
                    stream.release(bytes.len());
                    if !self.takes(bytes.len()) {
                        self.sink.finish(false, at, &mut self.queue);
                        return Next::Close;
                    }
                }
                Some(Item::End) => {
                    self.sink.finish(true, at, &mut self.queue);
                    return Next::Keep;
                }
                Some(Item::Failed(fault)) => {
                    self.faulted(fault, at);
                    return Next::Close;
                }
            }
            if !self.sink.is_terminal() {
                continue;
            }
            if self.failure().is_some() || self.sink.has_surplus() {
                return Next::Close;
            }
            // The server most likely ends it in the next frame, and need not be told to.
            if self.step != Step::Drain {
                self.allowance = Some(DRAIN_BYTES);
                self.enter(Step::Drain, Some(DRAIN_TIME), now);
            }
        }
    }

    fn faulted(&mut self, fault: Fault, at: Instant) {
        match fault {
            // Whatever the server says now, it has answered.
            Fault::Unprocessed if self.status.is_some() => self.fail(Detail::Reset, at),
            Fault::Unprocessed => self.fail_unprocessed(at),
            Fault::Broken(loss) => self.fail_with(loss.detail, &loss.message, at),
        }
    }

    /// The exchange cannot go on, and nobody has looked at the request.
    pub(crate) fn fail_unprocessed(&mut self, at: Instant) {
        let (phase, processed) = (self.phase(), Some(Processed::No));
        let message = "the server says that it has not looked at the request";
        self.sink.fail(Detail::Unavailable, phase, processed, message, at, &mut self.queue);
    }
}

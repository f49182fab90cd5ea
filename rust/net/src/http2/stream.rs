//! One exchange's part of a connection.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::response::Parts;
use worker_adapters_core::error::Detail;

use super::session::Signal;

/// How much of what was held is handed on at once, as one frame would be.
const PIECE_BYTES: usize = 16 << 10;

/// What a stream brought.
pub(crate) enum Item {
    Head(Parts),
    Data(Bytes),
    /// The response is complete.
    End,
    Failed(Fault),
}

/// Why a stream cannot go on.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The server says that it has not looked at the request (RFC 9113, section 8.7).
    Unprocessed,
    Broken(Loss),
}

/// What became of a stream or a connection, and what is known beyond that.
#[derive(Clone, Debug)]
pub(crate) struct Loss {
    pub(crate) detail: Detail,
    pub(crate) message: Arc<str>,
}

impl Default for Loss {
    fn default() -> Self {
        Detail::Reset.into()
    }
}

impl From<Detail> for Loss {
    fn from(detail: Detail) -> Self {
        Self { detail, message: "".into() }
    }
}

pub(crate) struct Stream {
    waker: Waker,
    signal: Arc<Signal>,
    sender: SendStream<Bytes>,
    response: Response,
    /// Data that nobody had room for, taken out of h2: there, many small frames of one stream would
    /// use up what the connection may hold of them, and take every other stream down. At most a
    /// stream's window, since its capacity is not given back.
    held: BytesMut,
    end: Option<Result<(), Fault>>,
}

enum Response {
    Awaited(ResponseFuture),
    Body(RecvStream),
}

impl Stream {
    /// `waker` is told when something has come.
    pub(super) fn new(
        response: ResponseFuture,
        sender: SendStream<Bytes>,
        signal: Arc<Signal>,
        waker: Waker,
    ) -> Self {
        let response = Response::Awaited(response);
        Self { waker, signal, sender, response, held: BytesMut::new(), end: None }
    }

    /// What has come next; None when nothing has, and the waker will be told.
    pub(crate) fn next(&mut self) -> Option<Item> {
        if !self.held.is_empty() {
            let piece = self.held.split_to(self.held.len().min(PIECE_BYTES));
            return Some(Item::Data(piece.freeze()));
        }
        let item = match &self.end {
            Some(Ok(())) => Item::End,
            Some(Err(fault)) => Item::Failed(fault.clone()),
            None => self.poll()?,
        };
        match &item {
            Item::End => self.end = Some(Ok(())),
            Item::Failed(fault) => self.end = Some(Err(fault.clone())),
            Item::Head(_) | Item::Data(_) => {}
        }
        Some(item)
    }

    /// Gives the server leave to send so much more.
    pub(crate) fn release(&mut self, bytes: usize) {
        if let Response::Body(body) = &mut self.response {
            // It can only fail for more than was received.
            let _ = body.flow_control().release_capacity(bytes);
        }
    }

    /// Takes in what has come of the body without giving any of it out; whether there is any.
    pub(crate) fn hold(&mut self) -> bool {
        while self.end.is_none() && matches!(self.response, Response::Body(_)) {
            match self.poll() {
                Some(Item::Data(bytes)) => self.held.extend_from_slice(&bytes),
                Some(Item::End) => self.end = Some(Ok(())),
                Some(Item::Failed(fault)) => self.end = Some(Err(fault)),
                Some(Item::Head(_)) | None => break,
            }
        }
        !self.held.is_empty() || self.end.is_some()
    }

    /// Has the server stop, unless it has.
    pub(crate) fn cancel(mut self) {
        if self.end.is_none() {
            self.sender.send_reset(Reason::CANCEL);
        }
    }

    fn poll(&mut self) -> Option<Item> {
        let mut context = Context::from_waker(&self.waker);
        let outcome = match &mut self.response {
            Response::Awaited(response) => match Pin::new(response).poll(&mut context) {
                Poll::Pending => return None,
                Poll::Ready(Ok(response)) => {
                    let (head, body) = response.into_parts();
                    self.response = Response::Body(body);
                    Ok(Item::Head(head))
                }
                Poll::Ready(Err(error)) => Err(error),
            },
            Response::Body(body) => match body.poll_data(&mut context) {
                Poll::Pending => return None,
                Poll::Ready(Some(Ok(bytes))) => Ok(Item::Data(bytes)),
                // Trailers, where there are any, have come too. No engine says anything in them.
                Poll::Ready(None) => Ok(Item::End),
                Poll::Ready(Some(Err(error))) => Err(error),
            },
        };
        Some(outcome.unwrap_or_else(|error| Item::Failed(self.fault(&error))))
    }

    fn fault(&self, error: &h2::Error) -> Fault {
        // After a GOAWAY h2 fails the streams above its last id with it, and lets the others be.
        if error.is_remote()
            && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
        {
            Fault::Unprocessed
        } else if error.is_library() {
            // What h2 gives as its reason where a peer sends more of something than makes sense.
            let is_flood = error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
            let detail = if is_flood { Detail::Flood } else { Detail::Protocol };
            Fault::Broken(detail.into())
        } else if error.is_io() || error.is_remote() {
            Fault::Broken(self.signal.lost())
        } else {
            Fault::Broken(Detail::Internal.into())
        }
    }
}

// What has been generated is nobody's business.
impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

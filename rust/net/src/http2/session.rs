//! A connection that carries many exchanges.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use mio::Registry;

use super::pipe::Pipe;
use super::request::from_http1;
use super::stream::{Loss, Stream};
use crate::link::Link;
use crate::state::READ_BYTES;
use crate::target::TargetConfig;

/// What one stream may send before its reader has taken any of it: the protocol's own default, which
/// holds from the first byte on.
const STREAM_WINDOW: u32 = 65_535;

/// The largest window there is (RFC 9113, section 6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// More streams than this do not fit the largest window.
const MAX_STREAMS: usize = (MAX_WINDOW / STREAM_WINDOW) as usize;

/// What h2 may hold of small DATA frames, in its count of 256 bytes less their length for each: as
/// many of one byte as one read can bring, since everything is taken out after each read.
const DATA_FRAME_BUDGET: usize = READ_BYTES / 10 * 256;

/// How many streams are remembered after we have reset them, and for how long: what the server had
/// sent before it heard of it is no offence.
const RESET_STREAMS: usize = 1024;
const RESET_TIME: Duration = Duration::from_secs(10);

/// How many stream errors of the server's are answered before the connection is.
const STREAM_ERRORS: usize = 1024;

/// What h2 takes the server's limit on streams to be until the server has named it. No server can
/// name this.
const NO_LIMIT_YET: usize = usize::MAX - 1;

/// Whether a connection takes another exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Now,
    /// Once the server has said how many it takes.
    Soon,
    /// When one of those that it carries has ended.
    Later,
    Never,
}

/// What wakers tell a session, from wherever h2 wakes them: always inside the reactor.
#[derive(Debug, Default)]
pub(super) struct Signal {
    /// The connection has something to do.
    is_stirred: AtomicBool,
    /// Exchanges whose streams have brought something.
    ready: Mutex<Vec<usize>>,
    lost: OnceLock<Loss>,
}

impl Signal {
    /// What became of the connection.
    pub(super) fn lost(&self) -> Loss {
        self.lost.get().cloned().unwrap_or_default()
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.is_stirred.store(true, Ordering::Relaxed);
    }
}

struct StreamSignal {
    exchange: usize,
    signal: Arc<Signal>,
}

impl Wake for StreamSignal {
    fn wake(self: Arc<Self>) {
        self.signal.ready.lock().unwrap_or_else(PoisonError::into_inner).push(self.exchange);
    }
}

/// Why a request was not sent.
#[derive(Debug)]
pub(crate) enum NotSent {
    /// HTTP/2 cannot say it.
    Invalid,
    /// The connection takes no more.
    Closed,
}

pub(crate) struct Session {
    pipe: Pipe,
    connection: Connection<Pipe, Bytes>,
    requests: SendRequest<Bytes>,
    signal: Arc<Signal>,
    waker: Waker,
    /// How many exchanges have a stream on it.
    pub(crate) streams: usize,
    max_streams: usize,
    /// It is to be pumped before the present turn is over.
    pub(crate) is_listed: bool,
    /// It has read what it may in the present turn.
    pub(crate) is_unread: bool,
}

impl Session {
    /// Speaks HTTP/2 from here on; None when h2 will not.
    pub(crate) fn begin(link: Link, config: &TargetConfig) -> Option<Self> {
        let max_streams = config.max_exchanges.clamp(1, MAX_STREAMS);
        let window = STREAM_WINDOW * u32::try_from(max_streams).unwrap_or(1);
        let head_bytes = u32::try_from(config.http.head_bytes).unwrap_or(u32::MAX);
        let pipe = Pipe::new(link);
        let signal = Arc::new(Signal { is_stirred: AtomicBool::new(true), ..Signal::default() });
        let waker = Waker::from(Arc::clone(&signal));
        let handshake = Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(window)
            .max_header_list_size(head_bytes)
            .max_concurrent_reset_streams(RESET_STREAMS)
            .reset_stream_duration(RESET_TIME)
            .max_local_error_reset_streams(Some(STREAM_ERRORS))
            .data_frame_budget(DATA_FRAME_BUDGET)
            .initial_max_send_streams(NO_LIMIT_YET)
            .handshake::<_, Bytes>(pipe.clone());
        // Its preface goes into memory, so that there is nothing to wait for.
        match pin!(handshake).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(Ok((requests, connection))) => Some(Self {
                pipe,
                connection,
                requests,
                signal,
                waker,
                streams: 0,
                max_streams,
                is_listed: false,
                is_unread: false,
            }),
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }

    /// The poll says that the socket is ready; `closed` that the peer has closed its side.
    pub(crate) fn ready(&mut self, closed: bool) {
        self.pipe.wire().link().ready(closed);
        self.signal.is_stirred.store(true, Ordering::Relaxed);
    }

    /// Whether it takes another exchange.
    pub(crate) fn room(&mut self) -> Room {
        match self.requests.poll_ready(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(Ok(())) => match self.requests.current_max_send_streams() {
                // Any server takes one.
                NO_LIMIT_YET if self.streams == 0 => Room::Now,
                NO_LIMIT_YET => Room::Soon,
                limit if self.streams < limit.min(self.max_streams) => Room::Now,
                _ => Room::Later,
            },
            Poll::Ready(Err(_)) => Room::Never,
            Poll::Pending => Room::Later,
        }
    }

    /// Sends an exchange's request, which is written as HTTP/1.1.
    pub(crate) fn request(&mut self, exchange: usize, bytes: Vec<u8>) -> Result<Stream, NotSent> {
        let (head, body) = from_http1(bytes).ok_or(NotSent::Invalid)?;
        let is_empty = body.is_empty();
        let (response, mut sender) =
            self.requests.send_request(head, is_empty).map_err(|_| NotSent::Closed)?;
        if !is_empty {
            // A stream that has ended meanwhile says so when it is asked for its response.
            let _ = sender.send_data(body, true);
        }
        self.streams += 1;
        let signal = Arc::clone(&self.signal);
        let waker = Waker::from(Arc::new(StreamSignal { exchange, signal }));
        Ok(Stream::new(response, sender, Arc::clone(&self.signal), waker))
    }

    /// Reads and writes what there is, within bounds; false when the connection is over.
    pub(crate) fn turn(&mut self) -> bool {
        self.pipe.wire().allow(if self.is_unread { 0 } else { READ_BYTES });
        loop {
            self.signal.is_stirred.store(false, Ordering::Relaxed);
            let mut context = Context::from_waker(&self.waker);
            let is_over = Pin::new(&mut self.connection).poll(&mut context).is_ready();
            let mut wire = self.pipe.wire();
            let has_room_again = wire.flush();
            if let Some(loss) = wire.lost() {
                let _ = self.signal.lost.set(loss.clone());
            }
            if is_over {
                return false;
            }
            if !has_room_again && !self.signal.is_stirred.load(Ordering::Relaxed) {
                return true;
            }
        }
    }

    /// Whether there is something to do now.
    pub(crate) fn is_stirred(&self) -> bool {
        let may_read = !self.is_unread && self.pipe.wire().is_held_back();
        may_read || self.signal.is_stirred.load(Ordering::Relaxed)
    }

    /// Exchanges whose streams have brought something.
    pub(crate) fn take_ready(&mut self) -> Vec<usize> {
        std::mem::take(&mut *self.signal.ready.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the connection, telling the peer so.
    pub(crate) fn close(self, registry: &Registry) {
        let Self { pipe, mut connection, requests, waker, .. } = self;
        drop(requests);
        pipe.wire().allow(0);
        // With nobody left to ask for anything, h2 says goodbye.
        let _ = Pin::new(&mut connection).poll(&mut Context::from_waker(&waker));
        drop(connection);
        pipe.close(registry);
    }
}

//! What h2 reads from and writes to.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use mio::Registry;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::Loss;
use crate::link::{Got, Link};
use crate::state::tls_error;
use crate::tls;

/// How much may wait to be sent before h2 has to wait with more.
const OUT_BYTES: usize = 64 << 10;

/// How much is read at once: a TLS record.
const RECORD_BYTES: usize = 16 << 10;

/// A socket under TLS as h2 sees it. Never wakes anybody: whoever polls h2 knows when to.
#[derive(Clone, Debug)]
pub(super) struct Pipe(Arc<Mutex<Wire>>);

#[derive(Debug)]
pub(super) struct Wire {
    link: Link,
    /// How much h2 may still read.
    allowance: usize,
    /// It would have read more.
    is_held_back: bool,
    scratch: Box<[u8]>,
    out: Vec<u8>,
    /// How much of `out` the socket has taken.
    sent: usize,
    /// What became of the socket.
    lost: Option<Loss>,
}

impl Pipe {
    pub(super) fn new(link: Link) -> Self {
        Self(Arc::new(Mutex::new(Wire {
            link,
            allowance: 0,
            is_held_back: false,
            scratch: vec![0; RECORD_BYTES].into(),
            out: Vec::new(),
            sent: 0,
            lost: None,
        })))
    }

    /// Sends what the socket takes at once, and closes it. Nobody else may hold the pipe any more.
    pub(super) fn close(self, registry: &Registry) {
        if let Some(wire) = Arc::into_inner(self.0) {
            let mut wire = wire.into_inner().unwrap_or_else(PoisonError::into_inner);
            wire.flush();
            wire.link.close(registry);
        }
    }

    /// A panic elsewhere cannot leave behind anything that is unsafe to look at.
    pub(super) fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire {
    pub(super) fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// Has h2 read up to so many bytes from here on.
    pub(super) fn allow(&mut self, bytes: usize) {
        self.allowance = bytes;
        self.is_held_back = false;
    }

    /// Whether it would have read more than it was allowed to.
    pub(super) fn is_held_back(&self) -> bool {
        self.is_held_back
    }

    /// Why the socket is of no more use, if it is not.
    pub(super) fn lost(&self) -> Option<&Loss> {
        self.lost.as_ref()
    }

    /// Sends what the socket takes. Whether h2 has to be polled for what it had to wait with, or to
    /// hear that the socket takes nothing any more.
    pub(super) fn flush(&mut self) -> bool {
        if self.lost.is_some() {
            return false;
        }
        let was_full = self.out.len() >= OUT_BYTES;
        match self.send() {
            Ok(true) => was_full,
            Ok(false) => false,
            Err(_) => {
                self.lost = Some(Loss::default());
                true
            }
        }
    }

    /// Whether everything has been sent.
    fn send(&mut self) -> io::Result<bool> {
        while let Some(rest @ [_, ..]) = self.out.get(self.sent..) {
            let size = self.link.write(rest)?;
            if size == 0 {
                return Ok(false);
            }
            self.sent += size;
        }
        // It may hold a key and a prompt, and is not needed any more.
        self.out = Vec::new();
        self.sent = 0;
        self.link.flush()
    }

    fn read(&mut self, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.link.may_have_more() {
            return self.nothing();
        }
        let room = into.remaining().min(self.allowance).min(self.scratch.len());
        if room == 0 {
            self.is_held_back = true;
            return Poll::Pending;
        }
        let scratch = self.scratch.get_mut(..room).unwrap_or_default();
        match self.link.read(scratch) {
            Ok(Got::Bytes(size)) => {
                self.allowance -= size;
                into.put_slice(scratch.get(..size).unwrap_or_default());
                Poll::Ready(Ok(()))
            }
            Ok(Got::Nothing) => self.nothing(),
            // Every message says for itself where it ends, so that it does not matter whether TLS
            // was closed properly.
            Ok(Got::Closed | Got::Cut) => Poll::Ready(Ok(())),
            Err(error) => {
                self.lost = Some(tls_error(&error).map_or_else(Loss::default, |fault| Loss {
                    detail: tls::late_fault_detail(fault),
                    message: tls::fault_message(fault).into(),
                }));
                Poll::Ready(Err(error))
            }
        }
    }

    /// What the peer said before it went has been read.
    fn nothing(&self) -> Poll<io::Result<()>> {
        match &self.lost {
            None => Poll::Pending,
            Some(_) => Poll::Ready(Err(ErrorKind::BrokenPipe.into())),
        }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.wire().read(into)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut wire = self.wire();
        let room = OUT_BYTES.saturating_sub(wire.out.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        // Once the socket is lost nobody needs it, and h2 is to go on to what can still be read.
        if wire.lost.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        if taken.is_empty() && !bytes.is_empty() {
            return Poll::Pending;
        }
        wire.out.extend_from_slice(taken);
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

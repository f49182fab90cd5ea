//! One connected socket, plain or under TLS, never blocking.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;

use mio::Registry;
use mio::net::TcpStream;
use rustls::ClientConnection;

use crate::http2;

/// What one read brought.
#[derive(Debug)]
pub(crate) enum Got {
    /// So many bytes; whether the socket may hold more is `Link::may_have_more`.
    Bytes(usize),
    /// Nothing more for now.
    Nothing,
    /// The peer has said that it is done: FIN, or under TLS its `close_notify`.
    Closed,
    /// Under TLS the connection ended without `close_notify` (RFC 8446, section 6.1).
    Cut,
}

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Link {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// The last read left nothing behind in the socket.
    ///
    /// Readiness is edge-triggered, and a read that does not fill its buffer has emptied a stream
    /// socket (epoll(7), question 9): the usual second read, which only says so, is not made.
    drained: bool,
    /// The peer has closed its side, so that the next read that finds nothing will say so.
    closing: bool,
    /// Why no more can be read, once what came before has been handed out.
    fault: Option<rustls::Error>,
}

impl Link {
    pub(crate) fn plain(socket: TcpStream) -> Self {
        Self { socket, tls: None, drained: false, closing: false, fault: None }
    }

    /// Speaks TLS from here on.
    pub(crate) fn begin_tls(&mut self, session: ClientConnection) {
        self.tls = Some(Box::new(session));
        self.drained = false;
    }

    /// Ends the connection now, even where a forked process still holds a copy of the socket.
    pub(crate) fn close(mut self, registry: &Registry) {
        let _ = registry.deregister(&mut self.socket);
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Whether the peer has closed its side.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether the server has chosen HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        self.tls.as_deref().and_then(|tls| tls.alpn_protocol()) == Some(http2::ALPN)
    }

    /// The poll says that the socket is ready; `closed` that the peer has closed its side.
    pub(crate) fn ready(&mut self, closed: bool) {
        self.drained = false;
        self.closing |= closed;
    }

    /// Whether a read might bring something without the socket becoming ready again.
    pub(crate) fn may_have_more(&self) -> bool {
        !self.drained || self.closing
    }

    /// Goes on with the TLS handshake; whether it is over.
    pub(crate) fn handshake(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        while tls.is_handshaking() {
            if tls.wants_write() {
                match retry(|| tls.write_tls(&mut self.socket)) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                    outcome => outcome?,
                };
                continue;
            }
            match retry(|| tls.read_tls(&mut self.socket)) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
            if let Err(error) = tls.process_new_packets() {
                // The peer is told why, as far as it still listens.
                let _ = tls.write_tls(&mut self.socket);
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
        self.flush()?;
        Ok(true)
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Got> {
        let Some(tls) = &mut self.tls else {
            let got = match retry(|| self.socket.read(buffer)) {
                Ok(0) => Got::Closed,
                Ok(size) => {
                    self.drained = size < buffer.len();
                    Got::Bytes(size)
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.drained = true;
                    Got::Nothing
                }
                Err(error) => return Err(error),
            };
            return Ok(got);
        };
        loop {
            match tls.reader().read(buffer) {
                Ok(0) => return Ok(Got::Closed),
                Ok(size) => return Ok(Got::Bytes(size)),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Got::Cut),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                Err(_) => {}
            }
            if let Some(fault) = &self.fault {
                return Err(io::Error::new(ErrorKind::InvalidData, fault.clone()));
            }
            match retry(|| tls.read_tls(&mut self.socket)) {
                // The reader says next time whether that was a clean end.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.drained = true;
                    return Ok(Got::Nothing);
                }
                Err(error) => return Err(error),
            }
            self.fault = tls.process_new_packets().err();
            // What TLS has to say by itself waits if the socket does not take it. A peer that takes
            // no more may have said why: that is what the next read brings.
            let _ = tls.write_tls(&mut self.socket);
        }
    }

    /// Writes as much as is taken; 0 when the socket is full.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return none_if_blocked(retry(|| self.socket.write(bytes)));
        };
        if tls.wants_write() && !flush(tls, &mut self.socket)? {
            return Ok(0);
        }
        let size = tls.writer().write(bytes)?;
        flush(tls, &mut self.socket)?;
        Ok(size)
    }

    /// Sends what TLS holds back; whether nothing is left.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        match &mut self.tls {
            Some(tls) => flush(tls, &mut self.socket),
            None => Ok(true),
        }
    }
}

fn flush(tls: &mut ClientConnection, socket: &mut TcpStream) -> io::Result<bool> {
    while tls.wants_write() {
        if none_if_blocked(retry(|| tls.write_tls(socket)))? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn none_if_blocked(outcome: io::Result<usize>) -> io::Result<usize> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        outcome => outcome,
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

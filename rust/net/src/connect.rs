//! Opening a connection: addresses tried side by side, the first that answers wins (RFC 8305).

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::{SockRef, TcpKeepalive};
use worker_adapters_core::error::Detail;
use worker_adapters_core::time::Instant;

use crate::happy_eyeballs::{ATTEMPT_DELAY, interleave};

/// How a TCP connection notices that its peer is gone without a word.
///
/// The stream's own clocks come first; this is the net below them, for a peer that lost power or a
/// network that swallows packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// How long a connection is silent before it is probed.
    pub keepalive_idle: Duration,
    /// How long after a probe the next one follows.
    pub keepalive_interval: Duration,
    /// How many probes go unanswered before the connection is lost.
    pub keepalive_probes: u32,
    /// How long sent bytes may stay unacknowledged (Linux: `TCP_USER_TIMEOUT`, RFC 5482).
    pub user_timeout: Duration,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            keepalive_idle: Duration::from_secs(15),
            keepalive_interval: Duration::from_secs(5),
            keepalive_probes: 3,
            user_timeout: Duration::from_secs(30),
        }
    }
}

/// Attempts under way.
#[derive(Debug)]
pub(crate) struct Connecting {
    token: Token,
    options: TcpOptions,
    untried: VecDeque<SocketAddr>,
    attempts: Vec<TcpStream>,
    next_attempt: Option<Instant>,
    failure: Detail,
}

#[derive(Debug)]
pub(crate) enum Progress {
    Pending,
    Connected(TcpStream),
    Failed(Detail),
}

impl Connecting {
    /// Prepares to connect to the first of `addresses` that answers. Every socket is registered
    /// under `token`.
    pub(crate) fn new(addresses: Vec<SocketAddr>, token: Token, options: TcpOptions) -> Self {
        Self {
            token,
            options,
            untried: interleave(addresses).into(),
            attempts: Vec::new(),
            next_attempt: None,
            failure: Detail::Resolve,
        }
    }

    /// When the next address is to be tried beside the present ones.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.next_attempt
    }

    /// Looks at every attempt, and begins another where one is due.
    pub(crate) fn poll(&mut self, registry: &Registry, now: Instant) -> Progress {
        let mut index = 0;
        while let Some(attempt) = self.attempts.get(index) {
            match outcome(attempt) {
                Ok(true) => {
                    let mut socket = self.attempts.swap_remove(index);
                    self.close(registry);
                    if let Err(error) = configure(&mut socket, self.options) {
                        return Progress::Failed(detail(&error));
                    }
                    return Progress::Connected(socket);
                }
                Ok(false) => index += 1,
                Err(error) => {
                    self.failure = detail(&error);
                    let mut lost = self.attempts.swap_remove(index);
                    let _ = registry.deregister(&mut lost);
                    // No reason to wait for the others' sake.
                    self.next_attempt = None;
                }
            }
        }
        while self.next_attempt.is_none_or(|due| due <= now) {
            let Some(address) = self.untried.pop_front() else {
                self.next_attempt = None;
                break;
            };
            match begin(address, registry, self.token) {
                Ok(socket) => {
                    self.attempts.push(socket);
                    self.next_attempt =
                        (!self.untried.is_empty()).then(|| now.saturating_add(ATTEMPT_DELAY));
                    if self.next_attempt.is_none() {
                        break;
                    }
                }
                Err(error) => self.failure = detail(&error),
            }
        }
        if self.attempts.is_empty() { Progress::Failed(self.failure) } else { Progress::Pending }
    }

    /// Gives every attempt up.
    pub(crate) fn close(&mut self, registry: &Registry) {
        for mut attempt in self.attempts.drain(..) {
            let _ = registry.deregister(&mut attempt);
        }
        self.untried.clear();
    }
}

fn begin(address: SocketAddr, registry: &Registry, token: Token) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(address)?;
    registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(socket)
}

/// Whether the attempt has come through; an error when it has failed.
fn outcome(attempt: &TcpStream) -> io::Result<bool> {
    if let Some(error) = attempt.take_error()? {
        return Err(error);
    }
    match attempt.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

fn configure(socket: &mut TcpStream, options: TcpOptions) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(&*socket);
    let keepalive = TcpKeepalive::new()
        .with_time(options.keepalive_idle)
        .with_interval(options.keepalive_interval)
        .with_retries(options.keepalive_probes);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(options.user_timeout))?;
    Ok(())
}

/// What an error of the operating system means for whoever wanted to connect.
pub(crate) fn detail(error: &io::Error) -> Detail {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    match error.kind() {
        ErrorKind::AddrNotAvailable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkDown => Detail::Local,
        _ if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => Detail::Fd,
        _ => Detail::Connect,
    }
}

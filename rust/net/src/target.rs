//! An engine's address and what is kept for it: limits, connections at rest, whoever waits.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use crate::connect::TcpOptions;
use crate::exchange::Exchange;
use crate::http1::{self, InvalidRequest, Limits};
use crate::http2::Group;
use crate::origin::Origin;
use crate::reactor::{Reactor, Shared};
use crate::sink::Sink;
use crate::stream::EventStream;

/// [`TargetConfig::max_exchanges`].
pub const MAX_EXCHANGES: usize = 1024;

/// [`TargetConfig::max_http2_connections`].
pub const MAX_HTTP2_CONNECTIONS: usize = 8;

/// [`TargetConfig::max_waiting`].
pub const MAX_WAITING: usize = 1024;

/// [`TargetConfig::queue_timeout`].
pub const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// [`TargetConfig::idle_timeout`].
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// [`TargetConfig::max_idle`].
pub const MAX_IDLE: usize = 64;

/// What the reactor needs to know of an engine's address.
#[derive(Clone)]
#[non_exhaustive]
pub struct TargetConfig {
    /// Where requests go.
    pub origin: Origin,
    /// How TLS is spoken, where the scheme is https.
    pub tls: Option<Arc<ClientConfig>>,
    /// Which addresses may be connected to; all of them where unset.
    pub vet: Option<Vet>,
    /// How lost peers are noticed.
    pub tcp: TcpOptions,
    /// Limits on responses.
    pub http: Limits,
    /// How many exchanges may be under way at a time. Over HTTP/1.1 each has a connection.
    pub max_exchanges: usize,
    /// How many connections they share over HTTP/2; another is opened when those there are full.
    pub max_http2_connections: usize,
    /// How many more may wait for a place.
    pub max_waiting: usize,
    /// How long they wait.
    pub queue_timeout: Duration,
    /// How many connections are kept for later requests.
    pub max_idle: usize,
    /// For how long. Below the 5 s after which llama.cpp closes an idle connection.
    pub idle_timeout: Duration,
}

/// Says whether an address may be connected to, and if not, why.
pub type Vet = Arc<dyn Fn(SocketAddr) -> Result<(), String> + Send + Sync>;

impl TargetConfig {
    /// The defaults for `origin`, without TLS.
    #[must_use]
    pub fn new(origin: Origin) -> Self {
        Self {
            origin,
            tls: None,
            vet: None,
            tcp: TcpOptions::default(),
            http: Limits::default(),
            max_exchanges: MAX_EXCHANGES,
            max_http2_connections: MAX_HTTP2_CONNECTIONS,
            max_waiting: MAX_WAITING,
            queue_timeout: QUEUE_TIMEOUT,
            max_idle: MAX_IDLE,
            idle_timeout: IDLE_TIMEOUT,
        }
    }

    pub(crate) fn allows(&self, address: SocketAddr) -> Result<(), String> {
        let Some(vet) = &self.vet else { return Ok(()) };
        // Who cannot say so does not allow it.
        catch_unwind(AssertUnwindSafe(|| vet(address))).unwrap_or_else(|_| Err(String::new()))
    }
}

impl fmt::Debug for TargetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetConfig").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// A target and its connections, inside the reactor.
pub(crate) struct Pool {
    pub(crate) config: Arc<TargetConfig>,
    /// Connections at rest, the one used last at the end.
    pub(crate) idle: BTreeMap<u64, usize>,
    /// How many exchanges hold a place.
    pub(crate) active: usize,
    /// Exchanges that wait for a place, the first to come first.
    pub(crate) waiting: BTreeMap<u64, usize>,
    pub(crate) http2: Group,
}

impl Pool {
    pub(crate) fn new(config: Arc<TargetConfig>) -> Self {
        let http2 = Group::new(&config);
        Self { config, idle: BTreeMap::new(), active: 0, waiting: BTreeMap::new(), http2 }
    }

    /// Takes out the exchange whose turn it is, if there is a place for it.
    pub(crate) fn next_waiting(&mut self) -> Option<usize> {
        if self.active >= self.config.max_exchanges {
            return None;
        }
        self.waiting.pop_first().map(|(_, key)| key)
    }
}

/// One address, from which exchanges start. A clone is another handle on the same one.
///
/// Connections are kept for as long as there is a handle.
#[derive(Clone)]
pub struct Target(Arc<Handle>);

struct Handle {
    reactor: Reactor,
    key: usize,
    config: Arc<TargetConfig>,
}

/// A request to a target.
#[derive(Clone, Copy)]
pub struct Request<'r> {
    /// `GET` or `POST`.
    pub method: &'r str,
    /// Path and query, from `/` on.
    pub path: &'r str,
    /// Names and values beside those that follow from target and body.
    pub headers: &'r [(&'r [u8], &'r [u8])],
    /// The body, sent with its length; a `GET` has none.
    pub body: Option<&'r [u8]>,
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// How long connecting may take. None: as long as the sink's own clocks allow.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the first lookup until a socket is connected.
    pub connect: Option<Duration>,
    /// The TLS handshake.
    pub tls: Option<Duration>,
}

impl Default for Bounds {
    /// 5 s each.
    fn default() -> Self {
        Self { connect: Some(Duration::from_secs(5)), tls: Some(Duration::from_secs(5)) }
    }
}

/// Why a request cannot even be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// It cannot be written as HTTP.
    Request(InvalidRequest),
    /// This process is a fork of the one that made the reactor; make another.
    Forked,
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(invalid) => fmt::Display::fmt(invalid, f),
            Self::Forked => {
                f.write_str("the reactor belongs to the process that was forked; make a new one")
            }
        }
    }
}

impl std::error::Error for SubmitError {}

impl Target {
    pub(crate) fn new(reactor: Reactor, key: usize, config: Arc<TargetConfig>) -> Self {
        Self(Arc::new(Handle { reactor, key, config }))
    }

    /// Writes a request out, ready to be sent.
    ///
    /// # Errors
    ///
    /// When the request cannot be written as HTTP: it names what is wrong.
    pub fn prepare(&self, request: &Request<'_>) -> Result<Prepared, InvalidRequest> {
        let config = &self.0.config;
        let mut bytes = Vec::new();
        http1::write_request(
            &mut bytes,
            request.method,
            request.path,
            &config.origin.host_header(),
            request.headers,
            request.body.map(<[u8]>::len),
        )?;
        bytes.extend_from_slice(request.body.unwrap_or_default());
        // RFC 9112, section 9.6: who sends this sends no further request.
        let is_last = request.headers.iter().any(|(name, value)| {
            name.eq_ignore_ascii_case(b"connection") && value.eq_ignore_ascii_case(b"close")
        });
        Ok(Prepared { target: self.clone(), bytes, is_last })
    }

    /// Sends a request, whose response goes to `sink`. Never waits.
    ///
    /// # Errors
    ///
    /// When the request cannot be written as HTTP: it names what is wrong. And in a forked process.
    pub fn submit(
        &self,
        request: &Request<'_>,
        sink: Box<dyn Sink>,
        bounds: Bounds,
    ) -> Result<EventStream, SubmitError> {
        self.prepare(request).map_err(SubmitError::Request)?.submit(sink, bounds)
    }

    /// What the target was made with.
    #[must_use]
    pub fn config(&self) -> &TargetConfig {
        &self.0.config
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.reactor.0
    }
}

/// A request written out. It may hold a key and a prompt: `Debug` shows neither.
pub struct Prepared {
    target: Target,
    bytes: Vec<u8>,
    is_last: bool,
}

impl Prepared {
    /// Sends the request, whose response goes to `sink`. Never waits.
    ///
    /// # Errors
    ///
    /// In a forked process.
    pub fn submit(self, sink: Box<dyn Sink>, bounds: Bounds) -> Result<EventStream, SubmitError> {
        let Self { target, bytes, is_last } = self;
        let mut exchange = Exchange::new(target.0.key, bytes, sink, target.0.config.http);
        exchange.connect_timeout = bounds.connect;
        exchange.tls_timeout = bounds.tls;
        exchange.is_last = is_last;
        let key = target.shared().outside(|state, now| Some(state.submit(exchange, now)));
        key.map(|key| EventStream::new(target, key)).ok_or(SubmitError::Forked)
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("target", &self.target).finish_non_exhaustive()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.0.config.origin).finish()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.reactor.0.outside(|state, now| state.remove_pool(self.key, now));
    }
}

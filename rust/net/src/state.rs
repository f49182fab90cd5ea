//! Everything the reactor's lock protects: exchanges, connections, pools and timers.

mod http2;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;

use mio::event::Event;
use mio::{Registry, Token};
use rustls::ClientConnection;
use slab::Slab;
use worker_adapters_core::error::Detail;
use worker_adapters_core::time::Instant;

use crate::connect::{self, Connecting};
use crate::exchange::{Exchange, Next, Step};
use crate::http2::Session;
use crate::link::{Got, Link};
use crate::resolver::{self, Resolver};
use crate::target::{Pool, TargetConfig};
use crate::timers::Timers;
use crate::tls;

/// How much is read from a socket at once.
pub const READ_BYTES: usize = 16 << 10;

/// How often one exchange may read before the others have their turn.
const READS_PER_TURN: usize = 8;

/// How much one exchange may write before the others have their turn.
const WRITE_BYTES_PER_TURN: usize = 1 << 20;

/// For how many wakers there is room before it has to grow.
const WAKERS_AHEAD: usize = 32;

/// What a reactor holds at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Exchanges whose events can still be taken, or whose connections are still read.
    pub exchanges: usize,
    /// Those of them that wait for a place, or for a stream of an HTTP/2 connection.
    pub waiting: usize,
    /// Connections in use, at rest or being opened.
    pub connections: usize,
    /// Those of them that rest until the next request.
    pub resting: usize,
    /// Clocks that run.
    pub clocks: usize,
    /// Events that have come and have not been taken.
    pub events: usize,
}

struct Connection {
    pool: usize,
    stage: Stage,
    exchange: Option<usize>,
    /// Under which instant and number the timers know it while it rests.
    armed: Option<(Instant, u64)>,
    /// Its number among those of its pool that rest.
    resting: Option<u64>,
}

enum Stage {
    Resolving(u64),
    Connecting(Connecting),
    Open(Box<Link>),
    /// Shared by any number of exchanges.
    Http2(Box<Session>),
    /// Between two of the others.
    Changing,
}

pub(crate) struct State {
    registry: Registry,
    resolver: Resolver,
    exchanges: Slab<Exchange>,
    connections: Slab<Connection>,
    pools: Slab<Pool>,
    /// The clocks of exchanges.
    clocks: Timers,
    /// When connections have rested long enough.
    rests: Timers,
    /// Exchanges whose sockets may hold more than the poll will tell of.
    ///
    /// An entry counts while the exchange says that it is unread; others are left over.
    unread: Vec<usize>,
    /// Which connection waits for the answer to a ticket.
    resolving: HashMap<u64, usize>,
    buffer: Vec<u8>,
    wakers: Vec<Waker>,
    /// Pools in which a place has become free.
    freed: Vec<usize>,
    /// Shared connections that may have something to send.
    stirred: Vec<usize>,
    /// Those that have more to read than they were allowed to.
    unread_sessions: Vec<usize>,
    /// Exchanges to be dropped when the lock is released: sinks and wakers are other people's.
    dead: Vec<Exchange>,
    /// Numbers handed out to tickets, and to whoever waits or rests.
    numbers: u64,
}

impl State {
    pub(crate) fn new(registry: Registry, resolver: Resolver) -> Self {
        Self {
            registry,
            resolver,
            exchanges: Slab::new(),
            connections: Slab::new(),
            pools: Slab::new(),
            clocks: Timers::default(),
            rests: Timers::default(),
            unread: Vec::new(),
            resolving: HashMap::new(),
            buffer: vec![0; READ_BYTES],
            wakers: Vec::new(),
            freed: Vec::new(),
            stirred: Vec::new(),
            unread_sessions: Vec::new(),
            dead: Vec::new(),
            numbers: 0,
        }
    }

    // What happens outside a turn.

    pub(crate) fn add_pool(&mut self, config: Arc<TargetConfig>) -> usize {
        self.pools.insert(Pool::new(config))
    }

    /// Closes what rests for a target that nobody refers to any more.
    pub(crate) fn remove_pool(&mut self, key: usize, now: Instant) {
        if self.pools.get(key).is_some_and(|pool| pool.active > 0) {
            // Bodies that were read to their end for the connection's sake alone.
            let of_pool = self.exchanges.iter().filter(|(_, exchange)| exchange.pool == key);
            let orphans: Vec<usize> = of_pool.map(|(orphan, _)| orphan).collect();
            for orphan in orphans {
                self.after(orphan, Next::Close, now);
            }
        }
        if let Some(pool) = self.pools.try_remove(key) {
            for connection in pool.idle.into_values() {
                self.close(connection);
            }
            self.close_unused(&pool.http2.sessions);
        }
    }

    pub(crate) fn submit(&mut self, exchange: Exchange, now: Instant) -> usize {
        let key = self.exchanges.insert(exchange);
        match self.exchanges.get_mut(key).map(|exchange| exchange.dispatched(now)) {
            Some(Next::Hold) => self.place(key, now),
            _ => self.after(key, Next::Close, now),
        }
        self.admit(now);
        key
    }

    pub(crate) fn exchange(&mut self, key: usize) -> Option<&mut Exchange> {
        self.exchanges.get_mut(key)
    }

    /// Has the socket of an exchange that was held up read again, in the next turn.
    pub(crate) fn release(&mut self, key: usize, now: Instant) {
        if let Some(exchange) = self.exchanges.get_mut(key) {
            exchange.pause(false, now);
            let due = exchange.due();
            self.clocks.arm(&mut exchange.armed, due, key);
            mark_unread(exchange, &mut self.unread, key);
        }
    }

    /// Ends an exchange for its caller; whether there was anything to end.
    pub(crate) fn cancel(&mut self, key: usize, now: Instant) -> bool {
        let Some(exchange) = self.exchanges.get_mut(key) else { return false };
        let was_running = !exchange.sink().is_terminal();
        exchange.cancel(now);
        self.after(key, Next::Close, now);
        self.admit(now);
        was_running
    }

    /// Forgets an exchange, closing its connection if it has not come to its end.
    pub(crate) fn remove(&mut self, key: usize, now: Instant) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        if exchange.step == Step::Drain {
            // Nobody waits for what is left of the body, but the next request may use the connection.
            exchange.is_orphan = true;
            return;
        }
        self.after(key, Next::Close, now);
        self.discard(key);
        self.admit(now);
    }

    fn discard(&mut self, key: usize) {
        if let Some(mut exchange) = self.exchanges.try_remove(key) {
            self.clocks.disarm(&mut exchange.armed);
            self.dead.push(exchange);
        }
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.clocks.next().into_iter().chain(self.rests.next()).min()
    }

    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty() || !self.unread_sessions.is_empty()
    }

    /// What is left to be done when the lock is released.
    pub(crate) fn leave(&mut self) -> Leftovers {
        let room = if self.wakers.is_empty() { 0 } else { WAKERS_AHEAD };
        Leftovers {
            wakers: std::mem::replace(&mut self.wakers, Vec::with_capacity(room)),
            dead: std::mem::take(&mut self.dead),
        }
    }

    pub(crate) fn open_connections(&self) -> usize {
        self.connections.len()
    }

    pub(crate) fn resting_connections(&self) -> usize {
        let unused = self.connections.iter().filter(|(_, it)| it.is_unused()).count();
        unused + self.pools.iter().map(|(_, pool)| pool.idle.len()).sum::<usize>()
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            exchanges: self.exchanges.len(),
            waiting: self
                .pools
                .iter()
                .map(|(_, pool)| pool.waiting.len() + pool.http2.queued.len())
                .sum(),
            connections: self.open_connections(),
            resting: self.resting_connections(),
            clocks: self.clocks.len() + self.rests.len(),
            events: self.exchanges.iter().map(|(_, exchange)| exchange.pending()).sum(),
        }
    }

    /// Sends on their way those who waited for a place that has become free, and what streams have
    /// left for their connections to send.
    pub(crate) fn admit(&mut self, now: Instant) {
        loop {
            while let Some(pool) = self.freed.pop() {
                while let Some(key) = self.pools.get_mut(pool).and_then(Pool::next_waiting) {
                    if let Some(exchange) = self.exchanges.get_mut(key) {
                        exchange.waiting = None;
                    }
                    self.place(key, now);
                }
            }
            let Some(connection) = self.stirred.pop() else { return };
            self.unlist(connection);
            self.pump(connection, now);
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    // A turn.

    /// The poll says that a connection's socket is ready.
    pub(crate) fn ready(&mut self, event: &Event, now: Instant) {
        let key = event.token().0;
        let is_closing = event.is_read_closed() || event.is_error();
        let Some(connection) = self.connections.get_mut(key) else { return };
        match &mut connection.stage {
            Stage::Resolving(_) | Stage::Changing => {}
            Stage::Connecting(_) => self.connect(key, now),
            Stage::Http2(session) => {
                session.ready(is_closing);
                self.pump(key, now);
            }
            Stage::Open(link) => {
                link.ready(is_closing);
                let Some(exchange_key) = connection.exchange else {
                    // Whatever it is, nobody has asked for it: only TLS talks to itself.
                    if !matches!(link.read(&mut self.buffer), Ok(Got::Nothing)) {
                        self.close(key);
                    }
                    return;
                };
                // One that was not finished with its reads has its turn in the next one.
                if self.exchanges.get(exchange_key).is_some_and(|exchange| !exchange.is_unread) {
                    self.drive(exchange_key, now);
                }
            }
        }
    }

    /// A name has been looked up.
    pub(crate) fn resolved(
        &mut self,
        ticket: u64,
        answer: io::Result<Vec<SocketAddr>>,
        now: Instant,
    ) {
        let Some(key) = self.resolving.remove(&ticket) else { return };
        let Some(exchange) = self.connections.get(key).and_then(|found| found.exchange) else {
            return;
        };
        match answer {
            Ok(addresses) if !addresses.is_empty() => self.dial(key, addresses, now),
            Ok(_) | Err(_) => self.fail(exchange, Detail::Resolve, now),
        }
    }

    /// Reads what had to wait in earlier turns.
    pub(crate) fn resume(&mut self, now: Instant) {
        for key in std::mem::take(&mut self.unread) {
            if let Some(exchange) = self.exchanges.get_mut(key)
                && std::mem::take(&mut exchange.is_unread)
            {
                self.drive(key, now);
            }
        }
        for connection in std::mem::take(&mut self.unread_sessions) {
            self.reread(connection, now);
        }
    }

    /// Lets every clock strike that has run out.
    pub(crate) fn strike(&mut self, now: Instant) {
        // Each of them once: a sink that never ends although its clock has run out is not waited for.
        let struck: Vec<usize> = std::iter::from_fn(|| self.clocks.pop(now)).collect();
        for key in struck {
            let Some(exchange) = self.exchanges.get_mut(key) else { continue };
            exchange.armed = None;
            if exchange.due().is_some_and(|due| due <= now) {
                self.expire(key, now);
            } else {
                let due = exchange.due();
                self.clocks.arm(&mut exchange.armed, due, key);
            }
        }
        while let Some(key) = self.rests.pop(now) {
            if let Some(connection) = self.connections.get_mut(key) {
                connection.armed = None;
                self.close(key);
            }
        }
    }

    fn expire(&mut self, key: usize, now: Instant) {
        if let Some(Exchange { step: Step::Connect, connection: Some(connection), .. }) =
            self.exchanges.get(key)
        {
            // It may be only that the next address is due.
            self.connect(*connection, now);
        } else {
            // What had come in time counts, even if nobody had the time to look.
            self.look(key, now);
            self.drive(key, now);
        }
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        if exchange.due().is_some_and(|due| due <= now) {
            let next = exchange.strike(now);
            self.after(key, next, now);
        }
    }

    // An exchange on its way.

    /// Finds a connection for an exchange, or has it wait for a place.
    fn place(&mut self, key: usize, now: Instant) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let Some(pool) = self.pools.get_mut(exchange.pool) else { return };
        if pool.active < pool.config.max_exchanges {
            pool.active += 1;
            exchange.has_place = true;
            self.connection(key, now);
        } else if pool.waiting.len() < pool.config.max_waiting {
            self.numbers += 1;
            pool.waiting.insert(self.numbers, key);
            exchange.waiting = Some(self.numbers);
            exchange.enter(Step::Queue, Some(pool.config.queue_timeout), now);
            self.after(key, Next::Hold, now);
        } else {
            self.fail(key, Detail::Saturated, now);
        }
    }

    /// Takes a connection that rests, or opens one.
    fn connection(&mut self, key: usize, now: Instant) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let Some(pool) = self.pools.get_mut(exchange.pool) else { return };
        if pool.http2.is_expected {
            self.join(key, now);
            return;
        }
        while let Some((_, idle)) = pool.idle.pop_last() {
            let Some(connection) = self.connections.get_mut(idle) else { continue };
            connection.resting = None;
            let is_fresh = connection.armed.is_some_and(|(due, _)| now < due);
            self.rests.disarm(&mut connection.armed);
            let Stage::Open(link) = &mut connection.stage else { continue };
            // A peer that has closed it meanwhile has not seen anything of the request.
            link.ready(false);
            if is_fresh && matches!(link.read(&mut self.buffer), Ok(Got::Nothing)) {
                connection.exchange = Some(key);
                exchange.connection = Some(idle);
                exchange.enter(Step::Write, None, now);
                self.drive(key, now);
                return;
            }
            let gone = self.connections.remove(idle);
            gone.deregister(&self.registry);
        }
        self.open(key, now);
    }

    fn open(&mut self, key: usize, now: Instant) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let Some(pool) = self.pools.get_mut(exchange.pool) else { return };
        let config = Arc::clone(&pool.config);
        let (host, port) = (config.origin.host(), config.origin.port());
        self.numbers += 1;
        let ticket = self.numbers;
        let connection = self.connections.insert(Connection {
            pool: exchange.pool,
            stage: Stage::Resolving(ticket),
            exchange: Some(key),
            armed: None,
            resting: None,
        });
        if pool.http2.is_expected {
            pool.http2.opening = Some(connection);
        }
        exchange.connection = Some(connection);
        exchange.enter(Step::Resolve, exchange.connect_timeout, now);
        if let Some(address) = resolver::literal(host, port) {
            self.dial(connection, vec![address], now);
        } else if self.resolver.resolve(ticket, host, port).is_err() {
            self.fail(key, Detail::Saturated, now);
        } else {
            self.resolving.insert(ticket, connection);
            self.after(key, Next::Hold, now);
        }
    }

    /// Connects to the first of `addresses` that answers, if the policy allows them all.
    fn dial(&mut self, key: usize, addresses: Vec<SocketAddr>, now: Instant) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(exchange_key) = connection.exchange else { return };
        let Some(pool) = self.pools.get(connection.pool) else { return };
        if let Err(why) = addresses.iter().try_for_each(|address| pool.config.allows(*address)) {
            self.fail_with(exchange_key, Detail::EgressDenied, &why, now);
            return;
        }
        connection.stage =
            Stage::Connecting(Connecting::new(addresses, Token(key), pool.config.tcp));
        if let Some(exchange) = self.exchanges.get_mut(exchange_key) {
            exchange.advance(Step::Connect);
        }
        self.connect(key, now);
    }

    /// Goes on with connecting.
    fn connect(&mut self, key: usize, now: Instant) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(exchange_key) = connection.exchange else { return };
        let Stage::Connecting(connecting) = &mut connection.stage else { return };
        let progress = connecting.poll(&self.registry, now);
        let due = connecting.due();
        match progress {
            connect::Progress::Pending => {
                if let Some(exchange) = self.exchanges.get_mut(exchange_key) {
                    exchange.next_attempt = due;
                }
                self.after(exchange_key, Next::Hold, now);
            }
            connect::Progress::Failed(detail) => self.fail(exchange_key, detail, now),
            connect::Progress::Connected(socket) => self.connected(key, exchange_key, socket, now),
        }
    }

    fn connected(
        &mut self,
        key: usize,
        exchange_key: usize,
        socket: mio::net::TcpStream,
        now: Instant,
    ) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(exchange) = self.exchanges.get_mut(exchange_key) else { return };
        let Some(pool) = self.pools.get(connection.pool) else { return };
        exchange.next_attempt = None;
        let config = Arc::clone(&pool.config);
        let peer = socket.peer_addr();
        connection.stage = Stage::Open(Box::new(Link::plain(socket)));
        // Whatever was asked for, this is who answers.
        match peer.map(|peer| config.allows(peer)) {
            Ok(Ok(())) => {}
            Ok(Err(why)) => {
                self.fail_with(exchange_key, Detail::EgressDenied, &why, now);
                return;
            }
            Err(_) => {
                self.fail(exchange_key, Detail::Connect, now);
                return;
            }
        }
        let Some(tls_config) = &config.tls else {
            exchange.enter(Step::Write, None, now);
            self.drive(exchange_key, now);
            return;
        };
        let session = tls::server_name(config.origin.host())
            .ok()
            .and_then(|name| ClientConnection::new(Arc::clone(tls_config), name).ok());
        let Stage::Open(link) = &mut connection.stage else { return };
        match session {
            Some(session) => {
                link.begin_tls(session);
                exchange.enter(Step::Tls, exchange.tls_timeout, now);
                self.follow_to_tls(key, now);
                self.drive(exchange_key, now);
            }
            None => self.fail(exchange_key, Detail::Tls, now),
        }
    }

    /// Goes on with an exchange that has a socket: handshake, write, read.
    fn drive(&mut self, key: usize, now: Instant) {
        let next = self.advance(key, now);
        self.after(key, next, now);
    }

    fn advance(&mut self, key: usize, now: Instant) -> Next {
        let Some(exchange) = self.exchanges.get_mut(key) else { return Next::Hold };
        let connection = exchange.connection.and_then(|key| self.connections.get_mut(key));
        let Some(Connection { stage: Stage::Open(link), .. }) = connection else {
            return self.advance_stream(key, now);
        };
        if exchange.step == Step::Tls {
            match link.handshake() {
                Ok(true) => return self.negotiated(key, now),
                Ok(false) => return Next::Hold,
                Err(error) => {
                    let (detail, message) = match tls_error(&error) {
                        Some(fault) => (tls::fault_detail(fault), tls::fault_message(fault)),
                        None => (Detail::Tls, String::new()),
                    };
                    exchange.fail_with(detail, &message, now);
                    return Next::Close;
                }
            }
        }
        let mut is_writable = true;
        if exchange.is_writing() {
            match write(exchange, link, now) {
                Ok(true) => {}
                Ok(false) => mark_unread(exchange, &mut self.unread, key),
                Err(_) => is_writable = false,
            }
        } else if link.flush().is_err() {
            is_writable = false;
        }
        if !is_writable {
            // It may have said why, and the poll not yet told of it.
            link.ready(false);
        }
        let mut reads = 0;
        while link.may_have_more() {
            if !exchange.wants_bytes() {
                exchange.pause(true, now);
                return Next::Hold;
            }
            if reads == READS_PER_TURN {
                mark_unread(exchange, &mut self.unread, key);
                return Next::Hold;
            }
            reads += 1;
            let next = match link.read(&mut self.buffer) {
                Ok(Got::Bytes(size)) => {
                    exchange.bytes(self.buffer.get(..size).unwrap_or_default(), now)
                }
                Ok(Got::Nothing) => break,
                Ok(Got::Closed) => exchange.closed(true, now),
                Ok(Got::Cut) => exchange.closed(false, now),
                Err(error) => match tls_error(&error) {
                    Some(fault) => {
                        let message = tls::fault_message(fault);
                        exchange.broken(tls::late_fault_detail(fault), &message, now)
                    }
                    None => exchange.broken(Detail::Reset, "", now),
                },
            };
            if next != Next::Hold {
                // A peer that closes after each response says so in the same breath.
                let is_over = next == Next::Keep && link.is_closing();
                return if is_over { Next::Close } else { next };
            }
        }
        if is_writable {
            Next::Hold
        } else {
            // The peer took no more, and has nothing to say about it.
            exchange.broken(Detail::Reset, "", now)
        }
    }

    fn fail(&mut self, key: usize, detail: Detail, now: Instant) {
        self.fail_with(key, detail, "", now);
    }

    fn fail_with(&mut self, key: usize, detail: Detail, message: &str, now: Instant) {
        if let Some(exchange) = self.exchanges.get_mut(key) {
            exchange.fail_with(detail, message, now);
        }
        self.after(key, Next::Close, now);
    }

    /// What has to be done after anything has happened to an exchange.
    fn after(&mut self, key: usize, next: Next, now: Instant) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        if let Some(waker) = exchange.waker() {
            let waker = waker.clone();
            self.wakers.push(waker);
        }
        if next == Next::Hold {
            let due = exchange.due();
            self.clocks.arm(&mut exchange.armed, due, key);
            return;
        }
        if exchange.step == Step::Over {
            return;
        }
        exchange.end();
        self.clocks.disarm(&mut exchange.armed);
        let (pool, is_orphan) = (exchange.pool, exchange.is_orphan);
        let had_place = std::mem::take(&mut exchange.has_place);
        let waiting = exchange.waiting.take();
        match (exchange.connection.take(), exchange.stream.take()) {
            (Some(connection), Some(stream)) => self.part(connection, *stream, now),
            (Some(connection), None) if next == Next::Keep => self.rest(connection, now),
            (Some(connection), None) => {
                let failure = exchange.failure();
                self.give_up(connection, failure, now);
            }
            (None, _) => {}
        }
        if is_orphan {
            self.discard(key);
        }
        let Some(of) = self.pools.get_mut(pool) else { return };
        if let Some(number) = waiting {
            of.waiting.remove(&number);
            of.http2.queued.remove(&number);
        }
        if had_place {
            of.active -= 1;
            self.freed.push(pool);
        }
    }

    /// Keeps a connection for another request.
    fn rest(&mut self, key: usize, now: Instant) {
        let number = self.number();
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.exchange = None;
        let pool = self.pools.get_mut(connection.pool);
        match pool {
            Some(pool) if pool.idle.len() < pool.config.max_idle => {
                pool.idle.insert(number, key);
                connection.resting = Some(number);
                let due = now.saturating_add(pool.config.idle_timeout);
                self.rests.arm(&mut connection.armed, Some(due), key);
            }
            _ => self.close(key),
        }
    }

    fn close(&mut self, key: usize) {
        let Some(mut connection) = self.connections.try_remove(key) else { return };
        self.rests.disarm(&mut connection.armed);
        if let Stage::Resolving(ticket) = connection.stage {
            self.resolving.remove(&ticket);
            self.resolver.forget(ticket);
        }
        if let Some(number) = connection.resting
            && let Some(pool) = self.pools.get_mut(connection.pool)
        {
            pool.idle.remove(&number);
        }
        if let (Stage::Http2(_), Some(pool)) =
            (&connection.stage, self.pools.get_mut(connection.pool))
        {
            pool.http2.sessions.retain(|session| *session != key);
        }
        connection.deregister(&self.registry);
    }
}

impl Connection {
    fn deregister(self, registry: &Registry) {
        match self.stage {
            Stage::Resolving(_) | Stage::Changing => {}
            Stage::Connecting(mut connecting) => connecting.close(registry),
            Stage::Open(link) => link.close(registry),
            Stage::Http2(session) => session.close(registry),
        }
    }
}

/// Has an exchange driven in the next turn.
fn mark_unread(exchange: &mut Exchange, unread: &mut Vec<usize>, key: usize) {
    if !std::mem::replace(&mut exchange.is_unread, true) {
        unread.push(key);
    }
}

/// Writes what the socket takes of the request; false when it might take more at once.
fn write(exchange: &mut Exchange, link: &mut Link, now: Instant) -> io::Result<bool> {
    let mut budget = WRITE_BYTES_PER_TURN;
    while !exchange.unwritten().is_empty() {
        let unwritten = exchange.unwritten();
        let size = link.write(unwritten.get(..budget).unwrap_or(unwritten))?;
        if size == 0 {
            return Ok(true);
        }
        exchange.wrote(size, now);
        budget -= size;
        if budget == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What is to be woken and dropped with no lock held.
#[derive(Default)]
#[must_use]
pub(crate) struct Leftovers {
    wakers: Vec<Waker>,
    dead: Vec<Exchange>,
}

impl Leftovers {
    /// Whoever is woken may come right back, and one who panics keeps nobody else from it.
    pub(crate) fn settle(self) {
        for waker in self.wakers {
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
        for exchange in self.dead {
            let _ = catch_unwind(AssertUnwindSafe(|| drop(exchange)));
        }
    }
}

pub(crate) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

//! Connections that many exchanges share.

use std::mem;

use worker_adapters_core::error::Detail;
use worker_adapters_core::time::Instant;

use super::{Connection, READS_PER_TURN, Stage, State};
use crate::exchange::{Next, Step};
use crate::http2::{NotSent, Room, Session, Stream};

/// Where there is room for another exchange.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    At(usize),
    /// On a connection that is not yet known to be full.
    Soon,
    Nowhere,
}

impl State {
    // How an exchange comes to a stream.

    /// Gives an exchange a stream where there is room, or has it wait for one: of the connection
    /// that is being opened, or of one that is full.
    pub(super) fn join(&mut self, key: usize, now: Instant) {
        let Some(exchange) = self.exchanges.get(key) else { return };
        let pool_key = exchange.pool;
        let mut found = self.find_room(pool_key);
        while let Found::At(connection) = found
            && !self.is_sound(connection, now)
        {
            found = self.find_room(pool_key);
        }
        let Some(pool) = self.pools.get_mut(pool_key) else { return };
        match found {
            Found::At(connection) => self.begin(key, connection, now),
            Found::Nowhere if pool.http2.may_open(&pool.config) => self.open(key, now),
            Found::Nowhere | Found::Soon => {
                self.numbers += 1;
                pool.http2.queued.insert(self.numbers, key);
                if let Some(exchange) = self.exchanges.get_mut(key) {
                    exchange.waiting = Some(self.numbers);
                }
                self.queue(key, now);
            }
        }
    }

    /// Whether a connection can be used that nobody may have used for a while. One that the peer has
    /// closed meanwhile is closed.
    fn is_sound(&mut self, key: usize, now: Instant) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        let Stage::Http2(session) = &mut connection.stage else { return false };
        if session.streams > 0 {
            return true;
        }
        if connection.armed.is_some_and(|(due, _)| due <= now) {
            self.close(key);
            return false;
        }
        session.ready(false);
        let is_open = session.turn() && session.room() == Room::Now;
        if !is_open {
            self.lost(key, now);
        }
        is_open
    }

    /// Sets the clock of an exchange that waits for a stream.
    fn queue(&mut self, key: usize, now: Instant) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let Some(pool) = self.pools.get(exchange.pool) else { return };
        let opening = pool.http2.opening.and_then(|opening| self.connections.get(opening));
        match opening.map(|opening| &opening.stage) {
            None => exchange.enter(Step::Queue, Some(pool.config.queue_timeout), now),
            Some(Stage::Open(_)) => exchange.enter(Step::Tls, exchange.tls_timeout, now),
            Some(_) => exchange.enter(Step::Connect, exchange.connect_timeout, now),
        }
        self.after(key, Next::Hold, now);
    }

    /// Looks for a connection with room for one more.
    fn find_room(&mut self, pool: usize) -> Found {
        let mut found = Found::Nowhere;
        let Some(pool) = self.pools.get_mut(pool) else { return found };
        pool.http2.sessions.retain(|key| {
            let connection = self.connections.get_mut(*key);
            let Some(Connection { stage: Stage::Http2(session), .. }) = connection else {
                return false;
            };
            let room = session.room();
            found = match (room, found) {
                (_, Found::At(connection)) => Found::At(connection),
                (Room::Now, _) => Found::At(*key),
                (Room::Soon, _) => Found::Soon,
                (Room::Later | Room::Never, found) => found,
            };
            room != Room::Never
        });
        found
    }

    /// Gives streams to those who wait, as far as there is room, and opens another connection where
    /// there is none.
    fn serve(&mut self, pool_key: usize, now: Instant) {
        loop {
            if self.pools.get(pool_key).is_none_or(|pool| pool.http2.queued.is_empty()) {
                return;
            }
            let found = self.find_room(pool_key);
            let Some(pool) = self.pools.get_mut(pool_key) else { return };
            if !matches!(found, Found::At(_))
                && (found == Found::Soon || !pool.http2.may_open(&pool.config))
            {
                return;
            }
            let Some((_, key)) = pool.http2.queued.pop_first() else { return };
            if let Some(exchange) = self.exchanges.get_mut(key) {
                exchange.waiting = None;
            }
            match found {
                Found::At(connection) => self.begin(key, connection, now),
                Found::Nowhere | Found::Soon => self.open(key, now),
            }
        }
    }

    /// Sends an exchange's request on a connection that has room.
    fn begin(&mut self, key: usize, connection_key: usize, now: Instant) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let Some(connection) = self.connections.get_mut(connection_key) else { return };
        let Stage::Http2(session) = &mut connection.stage else { return };
        exchange.enter(Step::Write, None, now);
        match session.request(key, exchange.take_request()) {
            Ok(stream) => {
                self.rests.disarm(&mut connection.armed);
                exchange.connection = Some(connection_key);
                exchange.sent_as(stream, now);
                self.drive(key, now);
            }
            Err(NotSent::Invalid) => self.fail(key, Detail::InvalidRequest, now),
            Err(NotSent::Closed) => {
                exchange.fail_unprocessed(now);
                self.after(key, Next::Close, now);
            }
        }
    }

    // A connection that is being opened.

    /// A handshake is over, and the server has chosen a protocol.
    pub(super) fn negotiated(&mut self, key: usize, now: Instant) -> Next {
        let Some(exchange) = self.exchanges.get_mut(key) else { return Next::Hold };
        let Some(connection_key) = exchange.connection else { return Next::Hold };
        let Some(connection) = self.connections.get_mut(connection_key) else { return Next::Hold };
        let pool_key = exchange.pool;
        let Some(pool) = self.pools.get_mut(pool_key) else { return Next::Hold };
        let is_awaited = pool.http2.opening == Some(connection_key);
        let link = match mem::replace(&mut connection.stage, Stage::Changing) {
            Stage::Open(link) if link.is_http2() => link,
            stage => {
                connection.stage = stage;
                exchange.enter(Step::Write, None, now);
                pool.http2.is_expected = false;
                if is_awaited {
                    pool.http2.opening = None;
                }
                for queued in mem::take(&mut pool.http2.queued).into_values() {
                    if let Some(exchange) = self.exchanges.get_mut(queued) {
                        exchange.waiting = None;
                    }
                    self.connection(queued, now);
                }
                return self.advance(key, now);
            }
        };
        let Some(session) = Session::begin(*link, &pool.config) else {
            exchange.fail(Detail::Internal, now);
            return Next::Close;
        };
        if is_awaited {
            pool.http2.opening = None;
        }
        pool.http2.is_expected = true;
        pool.http2.sessions.push(connection_key);
        connection.stage = Stage::Http2(Box::new(session));
        connection.exchange = None;
        exchange.connection = None;
        let queued: Vec<usize> = pool.http2.queued.values().copied().collect();
        self.begin(key, connection_key, now);
        self.stir(connection_key);
        // What bounded them was the time that opening it may take.
        for waiting in queued {
            self.queue(waiting, now);
        }
        self.serve(pool_key, now);
        Next::Hold
    }

    /// Whoever waits for a connection is now bound by the clock of its handshake.
    pub(super) fn follow_to_tls(&mut self, key: usize, now: Instant) {
        let Some(connection) = self.connections.get(key) else { return };
        let Some(pool) = self.pools.get(connection.pool) else { return };
        if pool.http2.opening != Some(key) {
            return;
        }
        let queued: Vec<usize> = pool.http2.queued.values().copied().collect();
        for follower in queued {
            if let Some(exchange) = self.exchanges.get_mut(follower)
                && exchange.step == Step::Connect
            {
                exchange.enter(Step::Tls, exchange.tls_timeout, now);
                self.after(follower, Next::Hold, now);
            }
        }
    }

    /// An exchange has no more use for a connection of its own. Where others wait for the same, they
    /// share its failure, or else one of them goes on with it.
    pub(super) fn give_up(&mut self, key: usize, failure: Option<(Detail, String)>, now: Instant) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let pool = self.pools.get_mut(connection.pool);
        let Some(pool) = pool.filter(|pool| pool.http2.opening == Some(key)) else {
            self.close(key);
            return;
        };
        // A clock of its own says nothing of the connection.
        let failure = failure.filter(|(detail, _)| {
            !matches!(detail, Detail::ConnectTimeout | Detail::TlsTimeout | Detail::Deadline)
        });
        if failure.is_none()
            && let Some((_, heir)) = pool.http2.queued.pop_first()
            && let Some(exchange) = self.exchanges.get_mut(heir)
        {
            let (step, next_attempt) = match &connection.stage {
                Stage::Connecting(connecting) => (Step::Connect, connecting.due()),
                Stage::Open(_) => (Step::Tls, None),
                _ => (Step::Resolve, None),
            };
            connection.exchange = Some(heir);
            exchange.waiting = None;
            exchange.connection = Some(key);
            exchange.next_attempt = next_attempt;
            exchange.advance(step);
            self.after(heir, Next::Hold, now);
            return;
        }
        pool.http2.opening = None;
        let queued: Vec<usize> = pool.http2.queued.values().copied().collect();
        let has_others = !pool.http2.sessions.is_empty();
        self.close(key);
        for follower in queued {
            match &failure {
                Some((detail, message)) if !has_others => {
                    self.fail_with(follower, *detail, message, now);
                }
                _ => self.queue(follower, now),
            }
        }
    }

    // A connection at work.

    /// Moves on a connection and every stream of it that has something. It reads so much in a turn
    /// and no more, whoever asks.
    pub(super) fn pump(&mut self, key: usize, now: Instant) {
        let mut reads = 0;
        loop {
            let Some(connection) = self.connections.get_mut(key) else { return };
            let pool = connection.pool;
            let Stage::Http2(session) = &mut connection.stage else { return };
            if !session.is_stirred() {
                return;
            }
            if reads == READS_PER_TURN && !session.is_unread {
                session.is_unread = true;
                self.unread_sessions.push(key);
                continue;
            }
            reads += 1;
            let goes_on = session.turn();
            for exchange in session.take_ready() {
                if self.exchanges.get(exchange).is_some_and(|it| it.connection == Some(key)) {
                    self.drive(exchange, now);
                }
            }
            if !goes_on {
                self.lost(key, now);
            }
            self.serve(pool, now);
        }
    }

    /// Goes on with a connection that had more to read in the turn before.
    pub(super) fn reread(&mut self, key: usize, now: Instant) {
        if let Some(Connection { stage: Stage::Http2(session), .. }) = self.connections.get_mut(key)
        {
            session.is_unread = false;
            self.pump(key, now);
        }
    }

    /// Has a connection pumped before the present turn is over.
    fn stir(&mut self, key: usize) {
        if let Some(Connection { stage: Stage::Http2(session), .. }) = self.connections.get_mut(key)
            && !mem::replace(&mut session.is_listed, true)
        {
            self.stirred.push(key);
        }
    }

    pub(super) fn unlist(&mut self, key: usize) {
        if let Some(Connection { stage: Stage::Http2(session), .. }) = self.connections.get_mut(key)
        {
            session.is_listed = false;
        }
    }

    /// Looks for what has come for an exchange that shares a connection.
    pub(super) fn look(&mut self, key: usize, now: Instant) {
        if let Some(exchange) = self.exchanges.get(key)
            && exchange.stream.is_some()
            && let Some(connection) = exchange.connection
        {
            self.pump(connection, now);
        }
    }

    /// Takes in what has come for an exchange, if it has a stream.
    pub(super) fn advance_stream(&mut self, key: usize, now: Instant) -> Next {
        let Some(exchange) = self.exchanges.get_mut(key) else { return Next::Hold };
        let Some(mut stream) = exchange.stream.take() else { return Next::Hold };
        let next = exchange.follow(&mut stream, now);
        exchange.stream = Some(stream);
        if let Some(connection) = exchange.connection {
            self.stir(connection);
        }
        next
    }

    /// An exchange has no more use for its stream.
    pub(super) fn part(&mut self, key: usize, stream: Stream, now: Instant) {
        stream.cancel();
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Stage::Http2(session) = &mut connection.stage else { return };
        session.streams -= 1;
        if session.streams > 0 {
            self.stir(key);
            return;
        }
        match self.pools.get(connection.pool) {
            Some(pool) if pool.http2.sessions.contains(&key) => {
                let due = now.saturating_add(pool.config.idle_timeout);
                self.rests.arm(&mut connection.armed, Some(due), key);
                self.stir(key);
            }
            _ => self.close(key),
        }
    }

    /// A connection is over.
    fn lost(&mut self, key: usize, now: Instant) {
        let Some(connection) = self.connections.get(key) else { return };
        if let Some(pool) = self.pools.get_mut(connection.pool) {
            pool.http2.sessions.retain(|session| *session != key);
        }
        let left: Vec<_> = self
            .exchanges
            .iter()
            .filter(|(_, exchange)| exchange.connection == Some(key))
            .map(|(exchange, _)| exchange)
            .collect();
        for exchange in left {
            self.drive(exchange, now);
            // One whose reader has yet to take what came keeps that, and the end with it.
            if let Some(exchange) = self.exchanges.get_mut(exchange) {
                exchange.connection = None;
            }
        }
        self.close(key);
    }

    /// Closes those of a target's connections that carry nothing.
    pub(super) fn close_unused(&mut self, sessions: &[usize]) {
        for key in sessions {
            if self.connections.get(*key).is_some_and(Connection::is_unused) {
                self.close(*key);
            }
        }
    }
}

impl Connection {
    /// Whether it is open and shared by nobody.
    pub(super) fn is_unused(&self) -> bool {
        matches!(&self.stage, Stage::Http2(session) if session.streams == 0)
    }
}

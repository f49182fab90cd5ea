//! What a target knows of its HTTP/2 connections.

use std::collections::BTreeMap;

use super::ALPN;
use crate::target::TargetConfig;

/// The HTTP/2 connections of one target, and who waits for one.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Whether a connection can be taken to speak HTTP/2: it is offered, and the server has not
    /// chosen otherwise.
    pub(crate) is_expected: bool,
    /// Connections that take new exchanges, while they have room.
    pub(crate) sessions: Vec<usize>,
    /// The connection that is being opened, one at a time: all that are queued hope for it.
    pub(crate) opening: Option<usize>,
    /// Exchanges that have a place but no stream, the first to come first.
    pub(crate) queued: BTreeMap<u64, usize>,
}

impl Group {
    pub(crate) fn new(config: &TargetConfig) -> Self {
        let is_offered = |tls: &rustls::ClientConfig| tls.alpn_protocols.iter().any(|p| p == ALPN);
        Self { is_expected: config.tls.as_deref().is_some_and(is_offered), ..Self::default() }
    }

    /// Whether another connection may be opened.
    pub(crate) fn may_open(&self, config: &TargetConfig) -> bool {
        self.opening.is_none() && self.sessions.len() < config.max_http2_connections.max(1)
    }
}

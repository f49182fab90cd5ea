//! Streams under TLS, and how they end there.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use common::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};
use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::error::{Phase, Processed};
use worker_adapters_core::{StreamConfig, StreamDecoder};
use worker_adapters_net::origin::Origin;
use worker_adapters_net::tls::{TlsOptions, client_config};
use worker_adapters_net::{Bounds, EventStream, Request, Target, TargetConfig};

const BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// A CA and what it has issued for the server.
struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    /// A server's configuration; one that `demands` wants a client certificate of this CA.
    fn server(
        &self,
        name: &str,
        demands: bool,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap();
        let builder = if demands {
            let mut roots = RootCertStore::empty();
            roots.add(self.issuer.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let chain = vec![CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        builder.with_single_cert(chain, key).unwrap()
    }
}

/// The server's end, moved on by the test.
struct Peer {
    tls: ServerConnection,
    socket: TcpStream,
    heard: Vec<u8>,
}

impl Peer {
    fn accept(rig: &Rig, config: &Arc<ServerConfig>) -> Self {
        let socket = rig.accept();
        socket.set_nonblocking(true).unwrap();
        let mut tls = ServerConnection::new(Arc::clone(config)).unwrap();
        tls.set_buffer_limit(None);
        Self { tls, socket, heard: Vec::new() }
    }

    /// Reads what has come and writes what is to be written.
    fn pump(&mut self) {
        loop {
            let has_failed = match self.tls.read_tls(&mut self.socket) {
                Ok(0) => return,
                Ok(_) => self.tls.process_new_packets().is_err(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return,
            };
            let _ = self.tls.reader().read_to_end(&mut self.heard);
            if has_failed {
                break;
            }
        }
        self.flush();
    }

    fn flush(&mut self) {
        while self.tls.wants_write() && self.tls.write_tls(&mut self.socket).is_ok() {}
    }

    /// Moves both ends on until a request has come.
    fn request(&mut self, rig: &Rig) {
        rig.until(|| {
            self.pump();
            self.heard.ends_with(b"{}")
        });
        self.heard.clear();
    }

    fn send(&mut self, text: &str) {
        self.tls.writer().write_all(text.as_bytes()).unwrap();
        self.flush();
    }

    /// The records of `text`, not sent.
    fn records(&mut self, text: &str) -> Vec<u8> {
        self.tls.writer().write_all(text.as_bytes()).unwrap();
        let mut records = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut records).unwrap();
        }
        records
    }

    fn close(mut self, notify: bool) {
        if notify {
            self.tls.send_close_notify();
            self.flush();
        }
        self.socket.shutdown(Shutdown::Write).unwrap();
    }
}

struct Secure {
    rig: Rig,
    target: Target,
    server: Arc<ServerConfig>,
}

impl Secure {
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let ca = Ca::new();
        let server = ca.server("127.0.0.1", false, &[version]);
        Self::with(&ca, server)
    }

    fn with(ca: &Ca, server: ServerConfig) -> Self {
        let rig = Rig::new();
        let address = rig.listener.local_addr().unwrap();
        let mut config = TargetConfig::new(Origin::parse(&format!("https://{address}")).unwrap().0);
        let options = TlsOptions::default().replace_roots(ca.issuer.pem());
        config.tls = Some(client_config(&options).unwrap());
        let target = rig.reactor.target(config);
        Self { rig, target, server: Arc::new(server) }
    }

    fn open(&self) -> (EventStream, Peer) {
        self.open_as("llamacpp")
    }

    fn open_as(&self, dialect: &str) -> (EventStream, Peer) {
        let parser = Dialect::new(dialect, []).unwrap();
        let sink = StreamDecoder::new(parser, StreamConfig::new(dialect));
        let stream = self.target.submit(&request(), Box::new(sink), Bounds::default()).unwrap();
        self.rig.until(|| stream.phase() == Phase::Tls);
        let mut peer = Peer::accept(&self.rig, &self.server);
        peer.request(&self.rig);
        (stream, peer)
    }
}

#[test]
fn streams_come_through_one_after_the_other() {
    for version in BOTH {
        let secure = Secure::new(version);
        let (mut stream, mut peer) = secure.open();
        for round in 0..3 {
            peer.send(&format!("{HEAD}{}{}", chunk(&token("a", 1)), chunk(STOP)));
            peer.send("0\r\n\r\n");
            let events = secure.rig.ended(&mut stream);
            assert_eq!(kinds(&events), ["started", "token", "end"]);
            secure.rig.until(|| secure.rig.reactor.resting() == 1);
            if round < 2 {
                stream = submit(&secure.target);
                assert_eq!(stream.phase(), Phase::Head);
                peer.request(&secure.rig);
            }
        }
        assert_eq!(secure.rig.reactor.connections(), 1);
    }
}

#[test]
fn records_may_come_byte_by_byte_and_many_at_once() {
    for version in BOTH {
        let secure = Secure::new(version);
        let (mut stream, mut peer) = secure.open();
        let records = peer.records(&format!("{HEAD}{}", chunk(&token("a", 1))));
        for byte in records {
            peer.socket.write_all(&[byte]).unwrap();
            secure.rig.turn();
        }
        let many: String = (0..2000).map(|i| chunk(&token("x", i + 2))).collect();
        peer.send(&format!("{many}{}0\r\n\r\n", chunk(STOP)));
        let mut events = Vec::new();
        secure.rig.until(|| {
            peer.pump();
            stream.take(&mut events);
            stream.is_terminal() && stream.pending() == 0
        });
        assert_eq!(texts(&events).len(), 2001);
        assert_eq!(kinds(&events).last(), Some(&"end"));
    }
}

#[test]
fn a_stream_cut_off_is_never_an_end() {
    for version in BOTH {
        for notify in [false, true] {
            let secure = Secure::new(version);
            let (mut stream, mut peer) = secure.open();
            peer.send(&format!("{HEAD}{}", chunk(&token("a", 1))));
            peer.close(notify);
            let events = secure.rig.ended(&mut stream);
            assert_eq!(error(&events), ("truncated", "stream"));
            assert_eq!(texts(&events), ["a"]);
            assert_eq!(secure.rig.reactor.connections(), 0);
        }
    }
}

#[test]
fn only_a_close_that_is_said_ends_a_body_without_length() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    let frame = "data: {\"model_name\":\"m\",\"text_output\":\"a\"}\n\n";
    for version in BOTH {
        for (notify, last) in [(true, "end"), (false, "error")] {
            // Triton has no finish signal but the end of the body.
            let secure = Secure::new(version);
            let (mut stream, mut peer) = secure.open_as("triton");
            peer.send(&format!("{HEAD}{frame}"));
            peer.close(notify);
            let events = secure.rig.ended(&mut stream);
            assert_eq!(kinds(&events), ["started", "token", last]);
            if !notify {
                assert_eq!(error(&events), ("truncated", "stream"));
            }
        }
        // A finish signal stands, however the peer goes.
        let secure = Secure::new(version);
        let (mut stream, mut peer) = secure.open();
        peer.send(&format!("{HEAD}{STOP}"));
        peer.close(false);
        assert_eq!(kinds(&secure.rig.ended(&mut stream)), ["started", "end"]);
    }
}

#[test]
fn what_is_no_handshake_is_refused() {
    for garbage in ["HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-OpenSSH_9.9\r\n"] {
        let secure = Secure::new(&rustls::version::TLS13);
        let mut stream = submit(&secure.target);
        secure.rig.until(|| stream.phase() == Phase::Tls);
        let mut socket = secure.rig.accept();
        write(&mut socket, garbage);
        let events = secure.rig.ended(&mut stream);
        assert_eq!(error(&events), ("tls", "tls"));
        assert!(failure(&events).message.contains("does not speak TLS"));
        assert_eq!(failure(&events).processed, Processed::No);
        assert!(!failure(&events).retriable && !stream.is_sent());
        assert_eq!(secure.rig.reactor.connections(), 0);
    }
    // Nor is a close in its place.
    let secure = Secure::new(&rustls::version::TLS13);
    let mut stream = submit(&secure.target);
    secure.rig.until(|| stream.phase() == Phase::Tls);
    drop(secure.rig.accept());
    assert_eq!(error(&secure.rig.ended(&mut stream)), ("tls", "tls"));
}

#[test]
fn a_server_of_another_name_or_of_nobody_we_know_is_refused() {
    let ca = Ca::new();
    for (issuer, name) in [(&ca, "127.0.0.2"), (&ca, "engine.test"), (&Ca::new(), "127.0.0.1")] {
        let secure = Secure::with(&ca, issuer.server(name, false, &BOTH));
        let mut stream = submit(&secure.target);
        secure.rig.until(|| stream.phase() == Phase::Tls);
        let mut peer = Peer::accept(&secure.rig, &secure.server);
        secure.rig.until(|| {
            peer.pump();
            stream.is_terminal()
        });
        let events = secure.rig.ended(&mut stream);
        assert_eq!(error(&events), ("tls_verify", "tls"));
        assert_eq!(secure.rig.reactor.connections(), 0);
        // The server is told.
        secure.rig.until(|| {
            peer.pump();
            peer.tls.process_new_packets().is_err()
        });
        assert!(peer.heard.is_empty());
    }
}

#[test]
fn a_server_that_wants_a_certificate_says_so_late() {
    let ca = Ca::new();
    for (version, phase) in BOTH.into_iter().zip(["head", "tls"]) {
        // Also when the kernel says "broken pipe" first: the request does not fit the socket.
        for size in [2, 16 << 20] {
            let secure = Secure::with(&ca, ca.server("127.0.0.1", true, &[version]));
            let body = vec![b'x'; size];
            let request = Request { method: "POST", path: "/", headers: &[], body: Some(&body) };
            let sink = decoder(StreamConfig::new("llamacpp"));
            let mut stream = secure.target.submit(&request, sink, Bounds::default()).unwrap();
            secure.rig.until(|| stream.phase() == Phase::Tls);
            let mut peer = Peer::accept(&secure.rig, &secure.server);
            secure.rig.until(|| {
                peer.pump();
                stream.is_terminal()
            });
            let events = secure.rig.ended(&mut stream);
            let expected = if size > 2 && phase == "head" { "write" } else { phase };
            assert_eq!(error(&events), ("tls", expected), "{:?}", failure(&events));
            assert!(failure(&events).message.contains("client certificate"));
            assert_eq!(failure(&events).processed, Processed::No);
            assert!(!failure(&events).retriable);
        }
    }
}

#[test]
fn new_keys_are_taken_in_midstream_and_at_rest() {
    let secure = Secure::new(&rustls::version::TLS13);
    let (mut stream, mut peer) = secure.open();
    peer.send(&format!("{HEAD}{}", chunk(&token("a", 1))));
    peer.tls.refresh_traffic_keys().unwrap();
    peer.send(&format!("{}{}0\r\n\r\n", chunk(&token("b", 2)), chunk(STOP)));
    let events = secure.rig.ended(&mut stream);
    assert_eq!(texts(&events), ["a", "b"]);
    secure.rig.until(|| secure.rig.reactor.resting() == 1);
    peer.tls.refresh_traffic_keys().unwrap();
    peer.flush();
    secure.rig.turn();
    secure.rig.turn();
    assert_eq!(secure.rig.reactor.resting(), 1);
    let mut stream = submit(&secure.target);
    assert_eq!(stream.phase(), Phase::Head);
    peer.request(&secure.rig);
    peer.send(&format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
    assert_eq!(kinds(&secure.rig.ended(&mut stream)), ["started", "end"]);
}

#[test]
fn what_came_before_a_spoiled_record_is_delivered() {
    for version in BOTH {
        let secure = Secure::new(version);
        let (mut stream, mut peer) = secure.open();
        peer.send(HEAD);
        secure.rig.until(|| stream.status() == Some(200));
        let mut records = peer.records(&chunk(&token("a", 1)));
        records.extend(peer.records(&chunk(&token("b", 2))));
        let mut spoiled = peer.records(&chunk(&token("c", 3)));
        *spoiled.last_mut().unwrap() ^= 1;
        records.extend(spoiled);
        // All in one read.
        peer.socket.write_all(&records).unwrap();
        let events = secure.rig.ended(&mut stream);
        assert_eq!(texts(&events), ["a", "b"]);
        assert_eq!(error(&events), ("reset", "stream"));
        assert_eq!(secure.rig.reactor.connections(), 0);
    }
}

#[test]
fn a_close_at_rest_is_noticed() {
    for notify in [false, true] {
        let secure = Secure::new(&rustls::version::TLS13);
        let (mut stream, mut peer) = secure.open();
        peer.send(&format!("{HEAD}{}0\r\n\r\n", chunk(STOP)));
        secure.rig.ended(&mut stream);
        secure.rig.until(|| secure.rig.reactor.resting() == 1);
        peer.close(notify);
        secure.rig.until(|| secure.rig.reactor.connections() == 0);
        let (_stream, _peer) = secure.open();
    }
}

#[test]
fn an_answer_to_half_a_request_is_heard() {
    let secure = Secure::new(&rustls::version::TLS13);
    let body = vec![b'x'; 16 << 20];
    let request = Request { method: "POST", path: "/", headers: &[], body: Some(&body) };
    let sink = decoder(StreamConfig::new("llamacpp"));
    let mut stream = secure.target.submit(&request, sink, Bounds::default()).unwrap();
    secure.rig.until(|| stream.phase() == Phase::Tls);
    let mut peer = Peer::accept(&secure.rig, &secure.server);
    secure.rig.until(|| {
        peer.pump();
        stream.is_sent() && !peer.tls.is_handshaking()
    });
    // The socket fills up again.
    secure.rig.turn();
    peer.send("HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno");
    drop(peer);
    let events = secure.rig.ended(&mut stream);
    assert_eq!(failure(&events).status, Some(413), "{:?}", failure(&events));
}

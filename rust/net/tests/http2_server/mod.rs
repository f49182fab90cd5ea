//! Servers that speak HTTP/2 over TLS: h2's own, and one that writes frames as a test says.
// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::future::{Future, poll_fn};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};
use worker_adapters_net::TargetConfig;
use worker_adapters_net::origin::Origin;
use worker_adapters_net::tls::{TlsOptions, client_config};

use crate::common::{GUARD, STOP};

type Authority = CertifiedIssuer<'static, KeyPair>;

pub(crate) type Tls = tokio_rustls::server::TlsStream<TcpStream>;

/// A server with a certificate of its own CA.
pub(crate) struct Server {
    address: SocketAddr,
    ca: String,
    thread: JoinHandle<usize>,
    connections: usize,
}

impl Server {
    /// Serves so many connections side by side with `serve`, which is told how many there were
    /// before.
    pub(crate) fn start<F>(alpn: &[&[u8]], connections: usize, serve: F) -> Self
    where
        F: AsyncFn(usize, Tls) + Send + 'static,
    {
        Self::run(certified(), alpn, connections, None, serve)
    }

    /// Wants a certificate that nobody has.
    pub(crate) fn start_strictly<F>(alpn: &[&[u8]], connections: usize, serve: F) -> Self
    where
        F: AsyncFn(usize, Tls) + Send + 'static,
    {
        let (ca, key) = authority();
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
        let builder = server_config().with_client_cert_verifier(verifier.unwrap());
        let tls = builder.with_single_cert(vec![key.0], key.1).unwrap();
        Self::run((ca.pem(), tls), alpn, connections, None, serve)
    }

    /// Says when a connection has been accepted, and shakes hands when told to.
    pub(crate) fn start_slowly<F>(
        alpn: &[&[u8]],
        connections: usize,
        accepted: mpsc::Sender<()>,
        go_on: Arc<Notify>,
        serve: F,
    ) -> Self
    where
        F: AsyncFn(usize, Tls) + Send + 'static,
    {
        Self::run(certified(), alpn, connections, Some((accepted, go_on)), serve)
    }

    fn run<F>(
        (ca, mut tls): (String, ServerConfig),
        alpn: &[&[u8]],
        connections: usize,
        slowly: Option<(mpsc::Sender<()>, Arc<Notify>)>,
        serve: F,
    ) -> Self
    where
        F: AsyncFn(usize, Tls) + Send + 'static,
    {
        tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            LocalSet::new().block_on(&runtime.unwrap(), async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let serve = Rc::new(serve);
                let mut tasks = Vec::new();
                for index in 0..connections {
                    let (socket, _) = guarded(listener.accept()).await.unwrap();
                    socket.set_nodelay(true).unwrap();
                    let (acceptor, serve) = (acceptor.clone(), Rc::clone(&serve));
                    let slowly = slowly.clone();
                    tasks.push(tokio::task::spawn_local(guarded(async move {
                        if let Some((accepted, go_on)) = slowly {
                            accepted.send(()).unwrap_or_default();
                            go_on.notified().await;
                        }
                        let Ok(tls) = acceptor.accept(socket).await else { return 0 };
                        serve(index, tls).await;
                        1
                    })));
                }
                let mut served = 0;
                for task in tasks {
                    served += task.await.unwrap();
                }
                served
            })
        });
        Self { address, ca, thread, connections }
    }

    /// How to get there over HTTP/2, if the server will.
    pub(crate) fn config(&self) -> TargetConfig {
        self.config_trusting(&self.ca)
    }

    /// The same, with a CA that the server's certificate is not of.
    pub(crate) fn config_that_trusts_another(&self) -> TargetConfig {
        self.config_trusting(&certified().0)
    }

    fn config_trusting(&self, ca: &str) -> TargetConfig {
        let origin = Origin::parse(&format!("https://{}", self.address)).unwrap().0;
        let mut config = TargetConfig::new(origin);
        let options = TlsOptions::default().replace_roots(ca).http2(true);
        config.tls = Some(client_config(&options).unwrap());
        config
    }

    /// Waits until every connection has been served to its end.
    pub(crate) fn join(self) {
        assert_eq!(self.thread.join().unwrap(), self.connections);
    }

    /// The same where no handshake comes to its end.
    pub(crate) fn join_failed_handshakes(self) {
        assert_eq!(self.thread.join().unwrap(), 0);
    }
}

async fn guarded<T>(task: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, task).await.unwrap()
}

/// A CA, and the certificate and key that it has issued to the server.
fn authority() -> (Authority, (CertificateDer<'static>, PrivateKeyDer<'static>)) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &ca).unwrap().der().clone();
    (ca, (certificate, PrivateKeyDer::try_from(key.serialize_der()).unwrap()))
}

fn server_config() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap()
}

fn certified() -> (String, ServerConfig) {
    let (ca, (certificate, key)) = authority();
    let config = server_config().with_no_client_auth().with_single_cert(vec![certificate], key);
    (ca.pem(), config.unwrap())
}

// h2's own server.

/// Answers every request with `answer`, side by side, until the client has gone.
pub(crate) async fn answering<F>(tls: Tls, answer: F)
where
    F: AsyncFn(http::Request<RecvStream>, SendResponse<Bytes>) + 'static,
{
    answering_with(h2::server::Builder::new(), tls, answer).await;
}

pub(crate) async fn answering_with<F>(builder: h2::server::Builder, tls: Tls, answer: F)
where
    F: AsyncFn(http::Request<RecvStream>, SendResponse<Bytes>) + 'static,
{
    let mut connection = builder.handshake(tls).await.unwrap();
    let answer = Rc::new(answer);
    let mut tasks = Vec::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let answer = Rc::clone(&answer);
        tasks.push(tokio::task::spawn_local(guarded(async move {
            answer(request, respond).await;
        })));
    }
    for task in tasks {
        // What still waits for the test to let it go on will not be heard any more.
        if task.is_finished() {
            task.await.unwrap();
        } else {
            task.abort();
        }
    }
}

/// Begins a stream of events.
pub(crate) fn begin(respond: &mut SendResponse<Bytes>) -> SendStream<Bytes> {
    let head =
        http::Response::builder().header("content-type", "text/event-stream").body(()).unwrap();
    respond.send_response(head, false).unwrap()
}

pub(crate) fn say(stream: &mut SendStream<Bytes>, text: &str) {
    stream.send_data(Bytes::copy_from_slice(text.as_bytes()), false).unwrap();
}

pub(crate) fn end(mut stream: SendStream<Bytes>) {
    stream.send_data(Bytes::new(), true).unwrap_or_default();
}

/// Sends as the windows allow.
pub(crate) async fn write_all(stream: &mut SendStream<Bytes>, text: &str) {
    assert!(try_write_all(stream, text).await);
}

/// The same; false when the client does not want it.
pub(crate) async fn try_write_all(stream: &mut SendStream<Bytes>, text: &str) -> bool {
    let mut rest = Bytes::copy_from_slice(text.as_bytes());
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len());
        match poll_fn(|context| stream.poll_capacity(context)).await {
            Some(Ok(room)) => {
                let piece = rest.split_to(room.min(rest.len()));
                if stream.send_data(piece, false).is_err() {
                    return false;
                }
            }
            _ => return false,
        }
    }
    true
}

/// Lets the connection send what there is.
pub(crate) async fn flushed() {
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
}

// A server that writes frames.

/// A frame (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

pub(crate) struct Raw(Tls);

impl Raw {
    pub(crate) async fn greet(mut tls: Tls, settings: &[u8]) -> Self {
        let mut preface = [0; 24];
        tls.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut raw = Self(tls);
        raw.write(&frame(4, 0, 0, settings)).await;
        raw
    }

    async fn read(&mut self) -> Frame {
        self.try_read().await.unwrap()
    }

    async fn try_read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }

    pub(crate) async fn flush(&mut self) {
        self.0.flush().await.unwrap();
    }

    /// The number of the next stream, once its headers are there, and these as they were sent.
    pub(crate) async fn header_block(&mut self) -> (u32, Vec<u8>) {
        loop {
            let frame = self.read().await;
            if frame.kind == 1 {
                return (frame.stream, frame.payload);
            }
        }
    }

    /// The same, once its request is whole.
    pub(crate) async fn request(&mut self) -> u32 {
        loop {
            let frame = self.read().await;
            if frame.kind <= 1 && frame.flags & END_STREAM != 0 {
                return frame.stream;
            }
        }
    }

    pub(crate) async fn head(&mut self, stream: u32) {
        // :status 200 by its index, and content-type by its name's (RFC 7541, appendix A).
        let mut block = vec![0x88, 0x0f, 0x10, 17];
        block.extend(b"text/event-stream");
        self.write(&frame(1, END_HEADERS, stream, &block)).await;
    }

    pub(crate) async fn data(&mut self, stream: u32, text: &str, is_last: bool) {
        self.write(&frame(0, u8::from(is_last), stream, text.as_bytes())).await;
    }

    pub(crate) async fn stream_whole(&mut self, stream: u32) {
        self.head(stream).await;
        self.data(stream, STOP, true).await;
    }

    pub(crate) async fn goaway(&mut self, last: u32, reason: Reason) {
        let payload = [last.to_be_bytes(), u32::from(reason).to_be_bytes()].concat();
        self.write(&frame(7, 0, 0, &payload)).await;
    }

    pub(crate) async fn reset(&mut self, stream: u32, reason: Reason) {
        self.write(&frame(3, 0, stream, &u32::from(reason).to_be_bytes())).await;
    }

    /// Why the client resets a stream.
    pub(crate) async fn until_reset(&mut self, stream: u32) -> Reason {
        loop {
            let frame = self.read().await;
            if frame.kind == 3 && frame.stream == stream {
                return u32::from_be_bytes(frame.payload.try_into().unwrap()).into();
            }
        }
    }

    /// Why the client goes.
    pub(crate) async fn until_goaway(&mut self) -> Reason {
        loop {
            let frame = self.read().await;
            if frame.kind == 7 {
                return u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()).into();
            }
        }
    }

    /// Reads and forgets what there is.
    pub(crate) async fn discard(&mut self) {
        let mut rest = vec![0; 1 << 16];
        let _ = self.0.read(&mut rest).await.unwrap();
    }

    /// Waits for the client to close the connection.
    pub(crate) async fn end(mut self) {
        self.flush().await;
        while self.try_read().await.is_some() {}
    }
}

// HTTP/1.1.

pub(crate) async fn read_http1(tls: &mut Tls) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n{}") {
        request.push(tls.read_u8().await.unwrap());
    }
    String::from_utf8(request).unwrap()
}

pub(crate) async fn write_http1(tls: &mut Tls, text: &str) {
    tls.write_all(text.as_bytes()).await.unwrap();
    tls.flush().await.unwrap();
}

pub(crate) async fn closed_http1(tls: &mut Tls) {
    while tls.read_u8().await.is_ok() {}
}

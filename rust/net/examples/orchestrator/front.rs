//! The side that clients see: tasks in, server-sent events out, on loopback.
//!
//! One thread a client, which is enough here. An orchestrator on tokio or any other runtime awaits
//! the same futures and streams.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use futures::channel::oneshot;
use futures::executor::block_on;
use futures::future::{Either, select};
use worker_adapters_core::WorkerAdapter;
use worker_adapters_core::error::{ErrorKind, WorkerError};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::task::{Extensions, HeaderText, SubmitContext, TaskRequest, Uuid};

const MAX_CLIENTS: usize = 64;
const MAX_HEAD_BYTES: usize = 16 << 10;
const MAX_BODY_BYTES: usize = 1 << 20;

/// How long a client may take to send its request, and to take a piece of the answer.
const CLIENT_TIME: Duration = Duration::from_secs(10);

/// A request, as far as anybody here wants to know it.
struct Asked {
    method: String,
    path: String,
    context: SubmitContext,
    body: Vec<u8>,
}

/// Serves clients until the listener fails.
pub(crate) fn serve(listener: &TcpListener, adapter: &Arc<dyn WorkerAdapter>) -> io::Result<()> {
    let clients = Arc::new(AtomicUsize::new(0));
    for socket in listener.incoming() {
        let mut socket = socket?;
        if clients.fetch_add(1, Ordering::AcqRel) >= MAX_CLIENTS {
            clients.fetch_sub(1, Ordering::AcqRel);
            let _ = answer(&mut socket, 503, b"{\"message\":\"too many clients\"}");
            continue;
        }
        let (adapter, clients) = (Arc::clone(adapter), Arc::clone(&clients));
        thread::spawn(move || {
            // A client that is gone cannot be told anything.
            let _ = converse(&mut socket, &*adapter);
            clients.fetch_sub(1, Ordering::AcqRel);
        });
    }
    Ok(())
}

fn converse(socket: &mut TcpStream, adapter: &dyn WorkerAdapter) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(CLIENT_TIME))?;
    socket.set_write_timeout(Some(CLIENT_TIME))?;
    let Some(asked) = read_request(socket)? else {
        return answer(socket, 400, b"{\"message\":\"not a request\"}");
    };
    let Asked { method, path, context, body } = asked;
    let id = path.strip_prefix("/v1/tasks/").and_then(|id| Uuid::parse_str(id).ok());
    match (&*method, &*path, id) {
        ("POST", "/v1/tasks", _) => match TaskRequest::from_json(&body, &Extensions::default()) {
            Ok(task) => stream(socket, adapter, &task, &context),
            Err(refusal) => refuse(socket, refusal.into_error("orchestrator")),
        },
        ("DELETE", _, Some(id)) => answer_json(socket, &block_on(adapter.cancel(id))),
        ("GET", "/v1/health", _) => answer_json(socket, &block_on(adapter.health(None))),
        ("GET", "/v1/props", _) => match block_on(adapter.props(None)) {
            Ok(props) => answer_json(socket, &props),
            Err(error) => refuse(socket, error),
        },
        ("GET", "/v1/version", _) => match block_on(adapter.engine_version(None)) {
            Ok(version) => answer_json(socket, &version),
            Err(error) => refuse(socket, error),
        },
        _ => answer(socket, 404, b"{\"message\":\"no such route\"}"),
    }
}

/// Has a task done and serves its events as they come, every batch in one piece.
fn stream(
    socket: &mut TcpStream,
    adapter: &dyn WorkerAdapter,
    task: &TaskRequest,
    context: &SubmitContext,
) -> io::Result<()> {
    let client = socket.try_clone()?;
    let (tell, gone) = oneshot::channel();
    thread::scope(|scope| {
        // Before the first token there is nothing to write, so that only a read tells that the
        // client is gone.
        scope.spawn(|| {
            wait_for_close(client);
            tell.send(())
        });
        let outcome = block_on(forward(socket, adapter, task, context, gone));
        // Ends the watch as well; without the last chunk the client knows that it was cut off.
        let _ = socket.shutdown(Shutdown::Both);
        outcome
    })
}

/// Leaving it, for whatever reason, drops the submit or the stream, which frees the engine.
async fn forward(
    socket: &mut TcpStream,
    adapter: &dyn WorkerAdapter,
    task: &TaskRequest,
    context: &SubmitContext,
    mut gone: oneshot::Receiver<()>,
) -> io::Result<()> {
    let mut stream = match select(adapter.submit(task, context, None), &mut gone).await {
        Either::Left((Ok(stream), _)) => stream,
        Either::Left((Err(error), _)) => return refuse(socket, error),
        Either::Right(_) => return Ok(()),
    };
    socket.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
          connection: close\r\ntransfer-encoding: chunked\r\n\r\n",
    )?;
    let mut events = Vec::new();
    let mut sse = Vec::new();
    loop {
        match select(stream.as_mut().next_batch(&mut events), &mut gone).await {
            Either::Left((0, _)) => return socket.write_all(b"0\r\n\r\n"),
            Either::Left(_) => {}
            Either::Right(_) => return Ok(()),
        }
        for event in events.drain(..) {
            event.write_sse(&mut sse);
        }
        write!(socket, "{:x}\r\n", sse.len())?;
        sse.extend_from_slice(b"\r\n");
        socket.write_all(&sse)?;
        sse.clear();
    }
}

/// Waits until the client has hung up.
fn wait_for_close(mut client: TcpStream) {
    // Both handles share it; nothing else reads any more.
    let _ = client.set_read_timeout(None);
    let mut surplus = [0; 512];
    while client.read(&mut surplus).is_ok_and(|size| size > 0) {}
}

/// Reads one request; None for what is none.
fn read_request(socket: &mut TcpStream) -> io::Result<Option<Asked>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    let (mut asked, head_size, body_size) = loop {
        let size = socket.read(&mut piece)?;
        bytes.extend(piece.iter().take(size));
        match parse(&bytes) {
            Ok(Some(parsed)) => break parsed,
            Ok(None) if size > 0 && bytes.len() < MAX_HEAD_BYTES => {}
            _ => return Ok(None),
        }
    };
    if body_size > MAX_BODY_BYTES {
        return Ok(None);
    }
    let mut body = bytes.split_off(head_size);
    let missing = body_size.saturating_sub(body.len());
    let mut rest = vec![0; missing];
    socket.read_exact(&mut rest)?;
    body.append(&mut rest);
    body.truncate(body_size);
    asked.body = body;
    Ok(Some(asked))
}

/// A head, its size, and that of the body; `Ok(None)` while there is more to come.
fn parse(bytes: &[u8]) -> Result<Option<(Asked, usize, usize)>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head_size) = request.parse(bytes)? else { return Ok(None) };
    let header = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    let text = |name: &str| header(name).and_then(|value| HeaderText::new(value).ok());
    let body_size = match header("content-length") {
        Some(digits) => digits.parse().map_err(|_| httparse::Error::HeaderValue)?,
        None => 0,
    };
    let asked = Asked {
        method: request.method.unwrap_or_default().to_owned(),
        path: request.path.unwrap_or_default().to_owned(),
        context: SubmitContext {
            correlation_id: text("x-correlation-id"),
            traceparent: text("traceparent"),
            tracestate: text("tracestate"),
            ..SubmitContext::default()
        },
        body: Vec::new(),
    };
    Ok(Some((asked, head_size, body_size)))
}

/// An error that came before the stream, with the status that fits it.
fn refuse(socket: &mut TcpStream, error: WorkerError) -> io::Result<()> {
    let status = match error.code {
        ErrorKind::InvalidParams => 400,
        ErrorKind::AdmissionReject => 429,
        ErrorKind::PoolUnavailable | ErrorKind::PoolUnready | ErrorKind::ReplicaExhausted => 503,
        ErrorKind::DecodeTimeout | ErrorKind::DeadlineUnmet => 504,
        _ => 502,
    };
    let mut body = Vec::new();
    TokenEvent::Error(Box::new(error)).write_data_json(&mut body);
    answer(socket, status, &body)
}

fn answer_json(socket: &mut TcpStream, value: &impl serde::Serialize) -> io::Result<()> {
    answer(socket, 200, &serde_json::to_vec(value)?)
}

fn answer(socket: &mut TcpStream, status: u16, body: &[u8]) -> io::Result<()> {
    write!(
        socket,
        "HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    )?;
    socket.write_all(body)
}

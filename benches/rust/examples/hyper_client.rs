//! Streams through hyper on tokio into the same decoder, without Python: what the usual way costs.
//!
//! ```text
//! hyper_client PORT PATH STREAMS [runtime=current|multi] [seconds=S]
//! ```

mod common;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use common::{Arguments, Outcome, Reader, Tally};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::task::JoinSet;

async fn stream(
    socket: TcpStream,
    arguments: Arc<Arguments>,
    tally: Arc<Tally>,
    all_begun: Arc<Notify>,
) -> Outcome {
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    let request = Request::post(&arguments.path)
        .header("host", "bench")
        .body(Full::new(Bytes::from_static(b"{}")))?;
    let mut body = sender.send_request(request).await?.into_body();
    let mut reader = Reader::new()?;
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame?.into_data()
            && reader.feed(&piece, &tally)
        {
            all_begun.notify_one();
        }
    }
    reader.finish()
}

async fn run(arguments: Arguments) -> Outcome {
    let arguments = Arc::new(arguments);
    let tally = Arc::new(Tally::new(arguments.streams));
    let all_begun = Arc::new(Notify::new());
    let mut streams = JoinSet::new();
    for _ in 0..arguments.streams {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, arguments.port)).await?;
        streams.spawn(stream(
            socket,
            Arc::clone(&arguments),
            Arc::clone(&tally),
            Arc::clone(&all_begun),
        ));
    }
    match arguments.number("seconds") {
        0 => {
            while let Some(stream) = streams.join_next().await {
                stream??;
            }
        }
        seconds => {
            all_begun.notified().await;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
    }
    tally.print();
    Ok(())
}

fn main() -> Outcome {
    let arguments = Arguments::read()?;
    let runtime = match arguments.option("runtime") {
        Some("multi") => Builder::new_multi_thread().enable_all().build()?,
        _ => Builder::new_current_thread().enable_all().build()?,
    };
    runtime.block_on(run(arguments))
}

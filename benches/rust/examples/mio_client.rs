//! Streams through mio, in one loop that does nothing else, into the same decoder, without Python:
//! what reading and decoding cost at least.
//!
//! ```text
//! mio_client PORT PATH STREAMS [seconds=S] [gather=US]
//! ```

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Arguments, Outcome, Reader, Tally};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use worker_adapters_net::http1::{Item, Limits, ResponseReader};

struct Stream {
    socket: TcpStream,
    response: ResponseReader,
    reader: Reader,
}

fn open(arguments: &Arguments) -> Outcome<Stream> {
    let mut socket = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, arguments.port))?;
    let path = &arguments.path;
    write!(socket, "POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: 2\r\n\r\n{{}}")?;
    socket.set_nonblocking(true)?;
    Ok(Stream {
        socket: TcpStream::from_std(socket),
        response: ResponseReader::new(false, Limits::default()),
        reader: Reader::new()?,
    })
}

/// Decodes what has come; whether this stream was the last to begin.
fn take(
    mut bytes: &[u8],
    response: &mut ResponseReader,
    reader: &mut Reader,
    tally: &Tally,
) -> Outcome<bool> {
    let mut all_begun = false;
    loop {
        match response.next(&mut bytes)? {
            Item::NeedMore | Item::End => return Ok(all_begun),
            Item::Head(_) => {}
            Item::Body(piece) => all_begun |= reader.feed(piece, tally),
        }
    }
}

fn main() -> Outcome {
    let arguments = Arguments::read()?;
    let tally = Tally::new(arguments.streams);
    let seconds = arguments.number("seconds");
    let gather = Duration::from_micros(arguments.number("gather"));
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut streams = Vec::with_capacity(arguments.streams);
    let mut buffer = vec![0; 64 << 10];
    let mut left = arguments.streams;
    let mut until = None;
    for at in 0..arguments.streams {
        let mut stream = open(&arguments)?;
        poll.registry().register(&mut stream.socket, Token(at), Interest::READABLE)?;
        streams.push(stream);
    }
    while left > 0 && until.is_none_or(|until| Instant::now() < until) {
        if !gather.is_zero() {
            sleep(gather);
        }
        poll.poll(&mut events, Some(Duration::from_millis(10)))?;
        for event in &events {
            let Some(Stream { socket, response, reader }) = streams.get_mut(event.token().0) else {
                continue;
            };
            // A read that does not fill the buffer has emptied the socket; what comes later is
            // another edge.
            loop {
                let got = match socket.read(&mut buffer) {
                    Ok(0) => return Err("the server closed".into()),
                    Ok(got) => got,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                };
                let bytes = buffer.get(..got).unwrap_or_default();
                if take(bytes, response, reader, &tally)? && seconds > 0 {
                    until = Some(Instant::now() + Duration::from_secs(seconds));
                }
                if response.is_complete() {
                    reader.finish()?;
                    left -= 1;
                }
                if got < buffer.len() {
                    break;
                }
            }
        }
    }
    tally.print();
    Ok(())
}

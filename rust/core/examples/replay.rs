//! Decodes a captured body of an engine: bytes on stdin, events as JSON lines on stdout.
//!
//! ```sh
//! cargo run --example replay -- llamacpp < body
//! ```
//!
//! Exits with 1 when the stream ends in an error, with 2 when it is called wrongly.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
use worker_adapters_core::time::Instant;

fn main() -> io::Result<ExitCode> {
    let engine = std::env::args().nth(1).unwrap_or_default();
    let dialect = match Dialect::new(&engine, []) {
        Ok(dialect) => dialect,
        Err(error) => {
            writeln!(io::stderr(), "usage: replay ENGINE < BODY\n{error}")?;
            return Ok(ExitCode::from(2));
        }
    };
    let mut decoder = StreamDecoder::new(dialect, StreamConfig::new(&engine));
    let mut stdin = io::stdin().lock();
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let mut read = vec![0; 64 << 10];
    let mut events = Vec::new();
    let mut line = Vec::new();
    let mut failed = false;
    // A capture has no time of its own.
    let now = Instant::default();
    loop {
        let count = stdin.read(&mut read)?;
        match read.get(..count) {
            Some([]) | None => decoder.finish(true, now, &mut events),
            Some(bytes) => decoder.feed(bytes, now, &mut events),
        }
        for event in events.drain(..) {
            failed |= matches!(event, TokenEvent::Error(_));
            line.clear();
            event.write_json(&mut line);
            line.push(b'\n');
            stdout.write_all(&line)?;
        }
        if count == 0 {
            break;
        }
    }
    stdout.flush()?;
    Ok(ExitCode::from(u8::from(failed)))
}

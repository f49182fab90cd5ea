//! What accounting costs: ns per token of decoding frame by frame, without metrics and with them.
//!
//! ```text
//! accounting [ROUNDS]
//! ```
//!
//! Each round decodes the same frames both ways, one after the other; a line of JSON has all rounds.

use std::error::Error;
use std::io::{Write as _, stdout};
use std::time::{Duration, Instant as Clock};

use worker_adapters_benches::Body;
use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::metrics::{Metrics, TaskMetrics};
use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
use worker_adapters_core::time::Instant;

const FRAMES: usize = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(15), |rounds| rounds.parse())?;
    let body = Body::vllm_chat(FRAMES);
    let replica = Metrics::default().replica("vllm", "pool", "0");
    let mut found = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (ways, task) in found.iter_mut().zip([None, Some(replica.task("batch", None))]) {
            ways.push(
                decoding(&body, task)?.as_secs_f64() * 1e9 / f64::from(u32::try_from(FRAMES)?),
            );
        }
    }
    let [without, with] = found;
    writeln!(stdout(), "{{\"without\": {without:?}, \"with\": {with:?}}}")?;
    Ok(())
}

/// How long it takes when a token comes every 10 ms.
fn decoding(body: &Body, task: Option<TaskMetrics>) -> Result<Duration, Box<dyn Error>> {
    let mut config = StreamConfig::new(body.engine);
    config.metrics = task;
    let mut decoder = StreamDecoder::new(Dialect::new(body.engine, [])?, config);
    let mut now = Instant::default();
    decoder.dispatched(now);
    let mut events = Vec::new();
    let began = Clock::now();
    for frame in &body.frames {
        now = now.saturating_add(Duration::from_millis(10));
        decoder.feed(frame, now, &mut events);
        events.clear();
    }
    Ok(began.elapsed())
}

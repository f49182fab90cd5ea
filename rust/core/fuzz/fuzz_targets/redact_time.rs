//! Redaction takes time that is linear in the text, whatever is repeated in it.

#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rustix::time::{ClockId, clock_gettime};
use worker_adapters_core::redact::Redactor;

const SMALL: usize = 4 << 10;
/// How many times as long the other text is. Quadratic work takes the square of it.
const FACTOR: u32 = 32;
/// Caches are no model of linear time.
const SLACK: u32 = 5;

static REDACTOR: LazyLock<Redactor> = LazyLock::new(|| {
    Redactor::new(["hunter2-secret", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"]).unwrap()
});

/// The time this thread has had.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn time(redactor: &Redactor, text: &str) -> Duration {
    let start = cpu();
    drop(std::hint::black_box(redactor.redact(text)));
    cpu().saturating_sub(start)
}

fuzz_target!(|data: &[u8]| {
    let pattern = String::from_utf8_lossy(data);
    if pattern.is_empty() || pattern.len() > SMALL {
        return;
    }
    let small = pattern.repeat(SMALL / pattern.len());
    let large = small.repeat(FACTOR as usize);
    let is_linear = || {
        let fast = time(&REDACTOR, &small).max(Duration::from_micros(50));
        time(&REDACTOR, &large) < fast * FACTOR * SLACK
    };
    // Once is chance.
    assert!((0..5).any(|_| is_linear()), "not linear in {pattern:?}");
});

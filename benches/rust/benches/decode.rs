//! Time per event of decoding in Rust: one frame per read, and in pieces of 64 KiB.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use worker_adapters_benches::{Body, decode};

const FRAMES: usize = 20_000;

fn decoding(criterion: &mut Criterion) {
    for body in [Body::vllm_chat(FRAMES), Body::llamacpp(FRAMES), Body::tgi(FRAMES)] {
        let mut group = criterion.benchmark_group(body.name);
        group.throughput(Throughput::Elements(FRAMES as u64));
        let mut events = Vec::new();
        for (pieces, reads) in [("per_event", body.frames.clone()), ("64KiB", body.reads(64 << 10))]
        {
            group.bench_function(pieces, |bencher| {
                bencher.iter(|| {
                    assert!(decode(body.engine, black_box(&reads), &mut events) > FRAMES);
                });
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).sample_size(30);
    targets = decoding
}
criterion_main!(benches);

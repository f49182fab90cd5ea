//! Heap allocations per token in steady state, counted by the allocator itself.
//!
//! Prints one JSON line per body and way of reading: the allocations of a short stream and of one
//! ten times as long. What both have in common is set-up; the difference is the cost of tokens.

#![expect(unsafe_code, reason = "a counting allocator has to implement GlobalAlloc")]
#![expect(clippy::print_stdout, reason = "the result")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use worker_adapters_benches::{Body, decode};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator, which upholds the contract;
// counting touches nothing but an atomic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `alloc` or `realloc` here, which is the system's.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: `ptr` came from `alloc` or `realloc` here, which is the system's.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(engine: &str, reads: &[Vec<u8>]) -> u64 {
    let mut events = Vec::with_capacity(4096);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let count = decode(engine, reads, &mut events);
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(count >= 2_000);
    after - before
}

fn main() {
    const SHORT: usize = 2_000;
    const LONG: usize = 20_000;
    for body in [Body::vllm_chat as fn(usize) -> Body, Body::llamacpp, Body::tgi] {
        let (short, long) = (body(SHORT), body(LONG));
        for (pieces, size) in
            [("per_event", None), ("64KiB", Some(64 << 10)), ("1500B", Some(1500))]
        {
            let reads =
                |body: &Body| size.map_or_else(|| body.frames.clone(), |size| body.reads(size));
            let few = allocations(short.engine, &reads(&short));
            let many = allocations(long.engine, &reads(&long));
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let per_token = many.saturating_sub(few) as f64 / (LONG - SHORT) as f64;
            println!(
                "{{\"body\":\"{}\",\"reads\":\"{pieces}\",\"allocations_{SHORT}\":{few},\
                 \"allocations_{LONG}\":{many},\"per_token\":{per_token}}}",
                short.name
            );
        }
    }
}

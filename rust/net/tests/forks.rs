//! A process that was forked leaves the sockets of its parent alone.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Waker};

use common::*;
use worker_adapters_core::StreamConfig;
use worker_adapters_net::{Bounds, Reactor, ReactorConfig};

/// Which process the test plays.
static PROCESS: AtomicU32 = AtomicU32::new(PARENT);
const PARENT: u32 = 1;
const CHILD: u32 = 2;

#[test]
fn only_the_process_that_made_a_reactor_uses_it() {
    let mut config = ReactorConfig::default();
    config.process = || PROCESS.load(Ordering::SeqCst);
    let mut rig = Rig::new();
    rig.reactor = Reactor::new(config).unwrap();
    let target = rig.target();
    let (mut stream, mut socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    let (dropped, mut other_socket) = rig.open(&target, StreamConfig::new("llamacpp"));
    write(&mut socket, &format!("{HEAD}{}", chunk(&token("a", 1))));
    rig.until(|| stream.pending() > 0);

    PROCESS.store(CHILD, Ordering::SeqCst);
    assert!(rig.reactor.is_forked());
    assert!(rig.reactor.turn(Some(INSTANTLY)).is_err());
    assert!(
        target
            .submit(&request(), decoder(StreamConfig::new("llamacpp")), Bounds::default())
            .is_err()
    );
    let mut events = Vec::new();
    assert!(stream.poll_batch(&mut Context::from_waker(Waker::noop()), &mut events).is_ready());
    assert!(!stream.take(&mut events) && events.is_empty());
    assert!(stream.is_terminal() && !stream.cancel());
    drop(dropped);

    PROCESS.store(PARENT, Ordering::SeqCst);
    assert_eq!(rig.reactor.connections(), 2);
    write(&mut socket, &format!("{}0\r\n\r\n", chunk(STOP)));
    assert_eq!(kinds(&rig.ended(&mut stream)), ["started", "token", "end"]);
    // The child has only forgotten the other stream.
    write(&mut other_socket, &format!("{HEAD}{}", chunk(&token("b", 1))));
    rig.until(|| rig.reactor.stats().events > 0);
}

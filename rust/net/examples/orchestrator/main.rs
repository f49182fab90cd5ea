//! A small orchestrator in Rust: takes tasks over HTTP, has a llama.cpp server do them, and serves
//! the events onward.
//!
//! ```sh
//! cargo run -p worker-adapters-net --example orchestrator -- http://127.0.0.1:8080
//! ```
//!
//! The one line on stdout says where it listens. A task goes there as the contract's JSON and comes
//! back as server-sent events:
//!
//! ```sh
//! curl -N -d @task.json http://127.0.0.1:PORT/v1/tasks
//! curl -X DELETE http://127.0.0.1:PORT/v1/tasks/TASK_ID
//! ```
//!
//! `llamacpp.rs` is what a Rust program writes for an engine: its requests and its rules. `front.rs`
//! knows the trait `WorkerAdapter` and nothing of engines. All else is the crates'.

mod front;
mod llamacpp;

use std::error::Error;
use std::io::{self, Write};
use std::net::TcpListener;
use std::sync::Arc;

use futures::executor::block_on;
use worker_adapters_core::WorkerAdapter;
use worker_adapters_net::{Reactor, ReactorConfig};

use crate::llamacpp::LlamaCpp;

fn main() -> Result<(), Box<dyn Error>> {
    let base_url = std::env::args().nth(1).ok_or("usage: orchestrator http://HOST:PORT")?;
    let reactor = Reactor::new(ReactorConfig::default())?;
    // Lives as long as the program: it moves every stream.
    let _driver = reactor.spawn()?;
    let adapter = LlamaCpp::new(&reactor, &base_url)?;
    // Every `started` reports it from now on. An engine that is not up yet is no reason to leave.
    if let Err(error) = block_on(adapter.engine_version(None)) {
        writeln!(io::stderr(), "{error}")?;
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    writeln!(io::stdout(), "listening http://{}", listener.local_addr()?)?;
    let adapter: Arc<dyn WorkerAdapter> = Arc::new(adapter);
    front::serve(&listener, &adapter)?;
    Ok(())
}

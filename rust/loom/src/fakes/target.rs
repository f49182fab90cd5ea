//! An engine that answers when it is told to.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::Waker;

use worker_adapters_core::dialects::Dialect;
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
use worker_adapters_core::time::Instant;

use crate::sink::Sink;
use crate::state::Leftovers;
use crate::stream::EventStream;
use crate::sync::Mutex;

pub struct Request<'r>(pub PhantomData<&'r ()>);

pub struct Bounds;

/// Requests can always be written here.
pub enum SubmitError {}

impl fmt::Display for SubmitError {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

/// What the reactor keeps of one exchange.
pub struct Exchange {
    pub status: Option<u16>,
    pub queue: Vec<TokenEvent>,
    pub is_removed: bool,
    pub waker: Option<Waker>,
    decoder: StreamDecoder,
}

impl Exchange {
    fn new() -> Self {
        let dialect = Dialect::new("llamacpp", []).unwrap();
        Self {
            status: None,
            queue: Vec::new(),
            is_removed: false,
            waker: None,
            decoder: StreamDecoder::new(dialect, StreamConfig::new("llamacpp")),
        }
    }

    pub fn is_terminal(&self) -> bool {
        self.decoder.is_terminal()
    }

    /// Ends it unless it has ended; whether it had not. Tokens that nobody took are taken back.
    pub fn cancel(&mut self) -> (bool, Leftovers) {
        self.queue.retain(TokenEvent::is_terminal);
        if self.is_terminal() || self.is_removed {
            return (false, Leftovers::default());
        }
        self.decoder.cancel(Instant::default(), &mut self.queue);
        (true, Leftovers(self.waker.take()))
    }

    fn frame(&mut self, frame: &str) {
        let frame = format!("data: {{{frame}}}\n\n");
        self.decoder.feed(frame.as_bytes(), Instant::default(), &mut self.queue);
    }
}

/// One exchange at a time.
#[derive(Clone)]
pub struct Target(pub Arc<Mutex<Exchange>>);

impl Target {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Exchange::new())))
    }

    pub fn submit(
        &self,
        _: &Request<'_>,
        _: Box<dyn Sink>,
        _: Bounds,
    ) -> Result<EventStream, SubmitError> {
        Ok(EventStream::new(self.clone()))
    }

    /// The engine answers 200, and goes on or not.
    pub fn answer_head(&self) {
        self.change(|exchange| exchange.status = Some(200));
    }

    /// The engine answers 200, if it has not, with one token and the end.
    pub fn answer(&self) {
        self.answer_head();
        self.change(|exchange| exchange.frame(r#""content":"a","stop":false"#));
        self.change(|exchange| exchange.frame(r#""content":"","stop":true"#));
    }

    fn change(&self, change: impl FnOnce(&mut Exchange)) {
        let leftovers = {
            let mut exchange = self.0.lock().unwrap();
            if exchange.is_terminal() || exchange.is_removed {
                return;
            }
            change(&mut exchange);
            Leftovers(exchange.waker.take())
        };
        leftovers.settle();
    }
}

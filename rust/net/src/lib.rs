//! The native data plane: sockets read and decoded into token events.
//!
//! * [`http1`] reads HTTP/1.1 responses strictly, without copying bodies.
//! * [`resolver`] turns names into addresses in a few threads; [`tls`] makes the client's
//!   configuration.

#![forbid(unsafe_code)]

pub mod http1;
pub mod resolver;
pub mod tls;

//! The native data plane: sockets read and decoded into token events.
//!
//! * [`http1`] reads HTTP/1.1 responses strictly, without copying bodies.
//! * [`origin`] reads base URLs; [`resolver`] turns names into addresses in a few threads,
//!   [`happy_eyeballs`] says in which order those are tried; [`tls`] makes the client's
//!   configuration.

#![forbid(unsafe_code)]

pub mod happy_eyeballs;
pub mod http1;
pub mod origin;
pub mod resolver;
pub mod tls;

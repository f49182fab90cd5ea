//! HTTP/2 where TLS negotiates it: many exchanges on one connection.
//!
//! The protocol is h2's; this module gives it bytes and asks it for events, by hand, from inside the
//! reactor. No runtime is involved:
//!
//! * `Pipe` is what h2 reads from and writes to. It decrypts straight out of the socket, within an
//!   allowance, and gathers what is written, so that one turn costs one write.
//! * `Session` is a connection. It is polled when its socket is ready, or when a stream has left
//!   something to send.
//! * `Stream` is one exchange's part of it. A waker of its own says that something has come, so that
//!   a turn costs what the streams cost that have something, not all there are.
//!
//! A reader that is slow stops its own stream alone: its capacity is given back only for what has
//! been decoded, and the connection's window has room for all streams at once.
//!
//! Standard: <https://www.rfc-editor.org/rfc/rfc9113>.

mod group;
mod pipe;
mod request;
mod session;
mod stream;

pub(crate) use group::Group;
pub(crate) use session::{NotSent, Room, Session};
pub(crate) use stream::{Fault, Item, Stream};

/// How it is named in ALPN.
pub(crate) const ALPN: &[u8] = b"h2";

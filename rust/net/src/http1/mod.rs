//! The client side of HTTP/1.1, strict and without I/O: bytes in, one response out.
//!
//! [`ResponseReader`] is shaped by how engines stream:
//!
//! * A token is one small chunk. Its size line is read digit by digit out of the network read, and
//!   its data is handed out borrowed from there: no copy, no allocation.
//! * A head comes whole in one read and is parsed where it lies. Only one that is split is kept,
//!   within [`Limits::head_bytes`].
//! * Two readers that disagree on where a body ends can be made to hand one caller's answer to
//!   another. What RFC 9112 lets a recipient repair (bare LF, folded lines, `Content-Length` beside
//!   `Transfer-Encoding`) is a [`Fault`] here, and the reader stays failed.
//!
//! Every verdict depends on the bytes alone, not on how reads cut them.
//!
//! ```
//! use worker_adapters_net::http1::{Item, Limits, ResponseReader};
//!
//! let mut input: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
//! let mut reader = ResponseReader::new(false, Limits::default());
//! assert!(matches!(reader.next(&mut input), Ok(Item::Head(head)) if head.status == 200));
//! assert!(matches!(reader.next(&mut input), Ok(Item::Body(b"hi"))));
//! assert!(matches!(reader.next(&mut input), Ok(Item::End)));
//! assert!(reader.keeps_alive());
//! ```
//!
//! Standard: <https://www.rfc-editor.org/rfc/rfc9112>.

mod body;
mod head;
mod request;

use std::fmt;

use worker_adapters_core::error::Detail;

use body::{Body, Piece};
pub use head::Head;
use head::HeadReader;
pub use request::{InvalidRequest, write_request};

/// [`Limits::head_bytes`].
pub const HEAD_BYTES: usize = 64 << 10;

/// [`Limits::headers`].
pub const HEADERS: usize = 100;

/// [`Limits::interim_responses`].
pub const INTERIM_RESPONSES: usize = 16;

/// [`Limits::chunk_extension_bytes`].
pub const CHUNK_EXTENSION_BYTES: usize = 16 << 10;

/// [`Limits::trailer_bytes`].
pub const TRAILER_BYTES: usize = 16 << 10;

/// What a response may take; each may be reached, none passed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one head, from its status line through its blank line; 64 KiB.
    pub head_bytes: usize,
    /// Header lines of one head; 100.
    pub headers: usize,
    /// Interim (1xx) responses before the final one; 16.
    pub interim_responses: usize,
    /// Bytes between a chunk's size and the end of that line; 16 KiB.
    pub chunk_extension_bytes: usize,
    /// Bytes of the trailer lines with their line ends; 16 KiB.
    pub trailer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: HEAD_BYTES,
            headers: HEADERS,
            interim_responses: INTERIM_RESPONSES,
            chunk_extension_bytes: CHUNK_EXTENSION_BYTES,
            trailer_bytes: TRAILER_BYTES,
        }
    }
}

/// One item of a response; `'r` borrows from the reader, `'b` from the input.
pub enum Item<'r, 'b> {
    /// The whole input is consumed and the next item needs more.
    NeedMore,
    /// The final head. Interim responses are skipped.
    Head(Head<'r>),
    /// The next bytes of the body, never empty.
    Body(&'b [u8]),
    /// The response is complete. What follows it is left in the input.
    End,
}

// Generated text never reaches a log through `{:?}`.
impl fmt::Debug for Item<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeedMore => f.write_str("NeedMore"),
            Self::Head(head) => head.fmt(f),
            Self::Body(piece) => write!(f, "Body({} bytes)", piece.len()),
            Self::End => f.write_str("End"),
        }
    }
}

/// Why a response cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not an HTTP/1 response head, one past its [`Limits`], or a switch to another protocol.
    Protocol,
    /// Malformed or ambiguous framing of the body.
    Framing,
    /// The peer closed before the end.
    Truncated,
    /// Instead of a response the peer sends an alert of TLS, which it takes us to speak.
    Tls,
}

impl Fault {
    /// The stable word for it.
    #[must_use]
    pub const fn detail(self) -> Detail {
        match self {
            Self::Protocol => Detail::Protocol,
            Self::Framing => Detail::Framing,
            Self::Truncated => Detail::Truncated,
            Self::Tls => Detail::Tls,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protocol => "the peer's response head is not valid HTTP/1.1",
            Self::Framing => "the response body is framed against RFC 9112",
            Self::Truncated => "the peer closed before the end of the response",
            Self::Tls => "the peer speaks TLS on this port; use https://",
        })
    }
}

impl std::error::Error for Fault {}

#[derive(Clone, Copy)]
enum State {
    /// In the head of an interim or of the final response.
    Head,
    Body(Body),
    End,
    Failed(Fault),
}

/// Reads one response from bytes in any pieces.
pub struct ResponseReader {
    state: State,
    limits: Limits,
    head_request: bool,
    head: HeadReader,
    close_delimited: bool,
    /// Whether the connection outlives the response, by all that was seen of it.
    reusable: bool,
}

impl ResponseReader {
    /// A reader for the response to one request; `head_request` if its method is HEAD, whose
    /// response has no body whatever its head says.
    #[must_use]
    pub fn new(head_request: bool, limits: Limits) -> Self {
        Self {
            state: State::Head,
            limits,
            head_request,
            head: HeadReader::default(),
            close_delimited: false,
            reusable: false,
        }
    }

    /// Takes as much of `input` as the next item needs and moves `input` past it.
    ///
    /// Call it until it gives [`Item::NeedMore`] or [`Item::End`]: an end may need no further byte.
    ///
    /// # Errors
    ///
    /// The response's [`Fault`], and the same again from then on.
    #[inline]
    pub fn next<'r, 'b: 'r>(&'r mut self, input: &mut &'b [u8]) -> Result<Item<'r, 'b>, Fault> {
        match &mut self.state {
            State::Body(body) => {
                self.head.forget();
                match body.next(input, &self.limits) {
                    Ok(Piece::NeedMore) => Ok(Item::NeedMore),
                    Ok(Piece::Data(piece)) => Ok(Item::Body(piece)),
                    Ok(Piece::End) => {
                        self.state = State::End;
                        self.reusable &= input.is_empty();
                        Ok(Item::End)
                    }
                    Err(fault) => Err(self.fail(fault)),
                }
            }
            State::Head => match self.head.read(input, &self.limits) {
                Ok(Some((facts, bytes))) => {
                    let body = facts.body(self.head_request);
                    self.close_delimited = body == Body::UntilClose;
                    self.reusable = facts.persistent && !self.close_delimited;
                    self.state = State::Body(body);
                    Ok(Item::Head(Head::new(facts.status, self.head.bytes(bytes))))
                }
                Ok(None) => Ok(Item::NeedMore),
                Err(fault) => Err(self.fail(fault)),
            },
            State::End => {
                self.reusable &= input.is_empty();
                Ok(Item::End)
            }
            State::Failed(fault) => Err(*fault),
        }
    }

    /// Says that the peer closed its side, by TCP FIN or, on TLS, by `close_notify`.
    ///
    /// # Errors
    ///
    /// [`Fault::Truncated`] unless the response was complete or only the close could end it; an
    /// earlier fault again.
    pub fn eof(&mut self) -> Result<(), Fault> {
        self.reusable = false;
        match self.state {
            State::Body(body) if body.may_end() => {
                self.state = State::End;
                Ok(())
            }
            State::End => Ok(()),
            State::Failed(fault) => Err(fault),
            State::Head | State::Body(_) => Err(self.fail(Fault::Truncated)),
        }
    }

    /// Whether some but not all of a head has come, interim heads counted each for itself.
    #[must_use]
    pub fn has_partial_head(&self) -> bool {
        matches!(self.state, State::Head) && self.head.is_partial()
    }

    /// Whether the whole response has been read.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// Whether the head says that only the peer's close ends the body.
    #[must_use]
    pub fn is_close_delimited(&self) -> bool {
        self.close_delimited
    }

    /// Whether the connection may carry another request: the response is complete, nothing
    /// followed it, and the peer keeps the connection.
    #[must_use]
    pub fn keeps_alive(&self) -> bool {
        self.is_complete() && self.reusable
    }

    fn fail(&mut self, fault: Fault) -> Fault {
        self.head.forget();
        self.state = State::Failed(fault);
        fault
    }
}

impl fmt::Debug for ResponseReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Head => "head",
            State::Body(_) => "body",
            State::End => "end",
            State::Failed(_) => "failed",
        };
        f.debug_struct("ResponseReader").field("state", &state).finish_non_exhaustive()
    }
}

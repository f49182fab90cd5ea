//! Where a body ends: by length, by chunks, or with the connection.

use super::{Fault, Limits};

/// A chunk size of more digits can exceed 64 bits.
const SIZE_DIGITS: u8 = 16;

/// What a body's next bytes amount to.
pub(super) enum Piece<'b> {
    NeedMore,
    Data(&'b [u8]),
    End,
}

/// The part of a body that is still to come (RFC 9112, section 6).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Length(u64),
    UntilClose,
    Chunked(Chunked),
}

impl Body {
    pub(super) const EMPTY: Self = Self::Length(0);
    pub(super) const CHUNKED: Self = Self::Chunked(Chunked::NEXT);

    /// Whether the body is whole if no byte follows.
    pub(super) const fn may_end(self) -> bool {
        matches!(self, Self::EMPTY | Self::UntilClose)
    }

    #[inline]
    pub(super) fn next<'b>(
        &mut self,
        input: &mut &'b [u8],
        limits: &Limits,
    ) -> Result<Piece<'b>, Fault> {
        match self {
            Self::Chunked(chunked) => chunked.next(input, limits),
            Self::Length(0) => Ok(Piece::End),
            Self::Length(left) => Ok(take(left, input)),
            Self::UntilClose => Ok(match std::mem::take(input) {
                [] => Piece::NeedMore,
                piece => Piece::Data(piece),
            }),
        }
    }
}

/// Takes what has come of the next `left` bytes.
#[inline]
fn take<'b>(left: &mut u64, input: &mut &'b [u8]) -> Piece<'b> {
    let bytes = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
    let (piece, rest) = input.split_at(bytes);
    *input = rest;
    *left -= piece.len() as u64;
    if piece.is_empty() { Piece::NeedMore } else { Piece::Data(piece) }
}

/// What the next byte of a chunked body belongs to (RFC 9112, section 7.1).
///
/// The numbers of a size line that is split live here, so that none is ever kept as text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunked {
    Size {
        size: u64,
        digits: u8,
    },
    /// Whitespace that only an extension may follow.
    Padding {
        size: u64,
        bytes: usize,
    },
    Extension {
        size: u64,
        bytes: usize,
    },
    /// The LF of a size line.
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// The start of a trailer line or of the last blank one.
    TrailerStart {
        bytes: usize,
    },
    TrailerName {
        bytes: usize,
    },
    TrailerValue {
        bytes: usize,
    },
    TrailerLf {
        bytes: usize,
    },
    LastLf,
}

impl Chunked {
    const NEXT: Self = Self::Size { size: 0, digits: 0 };

    #[inline]
    fn next<'b>(&mut self, input: &mut &'b [u8], limits: &Limits) -> Result<Piece<'b>, Fault> {
        loop {
            if let Self::Data { left } = self {
                let piece = take(left, input);
                if *left == 0 {
                    *self = Self::DataCr;
                }
                return Ok(piece);
            }
            // A token's chunk: what is around its data lies whole in one read.
            if matches!(self, Self::DataCr)
                && let Some(rest) = input.strip_prefix(b"\r\n")
            {
                *input = rest;
                *self = Self::NEXT;
            }
            if matches!(self, Self::Size { digits: 0, .. })
                && let Some((size, rest)) = plain_size(input)
            {
                *input = rest;
                *self = Self::Data { left: size };
                continue;
            }
            let Some((&byte, rest)) = input.split_first() else { return Ok(Piece::NeedMore) };
            *input = rest;
            *self = match *self {
                Self::LastLf if byte == b'\n' => return Ok(Piece::End),
                state => state.step(byte, limits).ok_or(Fault::Framing)?,
            };
        }
    }

    /// The state after a byte that is not data, if the byte may stand there.
    #[inline]
    fn step(self, byte: u8, limits: &Limits) -> Option<Self> {
        let within = |bytes: usize, limit| Some(bytes + 1).filter(|bytes| *bytes <= limit);
        let extended = |bytes| within(bytes, limits.chunk_extension_bytes);
        let trailed = |bytes| within(bytes, limits.trailer_bytes);
        Some(match (self, byte) {
            (Self::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS {
                    return None;
                }
                let digit = char::from(byte).to_digit(16)?;
                Self::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Self::Size { digits: 0, .. }, _) => return None,
            (Self::Size { size, .. } | Self::Extension { size, .. }, b'\r') => {
                Self::SizeEnd { size }
            }
            (Self::Size { size, .. }, b' ' | b'\t') => Self::Padding { size, bytes: extended(0)? },
            (Self::Padding { size, bytes }, b' ' | b'\t') => {
                Self::Padding { size, bytes: extended(bytes)? }
            }
            (Self::Size { size, .. }, b';') => Self::Extension { size, bytes: extended(0)? },
            (Self::Padding { size, bytes }, b';') => {
                Self::Extension { size, bytes: extended(bytes)? }
            }
            (Self::Extension { size, bytes }, _) if is_text(byte) => {
                Self::Extension { size, bytes: extended(bytes)? }
            }
            (Self::SizeEnd { size: 0 }, b'\n') => Self::TrailerStart { bytes: 0 },
            (Self::SizeEnd { size }, b'\n') => Self::Data { left: size },
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::NEXT,
            (Self::TrailerStart { .. }, b'\r') => Self::LastLf,
            (Self::TrailerStart { bytes } | Self::TrailerName { bytes }, _) if is_token(byte) => {
                Self::TrailerName { bytes: trailed(bytes)? }
            }
            (Self::TrailerName { bytes }, b':') => Self::TrailerValue { bytes: trailed(bytes)? },
            (Self::TrailerValue { bytes }, b'\r') => Self::TrailerLf { bytes: trailed(bytes)? },
            (Self::TrailerValue { bytes }, _) if is_text(byte) => {
                Self::TrailerValue { bytes: trailed(bytes)? }
            }
            (Self::TrailerLf { bytes }, b'\n') => Self::TrailerStart { bytes: trailed(bytes)? },
            _ => return None,
        })
    }
}

/// Reads a whole size line that has no extension and is not of the last chunk.
#[inline]
fn plain_size(input: &[u8]) -> Option<(u64, &[u8])> {
    let mut size = 0;
    for (at, byte) in input.iter().enumerate().take(usize::from(SIZE_DIGITS) + 1) {
        let Some(digit) = char::from(*byte).to_digit(16) else {
            let rest = input.get(at..)?.strip_prefix(b"\r\n")?;
            return (size > 0).then_some((size, rest));
        };
        size = size << 4 | u64::from(digit);
    }
    None
}

/// What may stand in a field value or in an extension (RFC 9110, section 5.5).
const fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7F)
}

/// A character of a token, as field names and methods are (RFC 9110, section 5.6.2).
pub(super) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

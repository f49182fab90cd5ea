//! What can go wrong, as data: closed sets of words, never text to be parsed.
//!
//! [`WorkerError`] is the one error of a stream or call, with the fields of the contract. Its
//! classification comes from one of three places: the [`Detail`] a transport or decoder names, an
//! engine's rule table ([`RuleTable`](crate::rules::RuleTable)), or the HTTP status.

use std::fmt;
use std::sync::Arc;

use crate::redact::Redactor;
use crate::words::words;

words! {
    /// The kinds of `WorkerError` in the contract.
    WorkerErrorKind {
        /// The task's deadline passed, in whatever phase.
        DeadlineUnmet = "DeadlineUnmet",
        /// Unreachable, refused, overloaded, breaker open.
        PoolUnavailable = "PoolUnavailable",
        /// The response head, first token, token gap or idle clock expired.
        DecodeTimeout = "DecodeTimeout",
        /// Connection lost or stream cut off after sending, engine died.
        WorkerReset = "WorkerReset",
        /// The engine rejects the request or speaks nonsense.
        Adapter = "Adapter",
        /// A fault of this library.
        Internal = "Internal",
    }
}

words! {
    /// The codes an orchestrator sees.
    ErrorKind {
        /// Refused at admission (429).
        AdmissionReject = "ADMISSION_REJECT",
        /// Dropped from a full queue in favour of a newer task.
        QueueFullDropLru = "QUEUE_FULL_DROP_LRU",
        /// The request or the configuration is wrong.
        InvalidParams = "INVALID_PARAMS",
        /// The model loads or the replica drains.
        PoolUnready = "POOL_UNREADY",
        /// The engine cannot be reached or is overloaded.
        PoolUnavailable = "POOL_UNAVAILABLE",
        /// The engine's queue is full.
        ReplicaExhausted = "REPLICA_EXHAUSTED",
        /// A clock of the stream expired.
        DecodeTimeout = "DECODE_TIMEOUT",
        /// The stream was cut off.
        WorkerReset = "WORKER_RESET",
        /// Nonsense from the engine, or a fault of this library.
        Internal = "INTERNAL",
        /// The task's deadline passed.
        DeadlineUnmet = "DEADLINE_UNMET",
        /// The engine says that the model is deprecated.
        ModelDeprecated = "MODEL_DEPRECATED",
        /// The engine says that the artefact is not trusted.
        UntrustedArtifact = "UNTRUSTED_ARTIFACT",
    }
}

words! {
    /// Where in a call or stream an error arose.
    Phase {
        /// The request is checked and built.
        Validate = "validate",
        /// Waiting for a place to send it.
        Queue = "queue",
        /// Name resolution.
        Resolve = "resolve",
        /// Connecting.
        Connect = "connect",
        /// TLS handshake.
        Tls = "tls",
        /// Sending the request.
        Write = "write",
        /// Waiting for the response head.
        Head = "head",
        /// Waiting for the first token.
        FirstToken = "first_token",
        /// Between the first token and the terminal event.
        Stream = "stream",
        /// Cancelling.
        Cancel = "cancel",
        /// After the terminal event.
        Drain = "drain",
    }
}

words! {
    /// Whether the engine worked on the request.
    Processed {
        /// Certainly not: it may be sent again.
        No = "no",
        /// It may have.
        Unknown = "unknown",
        /// It has.
        Yes = "yes",
    }
}

/// What a [`Detail`] means by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// The kind of error.
    pub kind: WorkerErrorKind,
    /// Its code.
    pub code: ErrorKind,
    /// Whether the same task may succeed elsewhere or later.
    pub retriable: bool,
}

macro_rules! details {
    ($($(#[$meta:meta])* $variant:ident = $word:literal => $kind:ident $code:ident $retriable:literal,)+) => {
        words! {
            /// The stable word that says what happened.
            Detail { $($(#[$meta])* $variant = $word,)+ }
        }

        impl Detail {
            /// Kind, code and retriability that go with this word.
            #[must_use]
            pub const fn class(self) -> Class {
                match self {
                    $(Self::$variant => Class {
                        kind: WorkerErrorKind::$kind,
                        code: ErrorKind::$code,
                        retriable: $retriable,
                    },)+
                }
            }
        }
    };
}

details! {
    /// The name has no address.
    Resolve = "resolve" => PoolUnavailable PoolUnavailable true,
    /// The connection was refused.
    Connect = "connect" => PoolUnavailable PoolUnavailable true,
    /// No connection within the connect clock.
    ConnectTimeout = "connect_timeout" => PoolUnavailable PoolUnavailable true,
    /// This host cannot open the connection: no route, no free port.
    Local = "local" => PoolUnavailable PoolUnavailable true,
    /// This process is out of file descriptors.
    Fd = "fd" => PoolUnavailable PoolUnavailable true,
    /// All connections are in use and the wait was too long.
    Saturated = "saturated" => PoolUnavailable PoolUnavailable true,
    /// The circuit breaker is open.
    CircuitOpen = "circuit_open" => PoolUnavailable PoolUnavailable true,
    /// The TLS handshake took too long.
    TlsTimeout = "tls_timeout" => PoolUnavailable PoolUnavailable true,
    /// The request could not be sent in time.
    WriteTimeout = "write_timeout" => PoolUnavailable PoolUnavailable true,
    /// The response head came too slowly.
    HeaderTimeout = "header_timeout" => PoolUnavailable PoolUnavailable true,
    /// The engine asked to slow down (429).
    RateLimited = "rate_limited" => PoolUnavailable AdmissionReject true,
    /// The engine's queue is full.
    QueueFull = "queue_full" => PoolUnavailable ReplicaExhausted true,
    /// The engine loads its model.
    Loading = "loading" => PoolUnavailable PoolUnready true,
    /// The orchestrator sheds the pool's load.
    Shed = "shed" => PoolUnavailable AdmissionReject true,
    /// The replica takes no new work.
    Draining = "draining" => PoolUnavailable PoolUnready true,
    /// The engine or a proxy before it is not available (502, 503).
    Unavailable = "unavailable" => PoolUnavailable PoolUnavailable true,
    /// The server gave up waiting for the request (408) or did not want it yet (425).
    NotReady = "not_ready" => PoolUnavailable PoolUnavailable true,
    /// The server's certificate does not verify.
    TlsVerify = "tls_verify" => Adapter InvalidParams false,
    /// The TLS handshake failed.
    Tls = "tls" => Adapter InvalidParams false,
    /// The egress policy forbids the address.
    EgressDenied = "egress_denied" => Adapter InvalidParams false,
    /// The server redirects; redirects are not followed.
    Redirect = "redirect" => Adapter InvalidParams false,
    /// The proxy wants credentials.
    ProxyAuth = "proxy_auth" => Adapter InvalidParams false,
    /// The request is not valid for this engine.
    InvalidRequest = "invalid_request" => Adapter InvalidParams false,
    /// Prompt and output do not fit the context.
    ContextOverflow = "context_overflow" => Adapter InvalidParams false,
    /// Missing or wrong credentials (401).
    Unauthorized = "unauthorized" => Adapter InvalidParams false,
    /// The credentials do not allow it (403).
    Forbidden = "forbidden" => Adapter InvalidParams false,
    /// No such route or model.
    NotFound = "not_found" => Adapter InvalidParams false,
    /// The engine cannot do this, or not as it is started.
    Unsupported = "unsupported" => Adapter InvalidParams false,
    /// The engine has another model loaded.
    WrongModel = "wrong_model" => Adapter InvalidParams false,
    /// A task with this id is in flight.
    DuplicateId = "duplicate_id" => Adapter InvalidParams false,
    /// The engine says that the model is deprecated.
    ModelDeprecated = "model_deprecated" => Adapter ModelDeprecated false,
    /// The engine says that the artefact is not trusted.
    UntrustedArtifact = "untrusted_artifact" => Adapter UntrustedArtifact false,
    /// A status that a submit is not answered with.
    Status = "status" => Adapter Internal false,
    /// Not HTTP, a head past its limits, or an answer to something that was not asked.
    Protocol = "protocol" => Adapter Internal false,
    /// More frames that say nothing than anybody has use for (HTTP/2).
    Flood = "flood" => Adapter Internal false,
    /// Malformed HTTP body framing.
    Framing = "framing" => Adapter Internal false,
    /// The body is not an event stream.
    ContentType = "content_type" => Adapter Internal false,
    /// The body is compressed though that was refused.
    ContentEncoding = "content_encoding" => Adapter Internal false,
    /// The body decompresses past its limit.
    Bomb = "bomb" => Adapter Internal false,
    /// A frame is not the JSON it should be.
    BadJson = "bad_json" => Adapter Internal false,
    /// An event is larger than its limit.
    FrameTooLarge = "frame_too_large" => Adapter Internal false,
    /// A unary answer is larger than its limit.
    BodyTooLarge = "body_too_large" => Adapter Internal false,
    /// The engine reports an error that no rule knows.
    EngineRejected = "engine_rejected" => Adapter Internal false,
    /// No first token in time.
    FirstToken = "first_token" => DecodeTimeout DecodeTimeout true,
    /// Too long since the last token.
    TokenGap = "token_gap" => DecodeTimeout DecodeTimeout true,
    /// No byte at all for too long.
    Idle = "idle" => DecodeTimeout DecodeTimeout true,
    /// A unary answer took too long.
    UnaryTimeout = "unary_timeout" => DecodeTimeout DecodeTimeout true,
    /// A proxy gave up waiting for the engine (504).
    GatewayTimeout = "gateway_timeout" => DecodeTimeout DecodeTimeout true,
    /// The task's deadline passed.
    Deadline = "deadline" => DeadlineUnmet DeadlineUnmet false,
    /// The body ended without the engine's finish signal.
    Truncated = "truncated" => WorkerReset WorkerReset true,
    /// The connection was reset or closed under the request.
    Reset = "reset" => WorkerReset WorkerReset true,
    /// The engine failed while it worked on the request (500).
    EngineError = "engine_error" => WorkerReset WorkerReset true,
    /// The engine gave the request up without being asked to.
    Aborted = "aborted" => WorkerReset WorkerReset true,
    /// The adapter has been closed.
    Closed = "closed" => Internal Internal false,
    /// A fault of this library.
    Internal = "internal" => Internal Internal false,
}

impl Detail {
    /// The word for an HTTP status other than 200 that no engine rule covers.
    #[must_use]
    pub const fn from_status(status: u16) -> Self {
        match status {
            300..=399 => Self::Redirect,
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            407 => Self::ProxyAuth,
            408 | 425 => Self::NotReady,
            429 => Self::RateLimited,
            400..=499 => Self::InvalidRequest,
            501 => Self::Unsupported,
            502 | 503 | 529 => Self::Unavailable,
            504 => Self::GatewayTimeout,
            500..=599 => Self::EngineError,
            _ => Self::Status,
        }
    }

    /// Whether the engine can have worked on a request that ended so, before anything it sent says
    /// otherwise.
    #[must_use]
    pub(crate) const fn processed(self) -> Processed {
        match self {
            Self::Resolve
            | Self::Connect
            | Self::ConnectTimeout
            | Self::Local
            | Self::Fd
            | Self::Saturated
            | Self::CircuitOpen
            | Self::TlsTimeout
            | Self::TlsVerify
            | Self::Tls
            | Self::EgressDenied
            | Self::ProxyAuth
            | Self::RateLimited
            | Self::QueueFull
            | Self::Loading
            | Self::Draining
            | Self::InvalidRequest
            | Self::ContextOverflow
            | Self::Unauthorized
            | Self::Forbidden
            | Self::NotFound
            | Self::Unsupported
            | Self::WrongModel
            | Self::DuplicateId
            | Self::Redirect
            | Self::Closed => Processed::No,
            _ => Processed::Unknown,
        }
    }
}

/// The one error of a stream or call.
///
/// ```
/// use worker_adapters_core::error::{Detail, Phase, WorkerError, WorkerErrorKind};
///
/// let error = WorkerError::new("llamacpp", Detail::Truncated, Phase::Stream);
/// assert_eq!(error.kind, WorkerErrorKind::WorkerReset);
/// assert!(error.retriable);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct WorkerError {
    /// The kind of error.
    pub kind: WorkerErrorKind,
    /// Its code.
    pub code: ErrorKind,
    /// What happened.
    pub detail: Detail,
    /// Whether the same task may succeed elsewhere or later.
    pub retriable: bool,
    /// How long the engine asks to wait before another try, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// Where it arose.
    pub phase: Phase,
    /// The HTTP status, where one came.
    pub status: Option<u16>,
    /// Whether the engine worked on the request.
    pub processed: Processed,
    /// How many tokens the events before the error stand for.
    pub tokens_emitted: u64,
    /// The engine's name.
    pub engine: Arc<str>,
    /// The caller's correlation id.
    pub correlation_id: Option<Arc<str>>,
    /// What happened, for people: redacted, without control characters, at most
    /// [`MAX_MESSAGE_BYTES`] long.
    pub message: String,
}

/// How long [`WorkerError::message`] may be.
pub const MAX_MESSAGE_BYTES: usize = 512;

impl WorkerError {
    /// The error that `detail` stands for, with no message beyond that word.
    pub fn new(engine: impl Into<Arc<str>>, detail: Detail, phase: Phase) -> Self {
        let Class { kind, code, retriable } = detail.class();
        Self {
            kind,
            code,
            detail,
            retriable,
            retry_after_ms: None,
            phase,
            status: None,
            processed: detail.processed(),
            tokens_emitted: 0,
            engine: engine.into(),
            correlation_id: None,
            message: detail.as_str().to_owned(),
        }
    }

    /// Sets the message, redacted by `redactor`, its control characters escaped and its length cut.
    /// What an engine quotes of the redactor's private texts is hidden.
    #[must_use]
    pub fn with_message(mut self, message: &str, redactor: &Redactor) -> Self {
        let looked_at = cut(message);
        let mut shown = redactor.quote(looked_at);
        if looked_at.len() < message.len() {
            shown.truncate(finished(&shown));
            shown.push_str(CUT);
        }
        self.message = presentable(&shown);
        self
    }
}

impl fmt::Display for WorkerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code, self.detail, self.message)
    }
}

impl std::error::Error for WorkerError {}

/// What stands where a message has been cut.
const CUT: &str = "…";

/// As much of a message as is looked at.
fn cut(message: &str) -> &str {
    let mut end = message.len().min(2 * MAX_MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.get(..end).unwrap_or_default()
}

/// Where the last word of a redacted text begins that was cut off in the middle: what is left of a
/// secret may have lost the shape that it is told by. One that is longer than such a shape is left,
/// and so is a marker.
fn finished(text: &str) -> usize {
    const LONGEST_SHAPE: usize = 64;
    let of_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=_-.~%\\".contains(byte);
    let word = text.bytes().rev().take(LONGEST_SHAPE + 1).take_while(of_token).count();
    let start = text.len() - word;
    let is_marker = text.get(..start).is_some_and(|before| before.ends_with('*'));
    if word > LONGEST_SHAPE || is_marker { text.len() } else { start }
}

/// Escapes control characters and cuts at [`MAX_MESSAGE_BYTES`].
fn presentable(text: &str) -> String {
    let mut out = String::new();
    // Where the mark goes if there is more than fits.
    let mut end = 0;
    for character in text.trim().chars() {
        if out.len() <= MAX_MESSAGE_BYTES - CUT.len() {
            end = out.len();
        }
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
        if out.len() > MAX_MESSAGE_BYTES {
            out.truncate(end);
            out.push_str(CUT);
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn words_are_unique_and_read_back() {
        for detail in Detail::ALL {
            assert_eq!(Detail::from_word(detail.as_str()), Some(*detail));
        }
        for code in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_word(code.as_str()), Some(*code));
        }
        assert_eq!(Phase::from_word("nowhere"), None);
    }

    #[test]
    fn every_status_has_a_word() {
        use ErrorKind as Code;
        use WorkerErrorKind as Kind;
        let class = |status| {
            let class = Detail::from_status(status).class();
            (class.kind, class.code, class.retriable)
        };
        for status in [400, 401, 403, 404, 405, 409, 413, 415, 422, 501] {
            assert_eq!(class(status), (Kind::Adapter, Code::InvalidParams, false), "{status}");
        }
        for status in [408, 425, 502, 503, 529] {
            let expected = (Kind::PoolUnavailable, Code::PoolUnavailable, true);
            assert_eq!(class(status), expected, "{status}");
        }
        assert_eq!(class(429), (Kind::PoolUnavailable, Code::AdmissionReject, true));
        assert_eq!(class(500), (Kind::WorkerReset, Code::WorkerReset, true));
        assert_eq!(class(504), (Kind::DecodeTimeout, Code::DecodeTimeout, true));
        for status in [204, 205, 206, 299] {
            assert_eq!(class(status), (Kind::Adapter, Code::Internal, false), "{status}");
        }
        assert_eq!(Detail::from_status(307), Detail::Redirect);
    }

    #[test]
    fn messages_are_redacted_escaped_and_cut() {
        let redactor = Redactor::new(["hunter2-secret"]).unwrap();
        let error = WorkerError::new("llamacpp", Detail::EngineError, Phase::Stream)
            .with_message("\x1b[31m bad key hunter2-secret\r\nnext", &redactor);
        assert!(!error.message.contains("hunter2"), "{}", error.message);
        assert!(!error.message.chars().any(char::is_control));
        let error = error.with_message(&"é".repeat(1000), &redactor);
        assert!(error.message.len() <= MAX_MESSAGE_BYTES);
        assert!(error.message.ends_with('…'));
        for (fits, is_cut) in [(512, false), (511, false), (513, true)] {
            let message = "m".repeat(fits);
            let error = error.clone().with_message(&message, &redactor);
            assert_eq!(error.message == message, !is_cut, "{fits}");
            assert!(error.message.len() <= MAX_MESSAGE_BYTES);
        }
        let told = error.with_message(&("m".repeat(510) + "\n" + "mm"), &redactor).message;
        assert_eq!(told, "m".repeat(509) + "…");
    }

    #[test]
    fn nothing_of_a_secret_shows_where_a_long_message_is_cut() {
        let short = "sq-0123456789abcdefghijklmnopqrstuvwxyzABCDEF";
        let long = short.repeat(2);
        for (secret, before) in [(short, ""), (&long, ""), (&long, "u"), (&long, "us")] {
            let redactor = Redactor::new([secret]).unwrap();
            let encoded = STANDARD.encode(before.to_owned() + secret);
            for length in [0, 8, 9, 30, 52, encoded.len() - 5, encoded.len()] {
                // Its tokens shrink, so that the cut at 1,024 bytes is among what is shown.
                let head = format!("bad header {}", "token=".to_owned() + &"q0".repeat(300));
                let end = 2 * MAX_MESSAGE_BYTES - length;
                let message = format!("{head:<end$}{encoded} and so on");
                let shown = WorkerError::new("vllm", Detail::EngineError, Phase::Head)
                    .with_message(&message, &redactor)
                    .message;
                assert!(shown.len() <= MAX_MESSAGE_BYTES && shown.ends_with('…'), "{shown}");
                for piece in encoded.as_bytes().windows(8) {
                    assert!(!shown.as_bytes().windows(8).any(|part| part == piece), "{shown}");
                }
            }
        }
    }

    #[test]
    fn the_word_that_a_long_message_is_cut_in_is_dropped() {
        let shown = |end: &str, redactor: &Redactor| {
            let head = "token=".to_owned() + &"q0".repeat(400);
            let length = 2 * MAX_MESSAGE_BYTES - end.len();
            let message = format!("{head:<length$}{end}and so on");
            let error = WorkerError::new("vllm", Detail::EngineError, Phase::Head);
            let shown = error.with_message(&message, redactor).message;
            shown.rsplit(' ').next().unwrap().to_owned()
        };
        let none = Redactor::default();
        let opaque = "Ab0Cd1Ef2Gh3Ij4Kl5Mn6Op7Qr8St9Uv0Wx1Yz2";
        assert_eq!(shown(&format!(" \"{opaque}"), &none), "\"…");
        assert_eq!(shown(" è", &none), "è…");
        assert_eq!(shown(&format!(" {}", "a".repeat(64)), &none), "…");
        assert_eq!(shown(&format!(" {}", "a".repeat(65)), &none), "a".repeat(65) + "…");
        let known = Redactor::new(["hunter2-secret"]).unwrap();
        assert_eq!(
            shown(" hunter2-sec", &known),
            known.redact("hunter2-secret").into_owned() + "…"
        );
    }
}

//! What an adapter tells a dialect, because a frame does not.

use std::fmt;

use crate::words::words;

words! {
    /// What the text of a frame is.
    TextMode {
        /// To be found out from the frames.
        Auto = "auto",
        /// What was generated since the frame before.
        Delta = "delta",
        /// All that was generated so far.
        Cumulative = "cumulative",
    }
}

/// Options as they are given: names and values.
pub(crate) type Pairs<'o> = Vec<(&'o str, &'o str)>;

/// Why a dialect cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DialectError {
    /// No dialect or engine has this name.
    UnknownName(String),
    /// The dialect has no such option.
    UnknownOption {
        /// The dialect.
        dialect: &'static str,
        /// The option.
        option: String,
        /// The options it has.
        known: &'static [&'static str],
    },
    /// The option does not take this value.
    BadValue {
        /// The option.
        option: String,
        /// What it takes.
        expected: &'static str,
    },
    /// An option that the dialect cannot do without.
    Missing {
        /// The dialect.
        dialect: &'static str,
        /// The option.
        option: &'static str,
    },
}

impl fmt::Display for DialectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownName(name) => {
                let known = super::Dialect::NAMES.join(", ");
                write!(f, "unknown engine {name:?}; known are {known}")
            }
            Self::UnknownOption { dialect, option, known } => {
                write!(
                    f,
                    "the dialect {dialect} has no option {option:?}; it has {}",
                    known.join(", ")
                )
            }
            Self::BadValue { option, expected } => {
                write!(f, "the option {option:?} takes {expected}")
            }
            Self::Missing { dialect, option } => {
                write!(f, "the dialect {dialect} needs the option {option:?}")
            }
        }
    }
}

impl std::error::Error for DialectError {}

/// What of a token's detail is wanted beside its text.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) token_ids: bool,
    pub(crate) logprobs: bool,
    pub(crate) metrics: bool,
}

/// Every dialect takes these; one whose engine reports no work of its own ignores `metrics`.
pub(crate) const WANTED: [&str; 3] = ["token_ids", "logprobs", "metrics"];

impl Wanted {
    /// Reads the options of a dialect that has no others.
    pub(crate) fn read(dialect: &'static str, options: Pairs<'_>) -> Result<Self, DialectError> {
        let mut wanted = Self::default();
        for (option, value) in options {
            if !wanted.take(option, value)? {
                let option = option.to_owned();
                return Err(DialectError::UnknownOption { dialect, option, known: &WANTED });
            }
        }
        Ok(wanted)
    }

    /// Takes an option that every dialect has; whether it was one.
    pub(crate) fn take(&mut self, option: &str, value: &str) -> Result<bool, DialectError> {
        let flag = match option {
            "token_ids" => &mut self.token_ids,
            "logprobs" => &mut self.logprobs,
            "metrics" => &mut self.metrics,
            _ => return Ok(false),
        };
        *flag = match value {
            "true" => true,
            "false" => false,
            _ => return Err(bad_value(option, "true or false")),
        };
        Ok(true)
    }
}

pub(crate) fn bad_value(option: &str, expected: &'static str) -> DialectError {
    DialectError::BadValue { option: option.to_owned(), expected }
}

//! Texts that keep a rule: a value of these types need not be checked again.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use crate::json::{Kind, Reader};

/// The rule a text does not keep. The text itself is not repeated: it may hold a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidText(pub(super) &'static str);

impl fmt::Display for InvalidText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidText {}

/// Declares a shared, immutable text whose rule is checked once, when it is made.
macro_rules! checked_text {
    ($(#[$meta:meta])* $name:ident, $check:path) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text`.
            ///
            /// # Errors
            ///
            /// The rule that it does not keep.
            pub fn new(text: &str) -> Result<Self, InvalidText> {
                $check(text).map(|()| Self(text.into())).map_err(InvalidText)
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidText;

            fn from_str(text: &str) -> Result<Self, InvalidText> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = InvalidText;

            fn try_from(text: &str) -> Result<Self, InvalidText> {
                Self::new(text)
            }
        }

        impl From<$name> for Arc<str> {
            fn from(text: $name) -> Self {
                text.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

checked_text! {
    /// A name: 1 to 256 characters.
    Name, name
}
checked_text! {
    /// Text for logs: 1 to 256 characters, none of them a control character.
    LineText, line
}
checked_text! {
    /// Text that is sent as an HTTP header: 1 to 256 printable ASCII characters, so that no line
    /// break can slip into a request.
    HeaderText, header
}
checked_text! {
    /// Which model: `hf:org/repo/path/file.gguf`, `hf:org/repo`, `file:/absolute/path`,
    /// `https://host/path`, `s3://bucket/key`, `oci://registry/repo:tag`, or a relative path.
    ///
    /// An adapter never stages it; it only compares what the engine has loaded.
    ModelRef, super::model_ref::check
}

/// How many characters a name, a line or a header's value has at most.
pub(super) const MAX_NAME_CHARS: usize = 256;

fn name(text: &str) -> Result<(), &'static str> {
    if !has_length(text, MAX_NAME_CHARS) {
        return Err("must be 1 to 256 characters long");
    }
    Ok(())
}

/// Whether there is at least one character, and no more than `most`.
pub(super) fn has_length(text: &str, most: usize) -> bool {
    // Counted in characters only where the bytes do not already tell.
    !text.is_empty() && (text.len() <= most || text.chars().nth(most).is_none())
}

fn line(text: &str) -> Result<(), &'static str> {
    name(text)?;
    one_line(text)
}

pub(super) fn one_line(text: &str) -> Result<(), &'static str> {
    if text.chars().any(|character| character.is_ascii_control()) {
        return Err("must not contain control characters");
    }
    Ok(())
}

fn header(text: &str) -> Result<(), &'static str> {
    name(text)?;
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Ok(());
    }
    Err("must be printable ASCII, because it is sent as an HTTP header")
}

/// Text of a user: a prompt, a document, a message. `Debug` shows its length only.
#[derive(Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct Text(String);

impl Text {
    /// The text, taken out.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

// What users write never reaches a log through `{:?}`.
impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Text({} bytes)", self.0.len())
    }
}

/// A JSON object as text, checked and without space between its parts; its members keep their
/// order and its numbers their digits. `Debug` shows its length only.
#[derive(Clone, PartialEq, Eq)]
pub struct JsonObject(Box<str>);

impl JsonObject {
    /// Checks that `json` is one object.
    ///
    /// # Errors
    ///
    /// It is not.
    pub fn new(json: &str) -> Result<Self, InvalidText> {
        let mut reader = Reader::new(json);
        let is_object = reader.peek() == Ok(Kind::Object);
        if is_object && reader.skip().and_then(|()| reader.end()).is_ok() {
            return Ok(Self(compact(json).into()));
        }
        Err(InvalidText("must be a JSON object"))
    }

    /// The JSON Schema of any object.
    #[must_use]
    pub fn any_object() -> Self {
        Self(r#"{"type":"object"}"#.into())
    }

    /// The object's text, on one line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for JsonObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JsonObject({} bytes)", self.0.len())
    }
}

/// Drops the space outside the strings of valid JSON.
fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut in_string = false;
    let mut escaped = false;
    for character in json.chars() {
        if in_string {
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
        } else if matches!(character, ' ' | '\t' | '\n' | '\r') {
            continue;
        } else {
            in_string = character == '"';
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_characters() {
        assert!(Name::new("").is_err());
        assert!(Name::new(&"é".repeat(256)).is_ok());
        assert!(Name::new(&"é".repeat(257)).is_err());
    }

    #[test]
    fn no_line_break_gets_into_a_header_or_a_log() {
        for text in ["a\r\nb", "a\nb", "a\0b", "a\x7fb"] {
            assert!(HeaderText::new(text).is_err());
            assert!(LineText::new(text).is_err());
            assert!(Name::new(text).is_ok());
        }
        assert!(HeaderText::new("naïve").is_err());
        assert!(LineText::new("naïve").is_ok());
    }

    #[test]
    fn an_object_loses_its_spaces_and_nothing_else() {
        let object =
            JsonObject::new("{ \"a \\\" b\" :\r\n [ 1.50 , \"\\\\\" ],\t\"z\":{ } }").unwrap();
        assert_eq!(object.as_str(), r#"{"a \" b":[1.50,"\\"],"z":{}}"#);
        for json in ["[]", "{} {}", "{", "", "{\"a\":nul}", "null"] {
            assert!(JsonObject::new(json).is_err(), "{json}");
        }
    }

    #[test]
    fn private_text_does_not_show() {
        assert_eq!(format!("{:?}", Text::from("secret")), "Text(6 bytes)");
        let object = JsonObject::new(r#"{"a":"secret"}"#).unwrap();
        assert_eq!(format!("{object:?}"), "JsonObject(14 bytes)");
    }
}

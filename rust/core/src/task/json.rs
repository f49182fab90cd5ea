//! JSON in and out (feature `serde`): byte for byte what the Python package writes and reads.

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Error as _, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_path_to_error::Segment;

use super::text::{HeaderText, JsonObject, LineText, ModelRef, Name};
use super::{
    Determinism, Extensions, Feature, InvalidTask, KvHint, MAX_COUNT, PlacementMode, Priority,
    Role, TaskFields, TaskRequest, Workload,
};

impl TaskRequest {
    /// Reads one task from JSON, with what `allowed` allows beyond the contract.
    ///
    /// # Errors
    ///
    /// The field and the rule that it does not keep. The text repeats no value.
    pub fn from_json(json: &[u8], allowed: &Extensions) -> Result<Self, InvalidTask> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let fields: TaskFields =
            serde_path_to_error::deserialize(&mut reader).map_err(|error| {
                let path = error.path();
                let is_root = path.iter().all(|part| matches!(part, Segment::Unknown));
                let field = if is_root { "task".to_owned() } else { path.to_string() };
                InvalidTask::new(field, rule(error.inner()))
            })?;
        reader.end().map_err(|error| InvalidTask::new("task", rule(&error)))?;
        Self::new(fields, allowed)
    }

    /// Writes the task as JSON on one line; unset fields are left out.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Nothing in a task has no JSON: a valid task's numbers are finite.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What a refusal says, as far as it repeats no value: this crate's own rules do not, and of
/// serde's sentences only those that name a field.
fn rule(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    match text.get(..end) {
        _ if !error.is_data() => {
            format!("is no JSON at line {} column {}", error.line(), error.column())
        }
        Some(rule)
            if ["must ", "missing ", "unknown field"]
                .iter()
                .any(|start| rule.starts_with(start)) =>
        {
            rule.to_owned()
        }
        _ => "has the wrong type".to_owned(),
    }
}

impl Serialize for TaskRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// Reads a task of the contract alone; [`TaskRequest::from_json`] reads one with extensions.
impl<'de> Deserialize<'de> for TaskRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = TaskFields::deserialize(deserializer)?;
        Self::new(fields, &Extensions::default()).map_err(D::Error::custom)
    }
}

pub(super) fn yes() -> bool {
    true
}

pub(crate) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let count = Option::<u32>::deserialize(deserializer)?;
    if count.is_some_and(|count| count > MAX_COUNT) {
        return Err(D::Error::custom("must be less than 2147483648"));
    }
    Ok(count)
}

macro_rules! words_as_json {
    ($($name:ident)+) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                Self::from_word(&word).ok_or_else(|| {
                    let words: Vec<&str> = Self::ALL.iter().map(|word| word.as_str()).collect();
                    <D::Error as serde::de::Error>::custom(format_args!("must be one of {}", words.join(", ")))
                })
            }
        }
    )+};
}

macro_rules! checked_texts_as_json {
    ($($name:ident)+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(&text).map_err(D::Error::custom)
            }
        }
    )+};
}

words_as_json! { Workload Priority Determinism KvHint PlacementMode Feature Role }
checked_texts_as_json! { Name LineText HeaderText ModelRef }
pub(crate) use words_as_json;

impl Serialize for JsonObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(self.as_str()).map_err(S::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for JsonObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::new(raw.get()).map_err(D::Error::custom)
    }
}

//! JSON of the reports (feature `serde`), as the Python package writes and reads it.

use super::CancelMethod;
use crate::task::json::words_as_json;

words_as_json! { CancelMethod }

/// A clock as seconds, one that is off as `null`.
pub(super) mod seconds {
    use std::time::Duration;

    use serde::de::{Deserialize, Deserializer, Error as _};
    use serde::ser::{Serialize, Serializer};

    // The signatures of these modules are serde's.
    #[expect(clippy::ref_option, reason = "serde hands out the field as it is")]
    pub(crate) fn serialize<S: Serializer>(
        clock: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        clock.map(|clock| clock.as_secs_f64()).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let Some(seconds) = Option::<f64>::deserialize(deserializer)? else { return Ok(None) };
        if !(seconds.is_finite() && seconds > 0.0) {
            return Err(D::Error::custom(
                "must be a positive number of seconds, or null to switch the clock off",
            ));
        }
        // A clock of many ages never runs out, however many they are, and none is ever off.
        let clock = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Ok(Some(clock.max(Duration::from_nanos(1))))
    }
}

/// A time as milliseconds, to the microsecond.
pub(super) mod millis {
    use std::time::Duration;

    use serde::de::{Deserialize, Deserializer, Error as _};
    use serde::ser::Serializer;

    pub(crate) fn serialize<S: Serializer>(
        time: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((time.as_secs_f64() * 1e6).round() / 1e3)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let millis = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(millis / 1e3)
            .map_err(|_| D::Error::custom("must be a number of milliseconds"))
    }
}

//! Time as the decoder sees it: instants handed in by the caller, never read from a clock.

use std::time::Duration;

/// A moment on the caller's monotonic axis, in nanoseconds since an origin of the caller's choice.
///
/// Integer nanoseconds make the clocks exact: a wake-up handed out by
/// [`StreamDecoder::next_wakeup`](crate::StreamDecoder::next_wakeup) fires when it is handed back.
/// As seconds in a float it does so, too, for the first 52 days after the origin; later the float
/// is coarser than a nanosecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The instant `nanos` nanoseconds after the origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The instant `secs` seconds after the origin. Negative and NaN become the origin, values
    /// past the representable end become the end.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "float to integer casts saturate, which is what this promises"
    )]
    pub fn from_secs_f64(secs: f64) -> Self {
        Self((secs * 1e9).round() as u64)
    }

    /// Seconds after the origin.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "exact to the nanosecond for 52 days")]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// The instant `duration` later, or the last representable one.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// The instant `duration` earlier, or the origin.
    #[must_use]
    pub fn saturating_sub(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(nanos))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_survive_the_round_trip() {
        for secs in [0.0, 0.1, 1.5, 86_400.123_456_789, 4_000_000.25] {
            let instant = Instant::from_secs_f64(secs);
            assert_eq!(Instant::from_secs_f64(instant.as_secs_f64()), instant);
        }
    }

    #[test]
    fn out_of_range_seconds_saturate() {
        assert_eq!(Instant::from_secs_f64(-1.0), Instant::from_nanos(0));
        assert_eq!(Instant::from_secs_f64(f64::NAN), Instant::from_nanos(0));
        assert_eq!(Instant::from_secs_f64(f64::INFINITY), Instant::from_nanos(u64::MAX));
        let end = Instant::from_nanos(u64::MAX);
        assert_eq!(end.saturating_add(Duration::MAX), end);
        assert_eq!(Instant::from_nanos(1).saturating_since(end), Duration::ZERO);
    }
}

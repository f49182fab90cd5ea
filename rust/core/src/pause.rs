//! How long an engine asks to wait, where it says so in the body of an error.
//!
//! Headers come first ([`crate::http::retry_after_ms`]); hosted APIs say it in words as well, and
//! some only there: "Please try again in 1m47.5854s" (OpenAI, Groq), "Please retry after 7 seconds"
//! (Azure), `"retryDelay": "34.07s"` (Google's `RetryInfo`), `"retry_after": 30`.

use crate::http::MAX_RETRY_AFTER_MS;

/// How much of a message is looked at.
const MAX_LOOKED_AT: usize = 8 << 10;

/// What a pause follows in a sentence.
const LEADS: [&str; 4] = ["try again in ", "try again after ", "retry after ", "retry in "];

/// Units and their length in nanoseconds. Words come before what they begin with.
const UNITS: [(&str, u64); 20] = [
    ("milliseconds", 1_000_000),
    ("millisecond", 1_000_000),
    ("ms", 1_000_000),
    ("minutes", 60_000_000_000),
    ("minute", 60_000_000_000),
    ("mins", 60_000_000_000),
    ("min", 60_000_000_000),
    ("m", 60_000_000_000),
    ("seconds", 1_000_000_000),
    ("second", 1_000_000_000),
    ("secs", 1_000_000_000),
    ("sec", 1_000_000_000),
    ("s", 1_000_000_000),
    ("hours", 3_600_000_000_000),
    ("hour", 3_600_000_000_000),
    ("hrs", 3_600_000_000_000),
    ("hr", 3_600_000_000_000),
    ("h", 3_600_000_000_000),
    ("days", 86_400_000_000_000),
    ("day", 86_400_000_000_000),
];

const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;

/// The pause that a sentence asks for, in milliseconds; the first that is one.
pub(crate) fn in_words(message: &str) -> Option<u64> {
    let end = MAX_LOOKED_AT.min(message.len());
    // A character has four bytes at most.
    let looked_at = (0..4).find_map(|back| message.get(..end.checked_sub(back)?))?;
    let text = looked_at.to_ascii_lowercase();
    let found = LEADS.iter().flat_map(|lead| {
        text.match_indices(lead).filter_map(|(at, lead)| {
            let pause = leading_duration(text.get(at + lead.len()..)?)?;
            Some((at, pause))
        })
    });
    found.min_by_key(|(at, _)| *at).map(|(_, pause)| pause)
}

/// The pause that a field holds: seconds, unless the text has a unit of its own.
pub(crate) fn in_seconds(value: &str) -> Option<u64> {
    whole(value, SECOND).or_else(|| leading_duration(&value.trim().to_ascii_lowercase()))
}

/// The pause that a field holds whose name says milliseconds.
pub(crate) fn in_milliseconds(value: &str) -> Option<u64> {
    whole(value, MILLISECOND)
}

/// A number that is all of `value`.
fn whole(value: &str, unit: u64) -> Option<u64> {
    let (nanos, rest) = number(value.trim(), unit)?;
    rest.is_empty().then(|| millis(nanos))
}

/// A duration at the start of `text`, such as `20ms`, `1.5 seconds` or `1h2m3s`.
fn leading_duration(text: &str) -> Option<u64> {
    let (mut nanos, mut rest) = quantity(text)?;
    while let Some((more, behind)) = quantity(rest) {
        (nanos, rest) = (nanos.saturating_add(more), behind);
    }
    // What goes on as a word is no unit: 5 messages.
    let ends = !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    ends.then(|| millis(nanos))
}

/// A number with its unit.
fn quantity(text: &str) -> Option<(u128, &str)> {
    let (_, behind) = number(text, 1)?;
    let behind = behind.strip_prefix(' ').unwrap_or(behind);
    let &(name, unit) = UNITS.iter().find(|(name, _)| behind.starts_with(name))?;
    let (nanos, _) = number(text, unit)?;
    Some((nanos, behind.get(name.len()..)?))
}

/// A decimal number at the start of `text`, in units of so many nanoseconds, and what is behind it.
fn number(text: &str, unit: u64) -> Option<(u128, &str)> {
    let (whole, rest) = digits(text)?;
    let unit = u128::from(unit);
    let nanos = whole.parse::<u64>().map_or(u128::MAX, |whole| u128::from(whole) * unit);
    let Some((fraction, rest)) = rest.strip_prefix('.').and_then(digits) else {
        return Some((nanos, rest));
    };
    // A billionth of a day is less than what is rounded up to.
    let exact = fraction.get(..9).unwrap_or(fraction);
    let parts = exact.parse::<u64>().map_or(0, u128::from) * unit;
    let scale = 10_u128.pow(u32::try_from(exact.len()).unwrap_or(9));
    Some((nanos.saturating_add(parts / scale), rest))
}

/// The digits at the start of `text`, one at least, and what is behind them.
fn digits(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at_checked(end)).flatten()
}

/// Whole milliseconds, the last one begun included, at most [`MAX_RETRY_AFTER_MS`].
fn millis(nanos: u128) -> u64 {
    let millis = nanos.div_ceil(u128::from(MILLISECOND));
    u64::try_from(millis).unwrap_or(u64::MAX).min(MAX_RETRY_AFTER_MS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_hosted_apis_say() {
        let cases = [
            (
                "Rate limit reached for gpt-4o. Limit 30000. Please try again in 1.578s. Visit",
                1_578,
            ),
            ("Please try again in 20ms.", 20),
            ("Please try again in 9.5ms", 10),
            ("Please try again in 7.671428571s. Visit https://x/y for more", 7_672),
            ("Please try again in 1m47.5854s.", MAX_RETRY_AFTER_MS),
            ("Please try again in 6m0s.", MAX_RETRY_AFTER_MS),
            ("have exceeded call rate limit of your tier. Please retry after 3 seconds. Go", 3_000),
            ("Please retry after 86400 seconds.", MAX_RETRY_AFTER_MS),
            ("Please retry in 34.074824224s.", 34_075),
            ("TRY AGAIN IN 2 SECONDS", 2_000),
            ("Try again after 1 second", 1_000),
            ("retry after 5 attempts failed; try again in 0.2 sec", 200),
            ("try again in 0s", 0),
        ];
        for (message, expected) in cases {
            assert_eq!(in_words(message), Some(expected), "{message}");
        }
    }

    #[test]
    fn what_is_no_pause() {
        for message in [
            "",
            "Please try again in a moment",
            "try again in 5",
            "try again in -5s",
            "try again in .5s",
            "retry after 5 messages",
            "retry after 5 service restarts",
            "try again in 5sx",
            "try again in 5 s_x",
            "try again in 1e3s",
            "try again later",
            "trying again in 5s, retried after 3s",
        ] {
            assert_eq!(in_words(message), None, "{message}");
        }
        let far = format!("{}try again in 5s", " ".repeat(MAX_LOOKED_AT));
        assert_eq!(in_words(&far), None);
        let cut = format!("{}é try again in 5s", " ".repeat(MAX_LOOKED_AT - 1));
        assert_eq!(in_words(&cut), None);
    }

    #[test]
    fn what_fields_hold() {
        for (value, expected) in [
            ("30", Some(30_000)),
            ("1.5", Some(1_500)),
            ("0", Some(0)),
            ("0.0001", Some(1)),
            ("34.074824224s", Some(34_075)),
            (" 2 ", Some(2_000)),
            ("250ms", Some(250)),
            ("99999999999999999999999999", Some(MAX_RETRY_AFTER_MS)),
            ("-1", None),
            ("1e3", None),
            ("soon", None),
            ("", None),
            ("5 apples", None),
        ] {
            assert_eq!(in_seconds(value), expected, "{value}");
        }
        assert_eq!(in_milliseconds("250"), Some(250));
        assert_eq!(in_milliseconds("0.5"), Some(1));
        assert_eq!(in_milliseconds("250ms"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_and_no_pause_is_too_long(text in ".*", tail in "[0-9a-z .]{0,24}") {
            for lead in LEADS {
                let pause = in_words(&format!("{text}{lead}{tail}"));
                prop_assert!(pause.is_none_or(|pause| pause <= MAX_RETRY_AFTER_MS));
            }
            in_seconds(&tail);
            in_milliseconds(&text);
        }

        #[test]
        fn a_pause_is_never_shorter_than_asked(ms in 0_u64..MAX_RETRY_AFTER_MS) {
            prop_assert_eq!(in_words(&format!("try again in {ms}ms")), Some(ms));
            let seconds = format!("{}.{:03}", ms / 1000, ms % 1000);
            prop_assert_eq!(in_words(&format!("try again in {seconds}s")), Some(ms));
            prop_assert_eq!(in_seconds(&seconds), Some(ms));
        }
    }
}

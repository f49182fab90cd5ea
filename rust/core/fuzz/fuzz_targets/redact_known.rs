//! Redaction by value: whatever text is registered as a secret never shows.

#![no_main]

use libfuzzer_sys::fuzz_target;
use worker_adapters_core::redact::{MIN_SECRET_CHARS, Redactor, RedactorError};
use worker_adapters_fuzz::assert_redacted;

/// Whether a marker could spell it: no redactor can keep it from showing then.
fn is_like_a_marker(secret: &str) -> bool {
    secret.bytes().all(|byte| byte == b'*' || byte.is_ascii_hexdigit())
}

fuzz_target!(|data: &[u8]| {
    let Some((&length, rest)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    // The secret is the start of the text, and may stand in the rest of it as well.
    // Short ones for the most part: what finds a secret takes long to build for a long one.
    let length = usize::from(if length < 240 { length % 24 } else { length % 40 });
    let (secret, text) = text.split_at(text.floor_char_boundary(length));
    match Redactor::new([secret]) {
        Ok(redactor) if !is_like_a_marker(secret) => {
            assert_redacted(&redactor, &[secret], &format!("{text}{secret}{text}"));
        }
        Ok(_) => {}
        Err(error) => {
            assert_eq!(error, RedactorError::TooShort { index: 0 });
            assert!(secret.chars().count() < MIN_SECRET_CHARS);
        }
    }
});

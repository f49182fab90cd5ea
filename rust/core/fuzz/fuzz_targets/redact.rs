//! Redaction by value, name, place and shape: a registered secret never shows, and what is redacted
//! redacts to itself.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use worker_adapters_core::redact::Redactor;
use worker_adapters_fuzz::assert_redacted;

/// Those of the vectors, and one that every spelling changes.
const SECRETS: [&str; 3] = ["hunter2-secret", "correct horse", "S3cr\"t/é+=="];

static REGISTERED: LazyLock<Redactor> = LazyLock::new(|| Redactor::new(SECRETS).unwrap());

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if data.len().is_multiple_of(4) {
        assert_redacted(&Redactor::default(), &[], &text);
    } else {
        assert_redacted(&REGISTERED, &SECRETS, &text);
    }
});

//! Every redaction vector, and the laws of redaction: nothing lost beside a secret, nothing changed
//! twice, time linear in the text.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::rows;
use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use worker_adapters_core::redact::{Redactor, RedactorError};

fn strings<'v>(row: &'v Value, field: &str) -> Vec<&'v str> {
    let list = row[field].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|text| text.as_str().unwrap()).collect()
}

/// What a row's text and records are redacted to.
fn redacted(row: &Value) -> Vec<String> {
    let redactor = match Redactor::new(strings(row, "known_secrets")) {
        // The one row whose secret is too short to be one.
        Err(RedactorError::TooShort { .. }) => Redactor::default(),
        made => made.unwrap(),
    };
    let mut texts = strings(row, "records");
    texts.push(row["text"].as_str().unwrap());
    texts
        .into_iter()
        .map(|text| {
            let once = redactor.redact(text).into_owned();
            assert_eq!(redactor.redact(&once), once, "{}: not settled", row["name"]);
            once
        })
        .collect()
}

#[test]
fn every_row_holds() {
    let rows = rows("vectors/secrets.jsonl");
    let mut failed = Vec::new();
    for row in &rows {
        for shown in redacted(row) {
            let leaks = strings(row, "must_not_contain").iter().any(|s| shown.contains(s));
            let kept = strings(row, "must_contain").iter().all(|s| shown.contains(s));
            if leaks || !kept {
                failed.push(format!("{}: {shown}", row["name"]));
            }
        }
    }
    assert!(rows.len() > 100, "{}", rows.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn keep_rows_are_untouched() {
    for row in rows("vectors/secrets.jsonl") {
        if row["name"].as_str().unwrap().starts_with("keep_") {
            assert_eq!(redacted(&row), [row["text"].as_str().unwrap()]);
        }
    }
}

/// What rules look for, what they stop at, and their markers.
fn piece() -> impl Strategy<Value = String> {
    let words = [
        "api_key",
        "Authorization",
        "Bearer",
        "Basic",
        "Digest",
        "token",
        "password",
        "Cookie",
        "--api-key",
        "-u",
        "user",
        "://",
        "https://u:p@h/",
        "?key=",
        "&sig=",
        "=",
        ":",
        ": ",
        ",",
        "\"",
        "'",
        "\\\"",
        "\\",
        "\\\\",
        "%3D",
        "%",
        "%25",
        "\\u0061",
        "\n",
        "\r\n ",
        " ",
        "@",
        "/",
        "(",
        "[",
        "Some(",
        "value",
        "****",
        "****0a1b2c",
        "sk-",
        "Ab3dEf6hIj9lMn2pQr5t",
        "eyJ",
        "12",
        "-----BEGIN PRIVATE KEY-----",
        "-----END ",
        "hunter2-secret",
        "hunter2-",
        "cret",
        "é",
        "漢",
        "SECRET",
        "correct horse",
        "0123456789abcdef",
        "x",
    ];
    prop_oneof![
        8 => proptest::sample::select(words.to_vec()).prop_map(str::to_owned),
        1 => ".{0,6}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn redacting_twice_changes_nothing(pieces in prop::collection::vec(piece(), 0..24)) {
        let text = pieces.concat();
        for secrets in [&[][..], &["hunter2-secret", "correct horse", "SECRET"]] {
            let redactor = Redactor::new(secrets).unwrap();
            let once = redactor.redact(&text);
            prop_assert_eq!(redactor.redact(&once), once.as_ref());
        }
    }

    #[test]
    fn a_registered_secret_never_shows(
        secret in "[ -~é]{6,30}", before in piece(), after in piece(), upper in any::<bool>(),
    ) {
        let redactor = Redactor::new([&secret]).unwrap();
        let shown = if upper { secret.to_ascii_uppercase() } else { secret.clone() };
        let json = serde_json::to_string(&secret).unwrap();
        for spelling in [&shown, &json] {
            let redacted = redactor.redact(&format!("{before}{spelling}{after}")).into_owned();
            prop_assert!(!redacted.contains(spelling.trim_matches('"')), "{}", redacted);
        }
    }
}

/// What makes scanners look far ahead for nothing, over and over.
const HOSTILE: &[&str] = &[
    "a",
    "aaaaaaaaaaaaaaab",
    "-",
    " ",
    "\"",
    "\\",
    "%",
    "%25",
    "%2525",
    "\\u005c",
    "://",
    "a://b:c",
    "a://b:c@",
    "@:/",
    "eyJ",
    "eyJ.",
    "sk-",
    "a/",
    "AKIA ",
    "8Q~",
    "1:AA",
    "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN ",
    "api_key",
    "api_key:",
    "api_key=",
    "api_key =\"",
    "api_key:\\\"",
    "-jwt\\",
    "authorization\",'",
    "authorization\",\"jwt\",'",
    "\"token\",\"",
    "'token',\"\\",
    "token,",
    "token=1",
    "token=null ",
    "token=1\\",
    "Authorization: ",
    "Authorization: Digest=\"",
    "Authorization:\n ",
    "cookie=",
    "-u ",
    "--user=",
    "Bearer ",
    "Bearer=",
    "bearer a",
    "key:Some(",
    "secret=((",
    "hunter2-",
    "****0a1b2c",
    "a=b&",
    "?key=",
];

/// The time that this thread has had, whoever else wants the machine.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap())
}

fn time(redactor: &Redactor, text: &str) -> Duration {
    let start = cpu();
    drop(std::hint::black_box(redactor.redact(text)));
    cpu().checked_sub(start).unwrap()
}

/// Quadratic work takes 4096 times as long for a text 64 times as long; the bound is ten times what
/// linear work takes.
fn assert_linear(what: &str, length: usize, text: impl Fn(usize) -> String) {
    const FACTOR: u32 = 64;
    const SLACK: u32 = 10;
    let redactor = Redactor::new(["hunter2-secret", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"]).unwrap();
    let (small, large) = (text(length / FACTOR as usize), text(length));
    let small = (0..3).map(|_| time(&redactor, &small)).min().unwrap();
    let small = small.max(Duration::from_micros(50));
    let large = time(&redactor, &large);
    assert!(large < small * FACTOR * SLACK, "{what:?}: {small:?}, then {large:?}");
}

#[test]
fn time_is_linear_in_each_hostile_text() {
    for hostile in HOSTILE {
        assert_linear(hostile, 128 << 10, |length| hostile.repeat(length / hostile.len()));
    }
}

#[test]
fn a_mebibyte_of_everything_hostile_takes_linear_time() {
    assert_linear("all in turn", 1 << 20, |length| {
        HOSTILE.iter().flat_map(|hostile| hostile.chars()).cycle().take(length).collect()
    });
    assert_linear("one after the other", 1 << 20, |length| {
        let part = length / HOSTILE.len();
        HOSTILE.iter().map(|hostile| hostile.repeat(part / hostile.len())).collect()
    });
}

//! The contract's JSON: every row of `vectors/contract.jsonl`, which the Python models are held to
//! as well.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use common::rows;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use worker_adapters_core::TaskRequest;
use worker_adapters_core::adapter::{CancelReceipt, Timeouts, WorkerHealth, WorkerProps};
use worker_adapters_core::task::{Extensions, Feature, InvalidTask, SubmitContext};

fn allowed(row: &Value) -> Extensions {
    row.get("allow")
        .map_or_else(Extensions::default, |allow| serde_json::from_value(allow.clone()).unwrap())
}

/// What is written of what is read. Which field a refusal is about is for a task to say alone.
fn round_trip<T: Serialize + DeserializeOwned>(json: &str) -> Result<String, bool> {
    let value: T = serde_json::from_str(json).map_err(|_| true)?;
    Ok(serde_json::to_string(&value).unwrap())
}

/// What is written of a task that is read; else whether the refusal names `field`.
fn task(json: &str, allowed: &Extensions, field: &str) -> Result<String, bool> {
    match TaskRequest::from_json(json.as_bytes(), allowed) {
        Ok(task) => Ok(task.to_json()),
        Err(error) => Err(names(&error, field)),
    }
}

fn names(error: &InvalidTask, field: &str) -> bool {
    error.field().starts_with(field) || error.rule().contains(&format!("`{field}`"))
}

#[test]
fn both_languages_write_read_and_refuse_the_same() {
    let rows = rows("vectors/contract.jsonl");
    assert_eq!(rows.len(), 174);
    for row in rows {
        let name = &row["name"];
        let json = row["json"].as_str().unwrap();
        let field = row["refused"].as_str().unwrap_or_default();
        let got = match row["model"].as_str().unwrap() {
            "TaskRequest" => task(json, &allowed(&row), field),
            "SubmitContext" => round_trip::<SubmitContext>(json),
            "WorkerHealth" => round_trip::<WorkerHealth>(json),
            "WorkerProps" => round_trip::<WorkerProps>(json),
            "CancelReceipt" => round_trip::<CancelReceipt>(json),
            "Timeouts" => round_trip::<Timeouts>(json),
            other => panic!("{other}"),
        };
        match row.get("written") {
            Some(written) => assert_eq!(got, Ok(written.as_str().unwrap().to_owned()), "{name}"),
            None => assert_eq!(got, Err(true), "{name}: {field}"),
        }
    }
}

fn minimal() -> Value {
    json!({
        "task_id": "6fa459ea-ee8a-3ca4-894e-db77e160355e",
        "session_id": "16fd2706-8baf-433b-82eb-8c7fada847da",
        "workload": "completion",
        "model_ref": "hf:org/repo",
        "engine": "llamacpp",
        "ctx": 4096,
        "priority": "batch",
        "max_tokens": 1,
        "deadline_ms": 1,
        "prompt": "hi",
    })
}

const CANARY: &str = "canary";

#[test]
fn a_refusal_repeats_no_value() {
    let every = rows("vectors/contract.jsonl");
    let every = every.iter().find(|row| row["name"] == "every_extension").unwrap();
    let full: Value = serde_json::from_str(every["json"].as_str().unwrap()).unwrap();
    let names: Vec<String> = full.as_object().unwrap().keys().cloned().collect();
    let more: Vec<String> = full["extensions"].as_object().unwrap().keys().cloned().collect();
    let wrong = [json!(CANARY), json!([CANARY]), json!({CANARY: CANARY}), json!(f64::MAX)];
    let mut refused = 0;
    for value in wrong {
        let in_task = names.iter().map(|name| ("/".to_owned() + name, value.clone()));
        let in_extensions = more.iter().map(|name| (format!("/extensions/{name}"), value.clone()));
        for (pointer, value) in in_task.chain(in_extensions) {
            let mut task = full.clone();
            *task.pointer_mut(&pointer).unwrap() = value.clone();
            let json = task.to_string();
            let Err(error) = TaskRequest::from_json(json.as_bytes(), &Extensions::all([])) else {
                continue;
            };
            refused += 1;
            // An unknown member is named, because its name is what is wrong.
            let shown = error.rule().replace(&format!("unknown field `{CANARY}`"), "");
            assert!(!shown.contains(CANARY), "{pointer}: {error}");
            assert!(!error.to_string().contains("17976"), "{pointer}: {error}");
            let error = error.into_error("llamacpp");
            assert_eq!((error.code.as_str(), error.phase.as_str()), ("INVALID_PARAMS", "validate"));
        }
    }
    assert!(refused > 60, "{refused}");
}

#[test]
fn no_text_of_a_user_shows_in_debug() {
    let mut task = minimal();
    task["prompt"] = json!(CANARY);
    task["inputs"] = json!([CANARY]);
    task["extensions"] = json!({
        "stop": [CANARY],
        "constraint": {"json_schema": {"title": CANARY}},
    });
    let json = task.to_string();
    let task = TaskRequest::from_json(json.as_bytes(), &Extensions::all([])).unwrap();
    let shown = format!("{task:#?}");
    assert!(!shown.contains(CANARY), "{shown}");
}

#[test]
fn extensions_are_off_unless_allowed_one_by_one() {
    let mut task = minimal();
    task["extensions"] = json!({"stop": ["x"], "logprobs": 3, "constraint": {"regex": "a"}});
    let json = task.to_string();
    // Read as a part of something larger there is nobody to allow anything.
    assert!(serde_json::from_str::<TaskRequest>(&json).is_err());
    let some =
        Extensions { features: vec![Feature::Stop, Feature::Constraint], ..Extensions::default() };
    let error = TaskRequest::from_json(json.as_bytes(), &some).unwrap_err();
    assert_eq!(error.field(), "extensions.logprobs");
    let task = TaskRequest::from_json(json.as_bytes(), &Extensions::all([])).unwrap();
    let used = task.extensions.as_ref().unwrap().used();
    assert_eq!(used, ["constraint.regex", "stop", "logprobs"]);
}

proptest! {
    #[test]
    fn any_task_survives_json(
        prompt in ".*",
        inputs in proptest::option::of(proptest::collection::vec(".*", 0..4)),
        seed in any::<Option<i64>>(),
        ctx in 0_u32..=i32::MAX as u32,
        deadline_ms in any::<i64>(),
    ) {
        let mut task = minimal();
        task["prompt"] = json!(prompt);
        task["inputs"] = json!(inputs);
        task["seed"] = json!(seed);
        task["ctx"] = json!(ctx);
        task["deadline_ms"] = json!(deadline_ms);
        let json = task.to_string();
        let read = TaskRequest::from_json(json.as_bytes(), &Extensions::default()).unwrap();
        let again = TaskRequest::from_json(read.to_json().as_bytes(), &Extensions::default());
        prop_assert_eq!(again.unwrap(), read);
    }

    #[test]
    fn no_bytes_can_do_worse_than_be_refused(json in proptest::collection::vec(any::<u8>(), 0..64)) {
        prop_assert!(TaskRequest::from_json(&json, &Extensions::all([])).is_err());
    }
}

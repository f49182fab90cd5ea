//! Every JSON vector: read by the reader as it stands, and decoded as a frame of an OpenAI stream
//! in several chunkings.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use common::{bytes, decode_stream, every_chunking, log_of, plain, rows, sizes};
use serde_json::{Value, json};
use worker_adapters_core::event::TokenEvent;
use worker_adapters_core::json::{JsonError, JsonErrorKind, Kind, Reader};

/// What stands at `choices[0].text`, the path of all vectors, in the vectors' words.
fn extract(document: &[u8]) -> Result<Value, JsonError> {
    let missing = json!({"missing": true});
    let mut found = missing.clone();
    let mut reader = Reader::from_bytes(document)?;
    reader.object(|key, reader| {
        if key != "choices" {
            return reader.skip();
        }
        found = missing.clone();
        if reader.peek()? == Kind::Null {
            return reader.skip();
        }
        reader.array(|at, reader| {
            if at > 0 {
                return reader.skip();
            }
            reader.object(|key, reader| {
                if key != "text" {
                    return reader.skip();
                }
                found = match reader.string_or_null()? {
                    Some(text) => json!({"value": text.value()}),
                    None => json!({"null": true}),
                };
                Ok(())
            })
        })
    })?;
    reader.end()?;
    Ok(found)
}

fn outcome(document: &[u8]) -> Value {
    extract(document).unwrap_or_else(|error| {
        let word = match error.kind {
            JsonErrorKind::Syntax => "syntax",
            JsonErrorKind::Utf8 => "utf8",
            JsonErrorKind::Type => "type",
            JsonErrorKind::Depth => "depth",
            other => panic!("{other:?}"),
        };
        json!({"error": word})
    })
}

fn accepted(row: &Value) -> Vec<Value> {
    let mut wanted = vec![row["expect"].clone()];
    wanted.extend(row["also_ok"].as_array().into_iter().flatten().cloned());
    wanted
}

#[test]
fn every_vector_as_it_stands() {
    let rows = rows("vectors/json_fields.jsonl");
    assert_eq!(rows.len(), 143);
    for row in rows {
        assert_eq!(row["path"], "choices[0].text");
        let got = outcome(&bytes(&row, "doc_b64"));
        assert!(accepted(&row).contains(&got), "{}: {got}, not {}", row["name"], row["expect"]);
    }
}

/// Longer frames are cut around their line ends and at random places only.
const ALL_SPLITS_UP_TO: usize = 256;

/// The document as one server-sent event, a data line for each of its lines.
fn frame(document: &[u8]) -> Vec<u8> {
    let mut out = b"data: ".to_vec();
    let mut bytes = document.iter().peekable();
    while let Some(&byte) = bytes.next() {
        if byte == b'\r' {
            bytes.next_if(|next| **next == b'\n');
        }
        if matches!(byte, b'\r' | b'\n') {
            out.extend_from_slice(b"\ndata: ");
        } else {
            out.push(byte);
        }
    }
    out.extend_from_slice(b"\n\n");
    out
}

/// The accepted outcomes behind the event stream decoder, which has replaced broken UTF-8.
fn accepted_behind_sse(row: &Value, document: &[u8]) -> Vec<Value> {
    let wanted = accepted(row);
    if !wanted.contains(&json!({"error": "utf8"})) {
        return wanted;
    }
    let text = String::from_utf8_lossy(document);
    vec![match serde_json::from_str::<Value>(&text) {
        Ok(value) => json!({"value": value["choices"][0]["text"]}),
        Err(_) => json!({"error": "syntax"}),
    }]
}

/// Whether the events of a frame and `[DONE]` are what `want` means.
fn means(events: &[TokenEvent], want: &Value) -> bool {
    let logged: Vec<Value> = events.iter().map(plain).collect();
    let kinds: Vec<&str> = events.iter().map(TokenEvent::kind).collect();
    if want.get("error").is_some() {
        let data = &logged[0]["data"];
        return kinds == ["error"]
            && (&data["detail"], &data["kind"], &data["code"], &data["retriable"])
                == (&json!("bad_json"), &json!("Adapter"), &json!("INTERNAL"), &json!(false));
    }
    match want.get("value").filter(|text| **text != "") {
        Some(text) => kinds == ["started", "token", "end"] && logged[1]["data"]["t"] == *text,
        None => kinds == ["started", "end"],
    }
}

#[test]
fn every_vector_as_a_frame_in_every_chunking() {
    for row in rows("vectors/json_fields.jsonl") {
        let document = bytes(&row, "doc_b64");
        let wanted = accepted_behind_sse(&row, &document);
        let mut stream = frame(&document);
        stream.extend_from_slice(b"data: [DONE]\n\n");
        let whole = decode_stream("openai", &[&stream], true).0;
        let name = &row["name"];
        let log = log_of(&whole);
        if name == "error_body" {
            // The field is missing because the frame is an error, and that comes first.
            let [TokenEvent::Error(error)] = whole.as_slice() else { panic!("{name}:\n{log}") };
            assert_eq!(error.detail.as_str(), "invalid_request");
        } else {
            let meant = wanted.iter().any(|want| means(&whole, want));
            assert!(meant, "{name}: expected {wanted:?}, got\n{log}");
        }
        every_chunking(&stream, ALL_SPLITS_UP_TO, |reads| {
            let got = decode_stream("openai", reads, true).0;
            assert!(got == whole, "{name} in reads of {:?}:\n{}", sizes(reads), log_of(&got));
        });
    }
}

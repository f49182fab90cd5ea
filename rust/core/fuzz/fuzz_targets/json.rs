//! The reader of JSON against `serde_json`: the same documents are valid and mean the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use worker_adapters_core::json::{JsonError, JsonErrorKind, Kind, Reader};

/// All of a value, a field read twice being the last.
fn read(reader: &mut Reader<'_>) -> Result<Value, JsonError> {
    Ok(match reader.peek()? {
        Kind::Null => {
            assert!(reader.take_null()?);
            Value::Null
        }
        Kind::Bool => reader.bool()?.into(),
        Kind::Number => {
            let number = reader.number()?;
            // One that no float holds is none of ours to convert.
            serde_json::from_str(number).unwrap_or_else(|_| "too large".into())
        }
        Kind::String => {
            let text = reader.string()?;
            assert_eq!(text.value(), text.value_in(&mut String::from("before")));
            assert_eq!(text.is_empty(), text.value().is_empty());
            text.value().into()
        }
        Kind::Array => {
            let mut items = Vec::new();
            reader.array(|at, reader| {
                assert_eq!(at, items.len());
                items.push(read(reader)?);
                Ok(())
            })?;
            items.into()
        }
        Kind::Object => {
            let mut fields = Map::new();
            reader.object(|key, reader| {
                let value = read(reader)?;
                fields.insert(key.to_owned(), value);
                Ok(())
            })?;
            fields.into()
        }
    })
}

fn skip(text: &str) -> Result<(), JsonError> {
    let mut reader = Reader::new(text);
    reader.skip()?;
    reader.end()
}

fuzz_target!(|data: &[u8]| {
    let text = match (Reader::from_bytes(data), std::str::from_utf8(data)) {
        (Ok(_), Ok(text)) => text,
        (Err(error), Err(_)) => {
            assert_eq!(error.kind, JsonErrorKind::Utf8);
            assert!(error.offset < data.len());
            return;
        }
        _ => panic!("UTF-8 or not?"),
    };
    let skipped = skip(text);
    let mut reader = Reader::new(text);
    let value = read(&mut reader).and_then(|value| reader.end().map(|()| value));
    assert_eq!(skipped.err().map(|e| e.kind), value.as_ref().err().map(|e| e.kind));
    let mut reader = Reader::new(text);
    let raw = reader.raw_value().and_then(|raw| reader.end().map(|()| raw));
    assert_eq!(raw.ok(), skipped.is_ok().then(|| text.trim_matches([' ', '\t', '\n', '\r'])));

    // serde_json skips without a limit of depth, and reads with one of its own.
    let valid = serde_json::from_str::<IgnoredAny>(text).is_ok();
    match skipped {
        Err(error) if error.kind == JsonErrorKind::Depth => return,
        Err(error) => {
            assert_eq!((error.kind, valid), (JsonErrorKind::Syntax, false), "{error}");
            assert!(error.offset <= text.len());
        }
        Ok(()) => assert!(valid, "serde_json refuses it"),
    }
    // It also refuses lone surrogates, and numbers beyond a float.
    if let Ok(theirs) = serde_json::from_str::<Value>(text) {
        assert_eq!(value.as_ref().ok(), Some(&theirs));
    }
});

//! Log probabilities, in the shapes that engines give them.

use crate::event::Logprob;
use crate::json::{JsonError, JsonErrorKind, Kind, Reader};

/// OpenAI's `logprobs`: `{content: [entry]}` for chat (llama.cpp: for completions, too),
/// `{tokens, token_logprobs, top_logprobs}` for completions, or null.
pub(crate) fn read_openai(reader: &mut Reader<'_>) -> Result<Vec<Logprob>, JsonError> {
    let (mut entries, mut tokens) = (Vec::new(), Vec::new());
    let (mut values, mut tops) = (Vec::new(), Vec::new());
    if reader.take_null()? {
        return Ok(entries);
    }
    reader.object(|key, reader| {
        let is_null = reader.take_null()?;
        match key {
            _ if is_null => {}
            "content" => entries = read_entries(reader)?,
            "tokens" => {
                reader.array(|_, reader| {
                    tokens.push(reader.string_or_null()?.map(|text| text.value().into_owned()));
                    Ok(())
                })?;
            }
            "token_logprobs" => {
                reader.array(|_, reader| {
                    values.push(reader.f64_or_null()?);
                    Ok(())
                })?;
            }
            "top_logprobs" => {
                reader.array(|_, reader| {
                    tops.push(read_map(reader)?);
                    Ok(())
                })?;
            }
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    let (mut values, mut tops) = (values.into_iter(), tops.into_iter());
    for token in tokens {
        let mut entry = Logprob::new(&token.unwrap_or_default(), None, values.next().flatten());
        entry.top = tops.next().unwrap_or_default();
        entries.push(entry);
    }
    Ok(entries)
}

/// How many entries [`read_openai`] would give, without reading them.
pub(crate) fn count_openai(reader: &mut Reader<'_>) -> Result<u64, JsonError> {
    let mut count = 0;
    reader.object(|key, reader| {
        if !matches!(key, "content" | "tokens") || reader.peek()? != Kind::Array {
            return reader.skip();
        }
        reader.array(|_, reader| {
            count += 1;
            reader.skip()
        })
    })?;
    Ok(count)
}

/// `{token: logprob}`, or null.
fn read_map(reader: &mut Reader<'_>) -> Result<Vec<Logprob>, JsonError> {
    let mut entries = Vec::new();
    if !reader.take_null()? {
        reader.object(|token, reader| {
            entries.push(Logprob::new(token, None, reader.f64_or_null()?));
            Ok(())
        })?;
    }
    Ok(entries)
}

/// `[{token, id?, logprob | prob, top_logprobs | top_probs}]`: OpenAI chat, llama.cpp
/// and, with `text` for `token`, TGI. Probabilities become their logarithms.
pub(crate) fn read_entries(reader: &mut Reader<'_>) -> Result<Vec<Logprob>, JsonError> {
    let mut entries = Vec::new();
    reader.array(|_, reader| {
        entries.push(read_entry(reader)?);
        Ok(())
    })?;
    Ok(entries)
}

/// One entry of [`read_entries`].
fn read_entry(reader: &mut Reader<'_>) -> Result<Logprob, JsonError> {
    let mut entry = Logprob::new("", None, None);
    reader.object(|key, reader| {
        match key {
            "token" | "text" => {
                entry.token =
                    reader.string_or_null()?.map_or_else(Box::default, |t| t.value().into());
            }
            "id" => entry.id = reader.u64_or_null()?,
            "logprob" => entry.logprob = reader.f64_or_null()?,
            "prob" => entry.logprob = reader.f64_or_null()?.and_then(logarithm),
            // The rivals have none of their own: this does not nest further.
            "top_logprobs" | "top_probs" if reader.peek()? == Kind::Array => {
                reader.array(|_, reader| {
                    entry.top.push(read_rival(reader)?);
                    Ok(())
                })?;
            }
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    Ok(entry)
}

fn read_rival(reader: &mut Reader<'_>) -> Result<Logprob, JsonError> {
    let mut entry = Logprob::new("", None, None);
    reader.object(|key, reader| {
        match key {
            "token" => {
                entry.token =
                    reader.string_or_null()?.map_or_else(Box::default, |t| t.value().into());
            }
            "id" => entry.id = reader.u64_or_null()?,
            "logprob" => entry.logprob = reader.f64_or_null()?,
            "prob" => entry.logprob = reader.f64_or_null()?.and_then(logarithm),
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    Ok(entry)
}

/// None for a probability of nothing.
fn logarithm(probability: f64) -> Option<f64> {
    Some(probability.ln()).filter(|value| value.is_finite())
}

/// SGLang's `[[logprob, id, text | null]]`, or null.
pub(crate) fn read_tuples(reader: &mut Reader<'_>) -> Result<Vec<Logprob>, JsonError> {
    let mut entries = Vec::new();
    if reader.take_null()? {
        return Ok(entries);
    }
    reader.array(|_, reader| {
        let mut entry = Logprob::new("", None, None);
        reader.array(|at, reader| {
            match at {
                0 => entry.logprob = reader.f64_or_null()?,
                1 => entry.id = reader.u64_or_null()?,
                2 => {
                    let text = reader.string_or_null()?;
                    entry.token = text.map_or_else(Box::default, |text| text.value().into());
                }
                _ => return Err(reader.error(JsonErrorKind::Type)),
            }
            Ok(())
        })?;
        entries.push(entry);
        Ok(())
    })?;
    Ok(entries)
}

/// A list of [`read_tuples`], or null.
pub(crate) fn read_tuple_lists(reader: &mut Reader<'_>) -> Result<Vec<Vec<Logprob>>, JsonError> {
    let mut lists = Vec::new();
    if !reader.take_null()? {
        reader.array(|_, reader| {
            lists.push(read_tuples(reader)?);
            Ok(())
        })?;
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(entries: &[Logprob]) -> Vec<(&str, Option<u64>, Option<f64>, usize)> {
        entries.iter().map(|e| (&*e.token, e.id, e.logprob, e.top.len())).collect()
    }

    #[test]
    fn a_probability_of_nothing_has_no_logarithm() {
        let probs = r#"[{"token":"a","prob":0.0},{"token":"b","prob":-1}]"#;
        let read = read_entries(&mut Reader::new(probs)).unwrap();
        assert_eq!(tokens(&read), [("a", None, None, 0), ("b", None, None, 0)]);
    }

    #[test]
    fn there_may_be_no_rivals() {
        for none in ["null", "{}", "0"] {
            let entry = format!(r#"[{{"token":"a","logprob":-0.5,"top_logprobs":{none}}}]"#);
            let read = read_entries(&mut Reader::new(&entry)).unwrap();
            assert_eq!(tokens(&read), [("a", None, Some(-0.5), 0)], "{none}");
        }
    }

    #[test]
    fn each_shape_is_read() {
        let chat = r#"{"content":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[{"token":"b","logprob":-1}]}]}"#;
        let read = read_openai(&mut Reader::new(chat)).unwrap();
        assert_eq!(tokens(&read), [("a", None, Some(-0.5), 1)]);
        let plain = r#"{"text_offset":[0],"token_logprobs":[null,-2.5],"tokens":["a","b"],"top_logprobs":[null,{"b":-2.5,"c":-3}]}"#;
        let read = read_openai(&mut Reader::new(plain)).unwrap();
        assert_eq!(tokens(&read), [("a", None, None, 0), ("b", None, Some(-2.5), 2)]);
        let probs =
            r#"[{"id":7,"token":"a","prob":1.0,"top_probs":[{"id":7,"token":"a","prob":1.0}]}]"#;
        let read = read_entries(&mut Reader::new(probs)).unwrap();
        assert_eq!(tokens(&read), [("a", Some(7), Some(0.0), 1)]);
        let tuples = r#"[[-0.5,390,"hre"],[-1,5,null]]"#;
        let read = read_tuples(&mut Reader::new(tuples)).unwrap();
        assert_eq!(
            tokens(&read),
            [("hre", Some(390), Some(-0.5), 0), ("", Some(5), Some(-1.0), 0)]
        );
        assert!(read_openai(&mut Reader::new("null")).unwrap().is_empty());
        for (text, count) in [(chat, 1), (plain, 2), (r#"{"content":null,"refusal":[]}"#, 0)] {
            assert_eq!(count_openai(&mut Reader::new(text)).unwrap(), count, "{text}");
            assert_eq!(read_openai(&mut Reader::new(text)).unwrap().len() as u64, count, "{text}");
        }
    }
}

//! The forms of a model reference.

use super::text::{has_length, one_line};

/// How many characters a model reference has at most.
pub(super) const MAX_MODEL_REF_CHARS: usize = 4096;

const HF: &str = "must be written hf:org/repo or hf:org/repo/path/file.gguf";
const FILE: &str = "must be written file:/absolute/path (a relative path has no scheme)";
const HTTPS: &str = "must be written https://host/path, without credentials";
const S3: &str = "must be written s3://bucket/key";
const OCI: &str = "must be written oci://registry/repo:tag";

/// Checks the form. A message never repeats the reference: it may hold a token.
pub(super) fn check(reference: &str) -> Result<(), &'static str> {
    if !has_length(reference, MAX_MODEL_REF_CHARS) {
        return Err("must be 1 to 4096 characters long");
    }
    one_line(reference)?;
    let Some((scheme, rest)) = reference.split_once(':').filter(|(word, _)| is_scheme(word)) else {
        if reference.starts_with('/') {
            return Err("must be written file:/absolute/path");
        }
        return Ok(());
    };
    let (is_fine, form) = match scheme {
        "hf" => (is_hf(rest), HF),
        "file" => (rest.starts_with('/'), FILE),
        "https" => (is_https(rest), HTTPS),
        "s3" => (host_and_path(rest).is_some(), S3),
        "oci" => (host_and_path(rest).is_some_and(has_tag), OCI),
        _ => {
            return Err("must have one of the schemes hf:, file:, https://, s3:// and oci://, \
                        or be a relative path");
        }
    };
    if is_fine { Ok(()) } else { Err(form) }
}

fn is_scheme(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_alphabetic())
        && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '.' | '-'))
}

fn has_space(text: &str) -> bool {
    text.contains(char::is_whitespace)
}

fn is_hf(rest: &str) -> bool {
    !has_space(rest) && rest.contains('/') && rest.split('/').all(|part| !part.is_empty())
}

fn is_https(rest: &str) -> bool {
    let Some(rest) = rest.strip_prefix("//").filter(|rest| !has_space(rest)) else { return false };
    let host = rest.split_once('/').map_or(rest, |(host, _)| host);
    !host.is_empty() && !host.contains(['@', '?', '#'])
}

/// What follows `//host/`, where both are there.
fn host_and_path(rest: &str) -> Option<&str> {
    let (host, path) = rest.strip_prefix("//")?.split_once('/')?;
    (!host.is_empty() && !path.is_empty() && !has_space(rest)).then_some(path)
}

fn has_tag(path: &str) -> bool {
    // The tag is in the last part; what is before it may be any text, as long as there is some.
    let last_part = path.rsplit_once('/').map_or(0, |(before, _)| before.len() + 1);
    path.char_indices().any(|(at, character)| {
        let tag = at + 1;
        matches!(character, ':' | '@') && at > 0 && at >= last_part && tag < path.len()
    })
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn the_forms_of_the_contract_pass() {
        for reference in [
            "hf:org/repo",
            "hf:org/repo/path/file.gguf",
            "file:/models/a b.gguf",
            "models/a.gguf",
            "a.gguf",
            "./a:b/c",
            "https://host",
            "https://host:8443/a?b#c",
            "s3://bucket/a/key",
            "oci://registry:5000/repo:tag",
            "oci://registry/a/repo@sha256:00",
            "oci://registry/repo:tag:",
        ] {
            assert_eq!(check(reference), Ok(()), "{reference}");
        }
    }

    #[test]
    fn others_do_not() {
        for reference in [
            "",
            "/absolute",
            "hf:org",
            "hf:org/",
            "hf:/repo",
            "hf:org//repo",
            "hf:org/re po",
            "file:relative",
            "https://user:pass@host/a",
            "https:///a",
            "https://host?token=x",
            "http://host/a",
            "HF:org/repo",
            "s3://bucket",
            "s3://bucket/",
            "oci://registry/repo",
            "oci://registry/repo:",
            "oci://registry/:tag",
            "oci://registry:5000/repo",
            "oci://registry/a:b/repo",
            "a\nb",
        ] {
            assert!(check(reference).is_err(), "{reference}");
        }
        assert!(check(&"a".repeat(4096)).is_ok());
        assert!(check(&"a".repeat(4097)).is_err());
    }
}

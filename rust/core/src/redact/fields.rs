//! Secrets by the name before them: headers, parameters, options, fields of documents and of
//! `repr`s, environment variables, flags.

use std::ops::Range;

use super::names::{Name, classify, scheme};
use super::scan::{Span, blank, byte, delimiter, quote, rest, run, short_run, stretch};

pub(super) fn find(text: &[u8], spans: &mut Vec<Span>) {
    let mut at = 0;
    while at < text.len() {
        if !in_name(byte(text, at)) {
            at += 1;
            continue;
        }
        let end = run(text, at, in_name);
        let value = classify(text, at, end).and_then(|name| value_after(text, at..end, name));
        // A value is looked at once, whether it is a secret or not.
        at = match value {
            Some(value) => {
                let after = value.end.max(end);
                if !value.is_empty() {
                    spans.push(Span::new(value));
                }
                after
            }
            None => end,
        };
    }
}

fn in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// What stands between a name and its value.
enum Separator {
    Colon,
    Equals,
    /// The next item of a tuple or list.
    Comma,
    /// Nothing but space, after a flag or a scheme.
    Space,
}

/// How much space, and how many quotes, brackets and escapes may stand between.
const BETWEEN: usize = 32;

/// The value of the name that stands at `name`. Empty where there is one that is no secret: it
/// needs not be looked at again.
fn value_after(text: &[u8], name: Range<usize>, kind: Name) -> Option<Range<usize>> {
    let spaces = |at| short_run(text, at, BETWEEN, blank);
    if kind == Name::Scheme {
        let at = spaces(name.end);
        // What follows without a space may be followed by more names.
        let token = (at > name.end).then(|| at..run(text, at, in_token))?;
        return is_random(stretch(text, token.clone())).then_some(token);
    }
    let closed = short_run(text, name.end, BETWEEN, |b| quote(b) || matches!(b, b'\\' | b']'));
    let quoted = stretch(text, name.end..closed).iter().any(|b| quote(*b));
    let at = spaces(closed);
    let (separator, at) = match (byte(text, at), byte(text, at + 1)) {
        // A path of Rust, a scheme of a URL.
        (b':', b':' | b'/') => return None,
        (b':' | b'=', b'=' | b'>') => (Separator::Equals, at + 2),
        (b':', _) => (Separator::Colon, at + 1),
        (b'=', _) => (Separator::Equals, at + 1),
        (b',', _) if quoted => (Separator::Comma, after_value_key(text, at + 1)),
        _ if byte(text, name.start) == b'-' && at > name.end && !quoted => (Separator::Space, at),
        _ => return None,
    };
    let mut at = spaces(at);
    if matches!(kind, Name::Authorization | Name::Cookie) {
        at = unfolded(text, at);
    }
    if opens_object(text, at) {
        return None;
    }
    let at = unwrapped(text, at);
    let escapes = run(text, at, |byte| byte == b'\\') - at;
    let (opening, prefixed) = match (byte(text, at + escapes), byte(text, at + 1)) {
        (first, _) if quote(first) => (at + escapes, 0),
        (b'b' | b'r', second) if quote(second) && escapes == 0 => (at, 1),
        _ if matches!(separator, Separator::Comma) => return None,
        _ => return Some(unquoted(text, at, kind, &separator)),
    };
    let most = if matches!(separator, Separator::Comma) { MOST_OF_AN_ITEM } else { usize::MAX };
    let value = quoted_value(text, opening + prefixed, escapes, most);
    if matches!(separator, Separator::Comma) && is_key(text, value.end) {
        return None;
    }
    Some(secret_of(text, value, kind))
}

/// An item of a list is not looked at further than this.
const MOST_OF_AN_ITEM: usize = 4096;

/// Past the key of `"name": "authorization", "value": …`, as headers are listed; past nothing else.
fn after_value_key(text: &[u8], at: usize) -> usize {
    let start = short_run(text, at, BETWEEN, |b| blank(b) || quote(b) || b == b'\\');
    if !stretch(text, start..start + 5).eq_ignore_ascii_case(b"value") {
        return at;
    }
    let end = short_run(text, start + 5, BETWEEN, |b| blank(b) || quote(b) || b == b'\\');
    if matches!(byte(text, end), b':' | b'=') { end + 1 } else { at }
}

/// A header may go on in the next line, after a space.
fn unfolded(text: &[u8], at: usize) -> usize {
    let next = match rest(text, at) {
        [b'\r', b'\n', ..] => at + 2,
        [b'\n', ..] => at + 1,
        _ => return at,
    };
    let end = short_run(text, next, BETWEEN, blank);
    if end > next { end } else { at }
}

/// Whether an object begins here: its fields have names of their own. `PWD={…}` is none.
fn opens_object(text: &[u8], at: usize) -> bool {
    byte(text, at) == b'{' && {
        let first = short_run(text, at + 1, BETWEEN, |b| b.is_ascii_whitespace() || b == b'\\');
        quote(byte(text, first)) || byte(text, first) == b'}'
    }
}

/// Past the types that a quoted value is wrapped in, `Some(`, `SecretStr(`, and past brackets.
fn unwrapped(text: &[u8], at: usize) -> usize {
    let bracket = |byte| matches!(byte, b'(' | b'[');
    let mut inner = at;
    for _ in 0..3 {
        let end = short_run(text, inner, BETWEEN, |b| in_name(b) || matches!(b, b'.' | b':'));
        if !bracket(byte(text, end)) {
            break;
        }
        inner = end + 1;
    }
    let opening = short_run(text, inner, BETWEEN, |b| matches!(b, b'\\' | b'b' | b'r'));
    if quote(byte(text, opening)) { inner } else { short_run(text, at, 3, bracket) }
}

/// What is between the quote at `opening`, written with so many escapes before it, and the one
/// that closes it, or the end of the line.
fn quoted_value(text: &[u8], opening: usize, escapes: usize, most: usize) -> Range<usize> {
    let start = opening + 1;
    let mark = byte(text, opening);
    let mut slashes = 0;
    let mut at = start;
    for byte in rest(text, start).iter().take(most) {
        match *byte {
            b'\n' | b'\r' => break,
            b'\\' => slashes += 1,
            found => {
                let closes = if escapes == 0 { slashes % 2 == 0 } else { slashes <= escapes };
                if found == mark && closes {
                    let shared = if escapes == 0 { 0 } else { slashes };
                    return start..at - shared;
                }
                slashes = 0;
            }
        }
        at += 1;
    }
    start..at
}

/// Whether a colon follows the closing quote: what was quoted is a name itself.
fn is_key(text: &[u8], end: usize) -> bool {
    let closed = short_run(text, end, BETWEEN, |b| quote(b) || b == b'\\' || blank(b));
    byte(text, closed) == b':'
}

/// The part of a quoted value that must not be shown.
fn secret_of(text: &[u8], value: Range<usize>, kind: Name) -> Range<usize> {
    let none = value.end..value.end;
    let content = stretch(text, value.clone());
    match kind {
        Name::Authorization => {
            let word = run(content, 0, |byte| byte > b' ');
            let token = run(content, word, blank);
            if token > word && scheme(stretch(content, 0..word)) {
                return value.start + token..value.end;
            }
        }
        Name::User => return password(text, value),
        Name::Token if content.iter().all(|b| b.is_ascii_digit() || *b == b'.') => return none,
        _ => {}
    }
    if says_none(content) { none } else { value }
}

fn unquoted(text: &[u8], at: usize, kind: Name, separator: &Separator) -> Range<usize> {
    let flag = matches!(separator, Separator::Space) && byte(text, at) == b'-';
    // A flag that is followed by another one has no value.
    if flag && matches!(kind, Name::Secret | Name::Token) {
        return at..at;
    }
    let end = value_end(text, at);
    let none = end..end;
    match kind {
        Name::Authorization => {
            let word = stretch(text, at..end);
            let next = run(text, end, blank);
            if scheme(word) && next > end {
                return next..value_end(text, next);
            }
            if says_none(word) {
                return none;
            }
            match separator {
                Separator::Colon => at..line_end(text, end),
                _ => at..end,
            }
        }
        Name::Cookie => at..line_end(text, at),
        Name::User => password(text, at..end),
        _ => secret_of(text, at..end, kind),
    }
}

/// Where a value that is not quoted ends. Escaped white space and quotes end it, too.
fn value_end(text: &[u8], at: usize) -> usize {
    let mut end = at;
    loop {
        end = run(text, end, |byte| !delimiter(byte) && byte != b'\\');
        let slashes = run(text, end, |byte| byte == b'\\');
        if slashes == end {
            return end;
        }
        let next = byte(text, slashes);
        if quote(next) || matches!(next, b'n' | b'r' | b't') {
            return end;
        }
        if delimiter(next) {
            return slashes;
        }
        end = slashes;
    }
}

/// Where the line ends, or the text that it is quoted in.
fn line_end(text: &[u8], at: usize) -> usize {
    let mut parameters = false;
    let mut previous = 0;
    for (offset, byte) in rest(text, at).iter().enumerate() {
        match *byte {
            b'\r' | b'\n' | b'\'' | b'`' => return at + offset,
            // The parameters of a scheme are quoted themselves.
            b'"' if previous == b'=' => parameters = true,
            b'"' if !parameters => return at + offset,
            b'"' => parameters = false,
            _ => {}
        }
        previous = *byte;
    }
    text.len()
}

/// What follows the first colon, unless that is a number, as in `--user 1000:1000`, or a URL.
fn password(text: &[u8], value: Range<usize>) -> Range<usize> {
    let colon = memchr::memchr(b':', stretch(text, value.clone()));
    let start = colon.map_or(value.end, |colon| value.start + colon + 1);
    let password = stretch(text, start..value.end);
    let is_none = password.iter().all(u8::is_ascii_digit) || password.starts_with(b"//");
    if is_none { value.end..value.end } else { start..value.end }
}

/// Words in the place of a secret: that there is none, of what type it is, what is wrong with it.
fn says_none(value: &[u8]) -> bool {
    const WORDS: &[&[u8]] = &[
        b"bool",
        b"bytes",
        b"empty",
        b"expired",
        b"false",
        b"int",
        b"invalid",
        b"is",
        b"missing",
        b"must",
        b"none",
        b"not",
        b"null",
        b"optional",
        b"required",
        b"revoked",
        b"set",
        b"str",
        b"string",
        b"true",
        b"unset",
        b"was",
    ];
    value.iter().all(|byte| matches!(byte, b'*' | b'.'))
        || WORDS.iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// The characters of what follows a scheme (RFC 9110, section 11.2).
fn in_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
}

/// Whether this is a token rather than a word of a sentence.
fn is_random(token: &[u8]) -> bool {
    let digits = token.iter().filter(|byte| byte.is_ascii_digit()).count();
    let capitals = token.iter().filter(|byte| byte.is_ascii_uppercase()).count();
    let small = token.iter().filter(|byte| byte.is_ascii_lowercase()).count();
    match token.len() {
        0..6 => false,
        6..16 => digits > 0 && capitals + small > 0,
        _ => digits > 0 || capitals > 1 && small > 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<&str> {
        let mut spans = Vec::new();
        find(text.as_bytes(), &mut spans);
        spans.iter().map(|span| text.get(span.start..span.end).unwrap()).collect()
    }

    #[test]
    fn values_in_every_notation() {
        for text in [
            "api_key=S3",
            "api_key = S3, b",
            "api_key: S3\nb: c",
            r#"{"api_key":"S3","b":1}"#,
            r#"{"a":"{\"api_key\": \"S3\"}"}"#,
            r#""{\\\"api_key\\\": \\\"S3\\\"}""#,
            "Worker(api_key='S3', b=1)",
            "Config { api_key: Some(\"S3\"), b: 1 }",
            "Config(api_key=SecretStr('S3'))",
            "(b'X-Api-Key', b'S3')",
            "[\"x-api-key\", \"S3\"]",
            r#"{"name": "x-api-key", "value": "S3"}"#,
            r#"{\"name\": \"x-api-key\", \"value\" : \"S3\"}"#,
            r#"HeaderField { name: "x-api-key", value: "S3" }"#,
            "headers['x-api-key'] = 'S3'",
            "map[X-Api-Key:[S3] Accept:[*/*]]",
            "serve --api-key S3 --port 1",
            "serve --api-key=S3",
            "serve --api-key 'S3' -p 1",
            "{APIKey:S3 Timeout:3s}",
            r#"{"secret": {"password": "S3"}}"#,
            "secret => S3",
            "password == S3",
            "Config(api_key=pydantic.SecretStr('S3'))",
            "curl -H 'X-Api-Key: S3' http://h",
            "curl -u me:S3 http://h",
            "curl --user 'me:S3' http://h",
            "curl -u -me:S3 http://h",
            "password: \"S3",
            r"api_key=S3\nnext",
            r#"{"m":"api_key=S3\"}"#,
        ] {
            assert_eq!(found(text), ["S3"], "{text}");
        }
        assert_eq!(found(r#"{"password": "a\"b c"}"#), [r#"a\"b c"#]);
        assert_eq!(found(r#"{"password":"a\\","b":"c"}"#), [r"a\\"]);
        assert_eq!(found(r"password=a\b"), [r"a\b"]);
        assert_eq!(found("password=bread&pwd=rye"), ["bread", "rye"], "no prefixes of a string");
        assert_eq!(found("password=-S3"), ["-S3"], "no flag");
        assert_eq!(found("Uid=me;Pwd={S3};"), ["{S3"]);
        assert_eq!(found("?token=a&key=b http://h#code=c"), ["a", "b", "c"]);
    }

    #[test]
    fn authorization_keeps_its_scheme() {
        assert_eq!(found("Authorization: Bearer S3\nnext"), ["S3"]);
        assert_eq!(found("authorization=Bearer S3 (sensitive=false)"), ["S3"]);
        assert_eq!(found("{\"authorization\": \"Bearer S3\", \"b\": 1}"), ["S3"]);
        assert_eq!(found("-H 'Authorization: Bearer S3' http://h"), ["S3"]);
        assert_eq!(found("Authorization:\r\n Bearer S3"), ["S3"]);
        assert_eq!(found("Authorization:\n\tBearer S3"), ["S3"]);
        assert_eq!(found("Authorization: S3"), ["S3"]);
        assert_eq!(found("Authorization: Bearer\nb"), ["Bearer"], "no scheme, with nothing after");
        assert_eq!(found(r#"{"authorization": "Bearer"}"#), ["Bearer"]);
        assert_eq!(found("Authorization: Own S3 and more\nb"), ["Own S3 and more"]);
        let digest = "Digest username=\"u\", realm=\"r\", response=\"0f\"";
        assert_eq!(found(&format!("Authorization: {digest}\nb")), [digest]);
        assert_eq!(found("Cookie: a=b; c=d\nb"), ["a=b; c=d"]);
        for quote in ["'", "\"", "`"] {
            let curl = format!("curl -H {quote}Authorization: Own S3 too{quote} -x");
            assert_eq!(found(&curl), ["Own S3 too"]);
            assert_eq!(found(&format!("{quote}Cookie: a=b; c=d{quote}, 1")), ["a=b; c=d"]);
        }
        assert_eq!(found("\"Cookie: a=\"b\"; c=d\", 1"), ["a=\"b\"; c=d"]);
    }

    #[test]
    fn a_token_after_a_scheme_is_told_from_a_word() {
        for token in ["abc012", "abcdef0123", "abcdefghijklmnop0", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="] {
            assert_eq!(found(&format!("Bearer {token} is not known")), [token]);
        }
        for word in [
            "v1.25",
            "2024-05-01",
            "McDonaldsUK",
            "authentication",
            "internationalization",
            "Internationalization",
            "INTERNATIONALIZATION",
            "ACCESSCREDENTIALs",
        ] {
            assert_eq!(found(&format!("basic {word} of all")), [""; 0], "{word}");
        }
    }

    #[test]
    fn what_is_no_secret_is_left_alone() {
        for kept in [
            "tokens=128 token_count=128",
            "token: 128",
            "token=1.5",
            "next_token=abc",
            "code=500 key=value",
            "the key insight is: caching",
            "the token expired",
            "the password strength, a secret garden",
            "docs/basic/chapter-01",
            "either --password/--api-key",
            "Authorization:\r\nHost: h",
            "Cookie:\nHost: h",
            "token: invalid",
            "api_key: str",
            "Config(api_key=SecretStr('**********'))",
            "api_key=None, b=2",
            "Token::new(a)",
            "token://host",
            r#"{"kind":"token","data":{"t":"x"}}"#,
            r#"{"token":{"id":1,"text":"x"}}"#,
            r#"{\"token\": { \"id\": 1}}"#,
            "token={}",
            "Bearer of bad news",
            "basic authentication",
            "docker run --user 1000:1000 image",
            "-u name",
            "-u http://127.0.0.1:8000",
            "--api-key --port",
            "user: name:word",
            "secret, or not",
            "no api_key, 'default' is sent",
            r#"["password", 128, "x"]"#,
            r#"{"sort": "password", "order" : "up"}"#,
            r#"{\"sort\": \"password\", \"order\": \"up\"}"#,
            "password=",
        ] {
            assert_eq!(found(kept), [""; 0], "{kept}");
        }
    }
}

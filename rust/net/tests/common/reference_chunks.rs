//! The chunked coding of RFC 9112, section 7.1, read slowly and at once.

use worker_adapters_net::http1::Fault;

/// The data of a body, and the fault or how many bytes the body took.
pub(crate) fn parse(body: &[u8]) -> (Vec<u8>, Result<usize, Fault>) {
    let mut data = Vec::new();
    let end = chunks(body, &mut data);
    (data, end)
}

fn chunks(body: &[u8], data: &mut Vec<u8>) -> Result<usize, Fault> {
    let mut input = body;
    loop {
        let line = Line::take(&mut input);
        let digits = line.text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, rest) = line.text.split_at(digits);
        let rest = rest.trim_ascii_start();
        let untold = line.text.is_empty() && !line.cr;
        let plain = line.text.len() == digits || rest.starts_with(b";");
        let padded = rest.is_empty() && !line.cr;
        if !untold && (digits == 0 || digits > 16 || !(plain || padded)) {
            return Err(Fault::Framing);
        }
        line.end?;
        match u64::from_str_radix(std::str::from_utf8(size).unwrap(), 16).unwrap() {
            0 => break,
            size => {
                let come = usize::try_from(size).unwrap_or(usize::MAX).min(input.len());
                data.extend_from_slice(&input[..come]);
                input = &input[come..];
            }
        }
        match input {
            [b'\r', b'\n', ..] => input = &input[2..],
            [] | [b'\r'] => return Err(Fault::Truncated),
            _ => return Err(Fault::Framing),
        }
    }
    loop {
        let line = Line::take(&mut input);
        let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        let name = line.text.split(|byte| *byte == b':').next().unwrap();
        let told = name.len() < line.text.len();
        if !name.iter().all(token) || (told && name.is_empty()) {
            return Err(Fault::Framing);
        }
        if line.cr && !told && !name.is_empty() {
            return Err(Fault::Framing);
        }
        line.end?;
        if line.text.is_empty() {
            return Ok(body.len() - input.len());
        }
    }
}

/// As much of a line as has come.
struct Line<'a> {
    text: &'a [u8],
    cr: bool,
    end: Result<(), Fault>,
}

impl<'a> Line<'a> {
    fn take(input: &mut &'a [u8]) -> Self {
        let is_text = |byte: &&u8| **byte == b'\t' || (**byte >= 32 && **byte != 127);
        let (text, rest) = input.split_at(input.iter().take_while(is_text).count());
        let end = match rest {
            [b'\r', b'\n', rest @ ..] => {
                *input = rest;
                Ok(())
            }
            [] | [b'\r'] => Err(Fault::Truncated),
            _ => Err(Fault::Framing),
        };
        Self { text, cr: rest.starts_with(b"\r"), end }
    }
}

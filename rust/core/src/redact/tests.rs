use base64::Engine;
use base64::engine::general_purpose;
use proptest::prelude::*;

use super::*;

fn fingerprint(secret: &str) -> String {
    marker::fingerprint(secret.as_bytes())
}

const SECRET: &str = "s3cret/ké\"y+with\\odd=bytes";

#[test]
fn each_spelling_is_found() {
    let redactor = Redactor::new([SECRET]).unwrap();
    let fingerprint = fingerprint(SECRET);
    let json = serde_json::to_string(SECRET).unwrap();
    let mut texts =
        vec![SECRET.to_owned(), json, "q=s3cret%2Fk%C3%A9%22y%2Bwith%5Codd%3Dbytes".into()];
    texts.push("q=s3cret%2fk%c3%a9%22y%2bwith%5codd%3dbytes".into());
    for text in texts {
        let redacted = redactor.redact(&text);
        assert!(redacted.contains(&fingerprint), "{redacted}");
        assert!(!redacted.contains("s3cret"), "{redacted}");
        assert_eq!(redactor.redact(&redacted), redacted, "redacting twice changes nothing");
    }
}

#[test]
fn base64_is_found_at_every_alignment() {
    let redactor = Redactor::new([SECRET]).unwrap();
    for engine in [&general_purpose::STANDARD, &general_purpose::URL_SAFE] {
        for before in ["", "u", "us", "use"] {
            for after in ["", ":", ":x", ":xy"] {
                let text = engine.encode(format!("{before}{SECRET}{after}"));
                let hidden = find(&text, |text, spans| redactor.known(text, spans));
                // Characters that hold bits of its neighbours are left.
                let start = (before.len() * 8).div_ceil(6);
                let end = (before.len() + SECRET.len()) * 8 / 6;
                let shown_as = Some(fingerprint(SECRET).into());
                assert_eq!(hidden, [Span { start, end, shown_as }], "{before} {after}");
                assert!(redactor.redact(&text).contains("****"));
            }
        }
    }
}

#[test]
fn short_secrets_are_refused() {
    let error = Redactor::new(["long enough", "short"]).unwrap_err();
    assert_eq!(error, RedactorError::TooShort { index: 1 });
    let words = error.to_string();
    assert!(words.contains("number 1 has fewer than 6 characters"), "{words}");
}

#[test]
fn overlapping_secrets_go_by_the_longer() {
    let redactor = Redactor::new(["secret", "secret-longer"]).unwrap();
    assert_eq!(redactor.redact("secret-longer"), fingerprint("secret-longer"));
    let more = redactor.with_secrets(["another one"]).unwrap();
    assert_eq!(more.redact("secret"), fingerprint("secret"));
    assert_eq!(more.redact("another one"), fingerprint("another one"));
}

#[test]
fn secrets_that_share_bytes_are_hidden_together() {
    let redactor = Redactor::new(["abcdef-XYZ", "XYZ-123456", "def-XY"]).unwrap();
    assert_eq!(
        redactor.redact("<abcdef-XYZ-123456>"),
        format!("<{}>", fingerprint("abcdef-XYZ-123456"))
    );
    assert_eq!(redactor.redact("<abcdef-XYZ>"), format!("<{}>", fingerprint("abcdef-XYZ")));
    let twice = Redactor::new(["abab-abab"]).unwrap();
    assert_eq!(twice.redact("abab-abab-abab!"), format!("{}!", fingerprint("abab-abab-abab")));
}

#[test]
fn private_texts_are_hidden_wherever_an_engine_quotes_them() {
    let redactor =
        Redactor::default().with_private_texts(["the quick brown fox\njumps", "secret", "hi"]);
    let hidden = |message| redactor.quote(message);
    assert_eq!(hidden("bad input: the quick brown fox at 3"), "bad input: […] at 3");
    assert_eq!(hidden("near 'ck brown fox\\njumps'"), "near '[…]'", "escaped");
    assert_eq!(hidden("no secret here"), "no […] here");
    assert_eq!(hidden("this"), "this", "ordinary text");
    assert_eq!(hidden("the quick"), "the quick", "too short to tell anything");
    let asked = Redactor::default().with_private_texts(["my password: hunter2 is"]);
    assert_eq!(
        asked.quote("bad: my password: hunter2 is"),
        "bad: […]",
        "before names are looked for"
    );
    assert_eq!(hidden("brown foxes jump"), "brown foxes jump");
    assert_eq!(hidden("é"), "é");
    assert_eq!(Redactor::default().quote("hi"), "hi");
}

#[test]
fn private_texts_are_hidden_however_they_are_escaped() {
    let prompt = "Напиши \"тайное\" письмо 😀";
    let redactor = Redactor::default().with_private_texts([prompt]);
    let ascii: String = prompt
        .encode_utf16()
        .map(|unit| match u8::try_from(unit) {
            Ok(ascii) => char::from(ascii).to_string(),
            Err(_) => format!("\\u{unit:04x}"),
        })
        .collect();
    let json = serde_json::to_string(&serde_json::to_string(prompt).unwrap()).unwrap();
    let twice = ascii.replace('\\', "\\\\");
    let each = |spelled: fn(u8) -> String| prompt.bytes().map(spelled).collect::<Vec<_>>().concat();
    let percent = each(|byte| format!("%{byte:02X}"));
    let bytes = each(|byte| format!("\\x{byte:02x}"));
    for escaped in [prompt, &ascii, &twice, &percent, &bytes] {
        assert_eq!(redactor.quote(&format!("no: {escaped}!")), "no: […]!", "{escaped}");
    }
    assert_eq!(redactor.quote(&format!("no: {json}!")), r#"no: "\"[…]\""!"#);
}

#[test]
fn a_private_text_is_passed_over_once() {
    let words = (0..200_000).map(|number| format!("{number} ")).collect::<Vec<_>>().concat();
    let start = words.get(..900).unwrap();
    let end = words.get(words.len() - 900..).unwrap();
    let redactor = Redactor::default().with_private_texts([&*words, "199999 199998 ", "aaaaaaa"]);
    // What is not in the text at all has it looked through to its end.
    assert_eq!(redactor.quote(&format!("{end}<nowhere to be found>")), "[…]<nowhere to be found>");
    assert_eq!(redactor.quote(&format!("it said {start}!")), "it said […]!");
    assert_eq!(redactor.quote("199999 199998 and on"), "[…]and on");
    assert_eq!(redactor.quote("b aaaaaaaaaaaa b"), "b […] b", "all of what repeats itself");
    assert_eq!(redactor.quote("199999199998"), "199999199998");
}

proptest::proptest! {
    #[test]
    fn what_is_hidden_of_private_texts_is_every_stretch_of_them(
        message in "[ab]{0,60}",
        private in proptest::collection::vec("[ab]{6,30}", 1..4),
    ) {
        let least = |text: &String| text.len().min(PRIVATE_STRETCH_BYTES);
        let mut hidden = vec![false; message.len()];
        for text in &private {
            for at in 0..message.len() {
                if message.get(at..at + least(text)).is_some_and(|part| text.contains(part)) {
                    hidden.iter_mut().skip(at).take(least(text)).for_each(|byte| *byte = true);
                }
            }
        }
        let mut expected = String::new();
        for (at, byte) in message.chars().enumerate() {
            match (hidden[at], at > 0 && hidden[at - 1]) {
                (false, _) => expected.push(byte),
                (true, false) => expected.push_str("[…]"),
                (true, true) => {}
            }
        }
        let redactor = Redactor::default().with_private_texts(private);
        proptest::prop_assert_eq!(redactor.quote(&message), expected);
    }
}

#[test]
fn nothing_is_shown_by_debug() {
    let redactor = Redactor::new([SECRET]).unwrap();
    assert_eq!(format!("{redactor:?}"), "Redactor { secrets: 1, .. }");
}

#[test]
fn a_secret_is_found_in_other_case_and_behind_escapes() {
    let redactor = Redactor::new([SECRET, "hunter2-secret"]).unwrap();
    let shown = fingerprint("hunter2-secret");
    let spelled = |byte: &dyn Fn(u8) -> String| -> String {
        "hunter2-secret".bytes().flat_map(|b| byte(b).into_bytes()).map(char::from).collect()
    };
    let escaped = spelled(&|byte| format!("\\u{byte:04x}"));
    let encoded = spelled(&|byte| format!("%25{byte:02X}"));
    for spelling in ["hunter2-secret", "HUNTER2-SECRET", &escaped, &encoded] {
        assert_eq!(redactor.redact(&format!("a {spelling} b")), format!("a {shown} b"));
    }
    let ascii = SECRET.replace('é', "\\u00e9");
    assert_eq!(redactor.redact(&ascii), fingerprint(SECRET));
}

#[test]
fn a_secret_is_found_as_forms_and_paths_encode_it() {
    let redactor = Redactor::new(["correct horse", "is it 1+1 & é?", "pässwörd/12"]).unwrap();
    for (text, secret) in [
        ("GET /x?q=correct+horse 403", "correct horse"),
        ("q=is+it+1%2B1+%26+%C3%A9%3F", "is it 1+1 & é?"),
        ("q=is+it+1%2b1+%26+%c3%a9?", "is it 1+1 & é?"),
        ("GET /p%C3%A4ssw%C3%B6rd/12 403", "pässwörd/12"),
        ("GET /p%C3%A4ssw%C3%B6rd%2F12 403", "pässwörd/12"),
        ("GET /p%25C3%25A4ssw%25C3%25B6rd/12 403", "pässwörd/12"),
    ] {
        let redacted = redactor.redact(text);
        assert!(redacted.contains(&fingerprint(secret)), "{redacted}");
        assert!(!["horse", "it", "rd"].iter().any(|part| redacted.contains(part)), "{redacted}");
    }
    assert_eq!(
        redactor.redact("got is+it+1%2B1+%2"),
        format!("got {}", fingerprint("is it 1+1 & é?"))
    );
}

#[test]
fn a_secret_is_found_as_python_writes_strings_and_bytes() {
    let secret = "sécret ключ \u{1f600}";
    let redactor = Redactor::new([secret]).unwrap();
    for (text, shown) in [
        (r"'s\xe9cret \u043a\u043b\u044e\u0447 \U0001f600'", "'****'"),
        (r"b's\xc3\xa9cret \xd0\xba\xd0\xbb\xd1\x8e\xd1\x87 \xf0\x9f\x98\x80'", "b'****'"),
        (r"'s\xe9cret \u043a\u043b", "'****"),
    ] {
        assert_eq!(redactor.redact(text), shown.replace("****", &fingerprint(secret)));
    }
}

#[test]
fn a_secret_that_is_cut_off_is_found_at_the_edge() {
    let redactor = Redactor::new(["hunter2-secret", "abababababc"]).unwrap();
    let shown = fingerprint("hunter2-secret");
    assert_eq!(redactor.redact("the key hunter2-"), format!("the key {shown}"));
    assert_eq!(redactor.redact("2-secret it was"), format!("{shown} it was"));
    assert_eq!(redactor.redact("hunter2"), "hunter2", "too little of it");
    assert_eq!(redactor.redact(""), "");
    assert_eq!(redactor.redact("hunter2- it was"), "hunter2- it was", "not at the edge");
    let shown = fingerprint("abababababc");
    assert_eq!(redactor.redact("abab abababab"), format!("abab {shown}"));
    assert_eq!(redactor.redact("xxababababab"), format!("xx{shown}"));
    let redactor = Redactor::new(["abababcdefg"]).unwrap();
    let shown = fingerprint("abababcdefg");
    let (before, start) = ("the key ab", "abababcde");
    assert_eq!(redactor.redact(&format!("{before}{start}")), format!("{before}{shown}"));
}

#[test]
fn a_secret_that_is_cut_off_is_found_in_every_spelling() {
    let secret = "pässwörd/12 of \"mine\"";
    let redactor = Redactor::new([secret]).unwrap();
    let shown = fingerprint(secret);
    let base64 = |skipped: &str| {
        let text = general_purpose::STANDARD.encode(skipped.to_owned() + secret);
        let core = (skipped.len() * 8).div_ceil(6)..(skipped.len() + secret.len()) * 8 / 6;
        text.get(core).unwrap().to_owned()
    };
    let json = serde_json::to_string(secret).unwrap();
    let spellings = [
        base64(""),
        base64("u"),
        base64("us"),
        "p%C3%A4ssw%C3%B6rd%2F12%20of%20%22mine%22".to_owned(),
        json.get(1..json.len() - 1).unwrap().to_owned(),
        r#"p\u00e4ssw\u00f6rd/12 of "mine""#.to_owned(),
        r#"p\u00e4ssw\u00f6rd/12 of \"mine\""#.to_owned(),
    ];
    for spelling in spellings {
        assert_eq!(redactor.redact(&format!("got {spelling}.")), format!("got {shown}."));
        for missing in 1..=spelling.len() - 8 {
            if let Some(start) = spelling.get(..spelling.len() - missing) {
                assert_eq!(redactor.redact(&format!("got {start}")), format!("got {shown}"));
            }
            if let Some(end) = spelling.get(missing..) {
                let redacted = redactor.redact(&format!("{end} it was")).into_owned();
                assert_eq!(redacted, format!("{shown} it was"), "{end}");
            }
        }
        let little = spelling.get(..7).unwrap_or("1234567");
        assert_eq!(redactor.redact(&format!("got {little}")), format!("got {little}"));
    }
}

#[test]
fn secrets_that_overlap_are_one_stretch_however_often_they_match() {
    let nested = (6..70).map(|length| "a".repeat(length));
    let redactor = Redactor::new(nested).unwrap();
    let text = "a".repeat(1000);
    let mut spans = Vec::new();
    redactor.known(text.as_bytes(), &mut spans);
    assert!(spans.len() <= 3, "{}, with one for each edge", spans.len());
    assert_eq!(redactor.redact(&text), fingerprint(&text));
    assert_eq!(redactor.redact(&format!("({})", "a".repeat(69))), {
        format!("({})", fingerprint(&"a".repeat(69)))
    });
}

proptest! {
    #[test]
    fn matches_are_added_up_as_stretches_are_merged(
        secrets in prop::collection::vec("[ab]{6,9}", 1..16), text in "[ab]{0,40}",
    ) {
        let redactor = Redactor::new(&secrets).unwrap();
        // Nothing is broken off at the edges.
        let text = format!("({text})");
        let mut all = Vec::new();
        for secret in &secrets {
            let shown_as = Some(Arc::from(fingerprint(secret)));
            for start in (0..text.len()).filter(|at| text.get(*at..).unwrap().starts_with(secret)) {
                all.push(Span { start, end: start + secret.len(), shown_as: shown_as.clone() });
            }
        }
        let mut found = Vec::new();
        redactor.known(text.as_bytes(), &mut found);
        prop_assert_eq!(found, merge(&text, all));
    }
}

#[test]
fn a_secret_that_is_cut_off_in_an_escape_is_found() {
    let secret = "pässwörd/12 ключ";
    let redactor = Redactor::new([secret]).unwrap();
    // Spelled as no other test: some of it is escaped, and some of it that could be is not.
    for text in [
        "p%C3%A4ssw\u{f6}rd/12%20ключ",
        r"p\u00e4sswörd\/12 ключ",
        r"pässw\U000000f6rd\x2f12 ключ",
        "p%25C3%25A4ssw%25C3%25B6rd/12%2520ключ",
    ] {
        for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
            let redacted = redactor.redact(text.get(..end).unwrap()).into_owned();
            assert!(!redacted.contains("ssw") || !redacted.contains("rd"), "{redacted}");
        }
    }
    for kept in ["pässwö%20", r"pässwö\u", r"pässwö\u00", r"pässwö\u00g", "pässwö%g", "pässwö%"]
    {
        let shown = fingerprint(secret);
        let hidden = [r"pässwö\u", r"pässwö\u00", "pässwö%"].contains(&kept);
        assert_eq!(redactor.redact(kept), if hidden { &shown } else { kept });
    }
}

#[test]
fn of_secrets_that_are_cut_off_together_the_longest_is_hidden() {
    for secrets in [["abcdefghij-one", "cdefghij-two"], ["cdefghij-two", "abcdefghij-one"]] {
        let redactor = Redactor::new(secrets).unwrap();
        assert_eq!(redactor.redact("<abcdefghij"), format!("<{}", fingerprint("abcdefghij-one")));
    }
    for secrets in [["one-abcdefghij", "two-abcdefgh"], ["two-abcdefgh", "one-abcdefghij"]] {
        let redactor = Redactor::new(secrets).unwrap();
        assert_eq!(redactor.redact("abcdefghij>"), format!("{}>", fingerprint("one-abcdefghij")));
    }
}

#[test]
fn a_registered_secret_keeps_its_name_wherever_it_is_found() {
    let redactor = Redactor::new(["hunter2 secret"]).unwrap();
    let shown = fingerprint("hunter2 secret");
    for (text, expected) in [
        ("api_key: hunter2 secret, b", "api_key: ****, b"),
        ("Authorization: Bearer hunter2 secret", "Authorization: Bearer ****"),
        ("http://u:hunter2%20secret@h/?token=hunter2%20secret", "http://u:****@h/?token=****"),
    ] {
        assert_eq!(redactor.redact(text), expected.replace("****", &shown));
    }
}

#[test]
fn unregistered_secrets_are_found_beside_what_is_none() {
    let redactor = Redactor::default();
    let shown = fingerprint("S3cret");
    for text in [
        "GET http://u:S3cret@h/ 403",
        "GET http://h/?x=1&token=S3cret&y=2 403",
        "POST https://h/login?next=https%3A%2F%2Fi%2F%3Ftoken%3DS3cret",
        r#"{"url":"https:\/\/u:S3cret@h\/"}"#,
        "api_key='S3cret', é",
    ] {
        assert_eq!(redactor.redact(text), text.replace("S3cret", &shown));
    }
    let both = redactor.redact("password=é****0a1b2c");
    assert_eq!(both, format!("password={}", fingerprint("é****0a1b2c")));
}

#[test]
fn stretches_that_overlap_become_one() {
    let span = |start, end, shown_as: Option<&str>| Span {
        start,
        end,
        shown_as: shown_as.map(Into::into),
    };
    let text = "0123456789é";
    let merged = |spans: &[Span]| merge(text, spans.to_vec());
    assert_eq!(
        merged(&[span(4, 6, Some("b")), span(0, 3, None), span(2, 4, Some("a"))]),
        [span(0, 4, None), span(4, 6, Some("b"))]
    );
    assert_eq!(merged(&[span(1, 5, None), span(1, 5, Some("a"))]), [span(1, 5, Some("a"))]);
    assert_eq!(merged(&[span(2, 3, None), span(1, 5, Some("a"))]), [span(1, 5, Some("a"))]);
    assert_eq!(merged(&[span(3, 3, None), span(9, 11, None)]), [span(9, 12, None)]);
    assert_eq!(merged(&[span(11, 12, None)]), [span(10, 12, None)], "characters are whole");
}

#[test]
fn a_text_that_does_not_settle_is_replaced_as_a_whole() {
    let never = |text: &str| vec![Span { start: text.len() - 1, end: text.len(), shown_as: None }];
    assert_eq!(settle("restless", never), fingerprint("restless"));
}

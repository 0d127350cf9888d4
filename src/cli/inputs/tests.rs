//! Every source of inputs, valid and invalid.
use super::*;
use proptest::prelude::*;

fn found(args: InputArgs, text: &[u8], shape: Shape) -> Result<Vec<String>, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_str().unwrap();
    let plain = |e: CommandError| {
        assert_eq!(e.kind.code(), 2);
        e.render(false).replace(path, "FILE")
    };
    let inputs = Inputs::find(&args, Some(path), shape).map_err(plain)?;
    let texts: Vec<String> = inputs.texts().unwrap().map(|t| t.unwrap()).collect();
    assert_eq!(inputs.count, Some(texts.len() as u64));
    Ok(texts)
}

fn jsonl() -> InputArgs {
    InputArgs {
        jsonl: true,
        ..InputArgs::default()
    }
}

fn csv(header: bool) -> InputArgs {
    InputArgs {
        csv: true,
        header,
        ..InputArgs::default()
    }
}

#[test]
fn plain_lines_are_one_string_each() {
    let text = b"\xef\xbb\xbfa.txt\r\n\n b \"c\"\n\xc3\xa9";
    assert_eq!(
        found(InputArgs::default(), text, Shape::Call).unwrap(),
        [r#"["a.txt"]"#, r#"[" b \"c\""]"#, r#"["é"]"#]
    );
    assert_eq!(
        found(InputArgs::default(), text, Shape::Command).unwrap(),
        [r#"["a.txt"]"#, r#"[" b \"c\""]"#, r#"["é"]"#]
    );
}

#[test]
fn json_lines_are_arguments() {
    let text = b"[1, 2]\n{\"a\": 1.0}\n\"x\"\n  \n12345678901234567890123\nnull\n";
    assert_eq!(
        found(jsonl(), text, Shape::Call).unwrap(),
        ["[1, 2]", "{\"a\": 1.0}", "[\"x\"]", "[12345678901234567890123]", "[null]"]
    );
    assert_eq!(
        found(jsonl(), text, Shape::Command).unwrap(),
        [
            r#"["1","2"]"#,
            r#"["{\"a\": 1.0}"]"#,
            r#"["x"]"#,
            r#"["12345678901234567890123"]"#,
            r#"["null"]"#
        ]
    );
}

#[test]
fn csv_columns_are_arguments() {
    let text = b"a,b\n1,\"x,\n\"\"y\"\"\"\n";
    assert_eq!(
        found(csv(false), text, Shape::Call).unwrap(),
        [r#"["a","b"]"#, r#"["1","x,\n\"y\""]"#]
    );
    assert_eq!(found(csv(true), text, Shape::Call).unwrap(), [r#"{"a":"1","b":"x,\n\"y\""}"#]);
    assert_eq!(found(csv(true), text, Shape::Command).unwrap(), [r#"["1","x,\n\"y\""]"#]);
    assert_eq!(found(csv(false), b"a\nb,c\n", Shape::Call).unwrap().len(), 2);
}

#[test]
fn ranges_and_globs() {
    let range = InputArgs {
        range: Some("2..4".parse().unwrap()),
        ..InputArgs::default()
    };
    let inputs = Inputs::find(&range, None, Shape::Command).unwrap();
    assert_eq!(
        inputs.texts().unwrap().map(|t| t.unwrap()).collect::<Vec<_>>(),
        [r#"["2"]"#, r#"["3"]"#]
    );
    let dir = tempfile::tempdir().unwrap();
    for name in ["b.txt", "a.txt", "c.csv"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let pattern = format!("{}/*.txt", dir.path().display());
    let glob = InputArgs {
        glob: Some(pattern),
        ..InputArgs::default()
    };
    let inputs = Inputs::find(&glob, None, Shape::Call).unwrap();
    let texts: Vec<String> = inputs.texts().unwrap().map(|t| t.unwrap()).collect();
    assert!(texts[0].ends_with("a.txt\"]") && texts[1].ends_with("b.txt\"]") && texts.len() == 2);
}

#[test]
fn invalid_input_is_reported_before_anything_is_sent() {
    insta::assert_snapshot!(found(jsonl(), b"[1]\n[2,\n", Shape::Call).unwrap_err(), @r"
    error: FILE, line 2, column 3: not JSON: incomplete JSON value
    hint: nothing was submitted
    ");
    insta::assert_snapshot!(found(jsonl(), "\n[\"é\" 2]\n".as_bytes(), Shape::Call).unwrap_err(), @r"
    error: FILE, line 2, column 6: not JSON: expected `,` or `]`
    hint: nothing was submitted
    ");
    insta::assert_snapshot!(found(InputArgs::default(), b"a\nb\xffc\n", Shape::Call).unwrap_err(), @r"
    error: FILE, line 2, column 2: not UTF-8 text
    hint: nothing was submitted
    ");
    insta::assert_snapshot!(found(InputArgs::default(), b"\n\n", Shape::Call).unwrap_err(), @r"
    error: FILE has no inputs: it is empty or has only empty lines
    hint: nothing was submitted
    ");
    insta::assert_snapshot!(found(csv(true), b"a,b\n1\n", Shape::Call).unwrap_err(), @r"
    error: FILE, line 2: 1 columns, but the header has 2
    hint: nothing was submitted
    ");
    insta::assert_snapshot!(found(csv(true), b"a,a\n1,2\n", Shape::Call).unwrap_err(), @r#"
    error: FILE, line 1: the header names the column "a" twice
    hint: nothing was submitted
    "#);
}

#[test]
fn missing_inputs_are_reported() {
    let fails = |args: InputArgs, file: Option<&str>| Inputs::find(&args, file, Shape::Call).unwrap_err().render(false);
    let error = fails(InputArgs::default(), Some("no/such/file.txt"));
    assert!(error.starts_with("error: no inputs file no/such/file.txt (in /"), "{error}");
    insta::assert_snapshot!(fails(InputArgs::default(), None), @r"
    error: no inputs given
    hint: pass a file with one input per line or `-` for stdin, or use --range 0..100 or --glob 'data/*.csv'
    ");
    insta::assert_snapshot!(fails(InputArgs { glob: Some("/no/such/*".into()), ..InputArgs::default() }, None), @r"
    error: --glob /no/such/* matches nothing
    hint: quote the pattern, so that the shell does not expand it
    ");
    insta::assert_snapshot!(fails(InputArgs { range: Some("4..4".parse().unwrap()), ..InputArgs::default() }, None), @"error: --range 4..4 is empty");
    insta::assert_snapshot!(fails(InputArgs { range: Some("0..4".parse().unwrap()), ..InputArgs::default() }, Some("x")), @r"
    error: inputs given twice: as the file x and with --range or --glob
    hint: remove one of them
    ");
    assert!(fails(InputArgs::default(), Some("/")).contains("is a directory"));
}

proptest! {
    #[test]
    fn every_line_is_sent_unchanged(lines in proptest::collection::vec("[^\0\r\n]+", 1..20)) {
        prop_assume!(!lines[0].starts_with('\u{feff}'));
        let texts = found(InputArgs::default(), lines.join("\n").as_bytes(), Shape::Call).unwrap();
        let back: Vec<Vec<String>> = texts.iter().map(|t| serde_json::from_str(t).unwrap()).collect();
        prop_assert_eq!(back.concat(), lines);
        prop_assert!(texts.iter().all(|t| !t.contains('\n')));
    }
    #[test]
    fn reading_never_panics(bytes: Vec<u8>) {
        for args in [InputArgs::default(), jsonl(), csv(false), csv(true)] {
            let _ = found(args, &bytes, Shape::Command);
        }
    }
}

#[test]
fn ambiguous_input_is_an_error_with_its_position() {
    let refused = |args: InputArgs, text: &[u8], shape: Shape| found(args, text, shape).unwrap_err();
    // An unclosed quote would turn the rest into one record.
    let error = refused(csv(false), b"a,1\n\"b,2\nc,3\nd,4\ne,5\n", Shape::Call);
    assert!(error.contains("FILE, line 2: unclosed quote"), "{error}");
    let error = refused(csv(true), b"\xef\xbb\xbfx,y\r\n1,\"a\r\nb\"\r\n3,\"c\r\n", Shape::Call);
    assert!(error.contains("FILE, line 4: unclosed quote"), "{error}");
    let quoted = b"\"a\nb\",\"say \"\"hi\"\"\",in\"side\n\"\",\"x\"\n";
    let expected = [r#"["a\nb","say \"hi\"","in\"side"]"#, r#"["","x"]"#];
    assert_eq!(found(csv(false), quoted, Shape::Call).unwrap(), expected);
    // NULs are not valid in text or in arguments.
    let error = refused(InputArgs::default(), b"ab\nc\0d\n", Shape::Call);
    assert!(error.contains("FILE, line 2, column 2: contains a NUL"), "{error}");
    let error = refused(csv(false), b"a,b\nc\0,d\n", Shape::Call);
    assert!(error.contains("FILE, line 2: contains a NUL"), "{error}");
    let error = refused(jsonl(), b"[\"a\"]\n[\"x\\u0000y\"]\n", Shape::Command);
    assert!(error.contains("FILE, line 2: an argument of a command cannot"), "{error}");
    assert_eq!(found(jsonl(), b"\"x\\u0000y\"\n", Shape::Call).unwrap(), ["[\"x\\u0000y\"]"]);
    assert_eq!(found(jsonl(), b"\"\\\\u0000\"\n", Shape::Command).unwrap(), ["[\"\\\\u0000\"]"]);
    // Line ends of an old Mac would turn everything into one input.
    let error = refused(InputArgs::default(), b"a\rb\rc\r", Shape::Call);
    assert!(error.contains("carriage returns only"), "{error}");
    assert_eq!(
        found(csv(false), b"a,1\rb,2\r", Shape::Call).unwrap(),
        [r#"["a","1"]"#, r#"["b","2"]"#]
    );
    assert_eq!(
        found(InputArgs::default(), b"10%\r20%\nx\n", Shape::Call).unwrap(),
        [r#"["10%\r20%"]"#, r#"["x"]"#]
    );
}

#[test]
fn a_file_that_changes_between_counting_and_sending_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    for (later, why) in [
        ("1\n2\n", "counted 3 inputs, now it has 2"),
        ("1\n2\n3\n4\n", "counted 3 inputs, now it has 4"),
        ("", "counted 3 inputs, now it has 0"),
        ("1\n2\n4\n", "still 3 inputs, but different ones"),
        ("1\n2\n\u{ff}\n", "not UTF-8"),
    ] {
        std::fs::write(path, "1\n2\n3\n").unwrap();
        let inputs = Inputs::find(&InputArgs::default(), Some(path), Shape::Call).unwrap();
        let later: Vec<u8> = later.chars().map(|c| c as u8).collect();
        std::fs::write(path, later).unwrap();
        let last = inputs.texts().unwrap().last().unwrap().unwrap_err();
        assert!(last.why.contains(why) && last.why.contains("changed while being read"), "{last}");
    }
}

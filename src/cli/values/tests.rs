//! Each format for values, for what JSON cannot hold, for commands, for failures.
use super::*;
use crate::model::task::TaskState;
use proptest::prelude::*;

pub(crate) fn row(index: u32, value: Option<&str>) -> TaskRow {
    let value = value.map(|v| format!("\"value\": {v},")).unwrap_or_default();
    let row =
        format!(r#"{{"task": "1.{index}", "state": "ok", "input": ["in,{index}"], {value} "attempts": 1, "run": 1, "submitted": 0}}"#);
    serde_json::from_str(&row).unwrap()
}

fn failed(index: u32) -> TaskRow {
    let error = TaskError {
        ename: "ValueError".into(),
        evalue: "no\n  digits".into(),
        traceback: String::new(),
    };
    TaskRow {
        state: TaskState::Error,
        error: Some(error),
        ..row(index, None)
    }
}

fn command(index: u32, stdout: &str, stderr: &str, exit_code: Option<i32>) -> TaskRow {
    TaskRow {
        stdout: stdout.into(),
        stderr: stderr.into(),
        exit_code,
        ..row(index, None)
    }
}

fn written(style: Style, rows: &[TaskRow]) -> (Vec<u8>, String) {
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    style.begin(&mut out).unwrap();
    for row in rows {
        style.write(row, &mut out, &mut errors).unwrap();
    }
    style.end(&mut out).unwrap();
    (out, String::from_utf8(errors).unwrap())
}

fn text(style: Style, rows: &[TaskRow]) -> String {
    String::from_utf8(written(style, rows).0).unwrap()
}

/// `{1, 2}`.
pub(crate) fn a_set(index: u32) -> TaskRow {
    let pickled = Pickled {
        python_type: "set".into(),
        bytes: STANDARD.decode("gAOPKEsBSwKQLg==").unwrap().into(),
    };
    TaskRow {
        pickled: Some(pickled),
        ..row(index, Some("[1,2]"))
    }
}

fn one_of_each() -> Vec<TaskRow> {
    let pickled = a_set(3);
    vec![
        row(0, Some("{\"a\":\n[1,2]}")),
        row(1, Some("\"x\\ny\"")),
        row(2, None),
        pickled,
        failed(4),
    ]
}

#[test]
fn values_are_json_lines() {
    insta::assert_snapshot!(text(Style::of(None, false, false), &one_of_each()), @r#"
    {"a": [1,2]}
    "x\ny"
    null
    [1,2]
    {"__error__":{"task":"1.4","state":"error","ename":"ValueError","evalue":"no\n  digits"}}
    "#);
}

#[test]
fn values_are_csv() {
    insta::assert_snapshot!(text(Style::of(Some(Format::Csv), false, false), &one_of_each()), @r#"
    task,state,input,value,error
    1.0,ok,"in,0","{""a"": [1,2]}",
    1.1,ok,"in,1","x
    y",
    1.2,ok,"in,2",,
    1.3,ok,"in,3","[1,2]",
    1.4,error,"in,4",,ValueError: no digits
    "#);
}

#[test]
fn the_output_of_a_command_is_unchanged() {
    let rows = [
        command(0, "a\n", "", Some(0)),
        command(1, "b", "oh\n", Some(1)),
        TaskRow {
            stdout: "c".into(),
            ..failed(2)
        },
    ];
    assert_eq!(written(Style::of(None, true, false), &rows), (b"a\nbc".to_vec(), "oh\n".into()));
    insta::assert_snapshot!(text(Style::of(Some(Format::Jsonl), true, false), &rows), @r#"
    {"stdout":"a\n","stderr":"","exit_code":0}
    {"stdout":"b","stderr":"oh\n","exit_code":1}
    {"stdout":"c","stderr":"","exit_code":null,"error":"ValueError: no digits"}
    "#);
    insta::assert_snapshot!(text(Style::of(Some(Format::Csv), true, false), &rows[1..2]), @r#"
    task,state,input,exit_code,stdout,stderr
    1.1,ok,"in,1",1,b,"oh
    "
    "#);
}

#[test]
fn rows_are_full_records() {
    let line = text(Style::of(None, false, true), &[failed(4)]);
    let row: TaskRow = serde_json::from_str(&line).unwrap();
    assert_eq!((row.task.index, row.state), (4, TaskState::Error));
    // Beside a rendering stands what it is, and the exact value.
    let line: serde_json::Value = serde_json::from_str(&text(Style::of(None, false, true), &[a_set(0)])).unwrap();
    let keys = ["value", "exact", "type", "pickled"].map(|key| &line[key]);
    assert_eq!(serde_json::json!(keys), json!([[1, 2], false, "set", "gAOPKEsBSwKQLg=="]));
}

/// Python is what reads it in the end: any will do.
#[test]
fn python_reads_the_pickle() {
    let (bytes, _) = written(Style::of(Some(Format::Pickle), false, false), &one_of_each());
    let (commands, _) = written(Style::of(Some(Format::Pickle), true, false), &[command(0, "a", "", Some(3))]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("values"), bytes).unwrap();
    std::fs::write(dir.path().join("commands"), commands).unwrap();
    let python = std::env::var("PCLUSTER_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let output = std::process::Command::new(python)
        .current_dir(dir.path())
        .args([
            "-c",
            "import pickle; print(pickle.load(open('values', 'rb'))); print(pickle.load(open('commands', 'rb')))",
        ])
        .output()
        .unwrap();
    insta::assert_snapshot!(String::from_utf8_lossy(&output.stdout), @r"
    [{'a': [1, 2]}, 'x\ny', None, {1, 2}, RuntimeError('task 1.4 error: ValueError: no digits')]
    [{'stdout': 'a', 'stderr': '', 'exit_code': 3}]
    ");
}

#[test]
fn inputs_are_displayed_as_written() {
    for (json, text) in [
        ("[\"a b\"]", "a b"),
        ("[5]", "5"),
        ("[1,2]", "[1,2]"),
        ("{\"a\": 1}", "{\"a\": 1}"),
        ("[]", "[]"),
    ] {
        assert_eq!(input_text(&RawValue::from_string(json.into()).unwrap()), text);
    }
}

proptest! {
    #[test]
    fn each_value_is_one_line_and_parses_back(value: Vec<(String, Option<i64>)>) {
        let value = serde_json::to_value(value).unwrap();
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        let line = text(Style::Values, &[row(0, Some(&pretty))]);
        prop_assert_eq!(line.matches('\n').count(), 1);
        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), value);
    }
}

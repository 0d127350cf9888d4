//! `pcluster results` on the database file of a stopped cluster: tables, JSON, CSV, single tasks, and errors.
use super::*;
use crate::cli::args;
use crate::cli::commands::Command;
use crate::cli::context::Terminal;
use crate::db::{Durability, Writer};
use crate::model::change::{Attempt, Change};
use crate::model::definition::{CallSource, MapDefinition, MapOptions, Work};
use crate::model::engine::EngineFacts;
use crate::model::pickled::Pickled;
use crate::model::task::{Outcome, TaskError};
use crate::model::{EngineId, MapId, UnixTime};
use bytes::Bytes;
use serde_json::value::RawValue;

/// 2026-11-20 20:00:00 UTC.
const START: f64 = 1_795_204_800.0;

struct TestCluster {
    dir: tempfile::TempDir,
    context: Context,
}

fn at(seconds: f64) -> UnixTime {
    UnixTime(START + seconds)
}

fn outcome(status: TaskState, value: Option<&str>, error: Option<(&str, &str)>, started: f64, ended: f64) -> Box<Outcome> {
    let mut outcome = Outcome::failure(status, "", "", at(started), at(ended));
    outcome.value = value.map(|v| RawValue::from_string(v.into()).unwrap());
    outcome.error = error.map(|(ename, evalue)| TaskError {
        ename: ename.into(),
        evalue: evalue.into(),
        traceback: format!("Traceback (most recent call last):\n  File \"sums.py\", line 3, in total\n{ename}: {evalue}\n"),
    });
    Box::new(outcome)
}

impl TestCluster {
    /// Map 1: four calls, of which 1.1 failed and 1.2 was repeated; map 2: two commands, of which one is not begun.
    fn new() -> TestCluster {
        let dir = tempfile::tempdir().unwrap();
        let context = Context::for_tests(dir.path());
        let profile = context.profile_dir().unwrap();
        profile.create().unwrap();
        let mut writer = Writer::open(&profile.database_file(""), Durability::Normal).unwrap();
        writer.apply(&changes()).unwrap();
        writer.close().unwrap();
        TestCluster { dir, context }
    }

    /// Runs `pcluster results …`; returns its output.
    fn try_results(&self, line: &str) -> Result<String, CommandError> {
        let file = self.dir.path().join("out");
        let words = ["pcluster", "results", "--output"].map(Into::into).into_iter();
        let words = words
            .chain([file.clone().into_os_string()])
            .chain(line.split_whitespace().map(Into::into));
        let cli = args::parse(words)
            .map_err(|e| CommandError::usage(e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ")))?;
        let Command::Results(args) = cli.command else { panic!("{line}") };
        let mut context = Context::for_tests(self.dir.path());
        context.quiet = true;
        context.json = cli.global.json;
        assert_eq!(run(args, &context)?, Exit::Fine);
        Ok(std::fs::read_to_string(file).unwrap())
    }

    fn results(&self, line: &str) -> String {
        self.try_results(line).unwrap_or_else(|e| panic!("{line}: {}", e.render(false)))
    }

    fn ids(&self, line: &str) -> String {
        let text = self.results(&format!("{line} --jsonl"));
        let ids = text.lines().map(|l| {
            serde_json::from_str::<serde_json::Value>(l).unwrap()["task"]
                .as_str()
                .unwrap()
                .to_string()
        });
        ids.collect::<Vec<_>>().join(" ")
    }

    fn refused(&self, line: &str) -> String {
        let error = self.try_results(line).unwrap_err();
        format!("{}\n{}", error.kind.code(), error.render(false)).replace(&self.dir.path().display().to_string(), "DIR")
    }
}

fn changes() -> Vec<Change> {
    let added = |map, work, label: Option<&str>, submitted| Change::MapAdded {
        map: MapId(map),
        definition: Box::new(MapDefinition {
            work,
            options: MapOptions {
                label: label.map(Into::into),
                ..MapOptions::default()
            },
        }),
        client: "c".into(),
        submitted: at(submitted),
    };
    let tasks = |map, inputs: &[&str], submitted| Change::TasksAdded {
        map: MapId(map),
        first: 0,
        inputs: inputs.iter().map(|i| i.to_string().into()).collect(),
        state: TaskState::Ready,
        submitted: at(submitted),
    };
    let finished = |map, index, run, engine, outcome| Change::TaskFinished {
        task: TaskId::new(MapId(map), index),
        run,
        engine: Some(EngineId(engine)),
        outcome,
    };
    let call = Work::Call {
        from: CallSource::File {
            name: "sums.py".into(),
            text: "def total(path): ...".into(),
        },
        function: "total".into(),
    };
    let command = Work::Command {
        argv: vec!["wc".into(), "-l".into(), "{}".into()],
    };
    let facts: EngineFacts = serde_json::from_value(serde_json::json!({"uuid": "e0", "host": "node1"})).unwrap();
    let mut wrote = outcome(TaskState::Ok, Some("{\"sum\": 3}"), None, 2.0, 3.5);
    wrote.stdout = "reading a.txt\n".into();
    let mut odd = outcome(TaskState::Ok, Some("\"<Sum 7>\""), None, 3.0, 3.004);
    odd.pickled = Some(Pickled {
        python_type: "sums.Sum".into(),
        bytes: Bytes::from_static(b"\x80\x04\x95\x07"),
    });
    let mut ran = outcome(TaskState::Ok, Some("null"), None, 4000.0, 7700.0);
    ran.exit_code = Some(0);
    ran.stdout = "17 a.txt\n".into();
    vec![
        Change::EngineRegistered {
            id: EngineId(0),
            facts: Box::new(facts),
            at: at(0.0),
        },
        added(1, call, Some("sums"), 1.0),
        tasks(
            1,
            &[
                "[\"a.txt\"]",
                "[\"b.txt\"]",
                "[\"a/long/path/to/some/file/that/does/not/fit/on/a/line.txt\"]",
                "[\"d.txt\"]",
            ],
            1.5,
        ),
        Change::MapClosed { map: MapId(1), total: 4 },
        finished(1, 0, 1, 0, wrote),
        finished(
            1,
            1,
            1,
            0,
            outcome(
                TaskState::Error,
                None,
                Some(("ValueError", "b.txt has a word in line 3\nand no number")),
                3.0,
                3.25,
            ),
        ),
        Change::TasksAssigned {
            map: MapId(1),
            first: 2,
            count: 1,
            run: 1,
            engine: EngineId(0),
        },
        Change::TaskReturned {
            task: TaskId::new(MapId(1), 2),
            run: 2,
            attempt: Some(Attempt {
                engine: EngineId(0),
                outcome: outcome(TaskState::Error, None, Some(("OSError", "no such file yet")), 2.0, 2.5),
            }),
        },
        finished(1, 2, 2, 0, outcome(TaskState::Ok, Some("4"), None, 5.0, 5.25)),
        finished(1, 3, 1, 0, odd),
        Change::MapCompleted {
            map: MapId(1),
            at: Some(at(5.25)),
        },
        added(2, command, None, 3600.0),
        tasks(2, &["[\"a.txt\"]", "[\"b.txt\"]"], 3600.0),
        Change::MapClosed { map: MapId(2), total: 2 },
        finished(2, 0, 1, 0, ran),
    ]
}

#[test]
fn maps_are_listed() {
    let fixture = TestCluster::new();
    insta::assert_snapshot!(fixture.results("--label sums"), @r"
    MAP  STATE   DONE  FAILED  RUNNING  SUBMITTED                    TIME   NAME           LABEL
      1  failed   4/4       1        0  2026-11-20T20:00:01.000000Z  4.2 s  sums.py:total  sums
    ");
    insta::assert_snapshot!(fixture.results("--json"), @r#"
    {"version":1,"maps":[
    {"map":1,"kind":"call","name":"sums.py:total","label":"sums","state":"failed","submitted":"2026-11-20T20:00:01.000000Z","completed":"2026-11-20T20:00:05.250000Z","duration":4.25,"tasks":4,"done":4,"ok":3,"failed":1,"pending":0,"running":0,"assigned":0,"error":1,"aborted":0,"timeout":0,"lost":0},
    {"map":2,"kind":"command","name":"wc -l {}","label":null,"state":"queued","submitted":"2026-11-20T21:00:00.000000Z","completed":null,"duration":null,"tasks":2,"done":1,"ok":1,"failed":0,"pending":1,"running":0,"assigned":0,"error":0,"aborted":0,"timeout":0,"lost":0}
    ]}
    "#);
    insta::assert_snapshot!(fixture.results("--csv"), @r"
    map,kind,name,label,state,tasks,ok,failed,pending,submitted,completed,duration
    1,call,sums.py:total,sums,failed,4,3,1,0,2026-11-20T20:00:01.000000Z,2026-11-20T20:00:05.250000Z,4.25
    2,command,wc -l {},,queued,2,1,0,1,2026-11-20T21:00:00.000000Z,,
    ");
}

#[test]
fn tasks_of_a_map_are_listed() {
    let fixture = TestCluster::new();
    insta::assert_snapshot!(fixture.results("1"), @r#"
    TASK  STATE  ENGINE  ATTEMPTS  TIME    COMPLETED                    INPUT                                                         ERROR
    1.0   ok          0         1  1.5 s   2026-11-20T20:00:03.500000Z  ["a.txt"]                                                     -
    1.1   error       0         1  250 ms  2026-11-20T20:00:03.250000Z  ["b.txt"]                                                     ValueError: b.txt has a word in line 3\nand no number
    1.2   ok          0         2  250 ms  2026-11-20T20:00:05.250000Z  ["a/long/path/to/some/file/that/does/not/fit/on/a/line.txt"]  -
    1.3   ok          0         1  4.0 ms  2026-11-20T20:00:03.004000Z  ["d.txt"]                                                     -
    "#);
    insta::assert_snapshot!(fixture.results("2 --json"), @r#"
    {"version":1,"tasks":[
    {"task":"2.0","map":2,"index":0,"state":"ok","input":["a.txt"],"value":null,"stdout":"17 a.txt\n","stderr":"","exit_code":0,"error":null,"engine":0,"host":"node1","attempts":1,"run":1,"submitted":"2026-11-20T21:00:00.000000Z","started":"2026-11-20T21:06:40.000000Z","completed":"2026-11-20T22:08:20.000000Z","duration":3700.0,"label":null,"peak_memory":null,"cause":null},
    {"task":"2.1","map":2,"index":1,"state":"ready","input":["b.txt"],"value":null,"stdout":"","stderr":"","exit_code":null,"error":null,"engine":null,"host":null,"attempts":0,"run":0,"submitted":"2026-11-20T21:00:00.000000Z","started":null,"completed":null,"duration":null,"label":null,"peak_memory":null,"cause":null}
    ]}
    "#);
    insta::assert_snapshot!(fixture.results("1.1 2.0 --csv"), @r#"
    task,map,index,state,input,value,repr,stdout,stderr,exit_code,error,engine,host,attempts,submitted,started,completed,duration,label,peak_memory,cause
    1.1,1,1,error,"[""b.txt""]",,,,,,"ValueError: b.txt has a word in line 3
    and no number",0,node1,1,2026-11-20T20:00:01.500000Z,2026-11-20T20:00:03.000000Z,2026-11-20T20:00:03.250000Z,0.25,sums,,error
    2.0,2,0,ok,"[""a.txt""]",null,,"17 a.txt
    ",,0,,0,node1,1,2026-11-20T21:00:00.000000Z,2026-11-20T21:06:40.000000Z,2026-11-20T22:08:20.000000Z,3700,,,
    "#);
}

#[test]
fn tables_on_a_terminal_of_80_columns() {
    let fixture = TestCluster::new();
    let records = Records::open(&fixture.context).unwrap();
    let terminal = Terminal {
        stdout: true,
        ..Terminal::NONE
    };
    insta::assert_snapshot!(tables::maps(&records.maps(&MapQuery::default()).unwrap(), at(8000.0), &terminal), @r"
    MAP  STATE   DONE  FAILED  RUNNING  SUBMITTED  TIME        NAME           LABEL
      1  failed   4/4       1        0  2 h ago    4.2 s       sums.py:total  sums
      2  queued   1/2       0        0  1 h ago    1 h 13 min  wc -l {}       -
    ");
    let (rows, _) = records.tasks(&TaskQuery::default()).unwrap();
    insta::assert_snapshot!(tables::tasks(&rows, false, at(8000.0), &terminal), @r#"
    TASK  STATE  ENGINE  ATTEMPTS  TIME       INPUT               ERROR
    1.0   ok          0         1  1.5 s      ["a.txt"]           -
    1.1   error       0         1  250 ms     ["b.txt"]           ValueError: b.txt…
    1.2   ok          0         2  250 ms     ["a/long/path/to/…  -
    1.3   ok          0         1  4.0 ms     ["d.txt"]           -
    2.0   ok          0         1  1 h 1 min  ["a.txt"]           -
    2.1   ready       -         0  -          ["b.txt"]           -
    "#);
    let narrow = Terminal { width: 60, ..terminal };
    let maps = tables::maps(&records.maps(&MapQuery::default()).unwrap(), at(8000.0), &narrow);
    assert!(
        maps.lines().all(|line| line.chars().count() <= 60) && maps.contains("sums.py:total"),
        "{maps}"
    );
    let colored = tables::tasks(&rows[..2], false, at(8000.0), &Terminal { color: true, ..terminal });
    assert!(
        colored.contains("\x1b[38;5;10mok") && colored.contains("\x1b[38;5;9merror"),
        "{colored:?}"
    );
}

#[test]
fn one_task_in_full() {
    let fixture = TestCluster::new();
    let records = Records::open(&fixture.context).unwrap();
    let full = |index| {
        let task = TaskId::new(MapId(1), index);
        let (rows, _) = records
            .tasks(&TaskQuery {
                tasks: vec![task],
                ..TaskQuery::default()
            })
            .unwrap();
        let text = tables::task(&rows[0], &records.details(task).unwrap(), at(8000.0));
        // Points in time are shown in the zone of the reader.
        text.lines()
            .filter(|l| !l.contains(" ago)"))
            .map(|l| format!("{l}\n"))
            .collect::<String>()
    };
    insta::assert_snapshot!(full(1), @r#"
    task 1.1: error
      work       call sums.py:total
      label      sums
      input      ["b.txt"]
      error      ValueError: b.txt has a word in line 3\nand no number
      engine     0 on node1
      attempts   1
      duration   250 ms
    traceback:
      Traceback (most recent call last):
        File "sums.py", line 3, in total
      ValueError: b.txt has a word in line 3
      and no number
    "#);
    insta::assert_snapshot!(full(2), @r#"
    task 1.2: ok
      work       call sums.py:total
      label      sums
      input      ["a/long/path/to/some/file/that/does/not/fit/on/a/line.txt"]
      engine     0 on node1
      attempts   2
      duration   250 ms
      value      4

    earlier attempt 1 on engine 0 on node1: error after 500 ms: OSError: no such file yet
    traceback:
      Traceback (most recent call last):
        File "sums.py", line 3, in total
      OSError: no such file yet
    "#);
    insta::assert_snapshot!(full(3), @r#"
    task 1.3: ok
      work       call sums.py:total
      label      sums
      input      ["d.txt"]
      engine     0 on node1
      attempts   1
      duration   4.0 ms
      value      "<Sum 7>"  (a rendering; the exact value of type sums.Sum is stored)
    "#);
    // In the order asked for, and both.
    let both = fixture.results("1.2 1.0");
    assert!(both.find("task 1.2: ok").unwrap() < both.find("task 1.0: ok").unwrap());
    assert!(both.contains("2026-11-2") && both.contains("reading a.txt"));
    let json: serde_json::Value = serde_json::from_str(&fixture.results("1.2 --json")).unwrap();
    assert_eq!(json["tasks"][0]["earlier"][0]["error"]["ename"], "OSError");
    assert_eq!(json["tasks"][0]["definition"]["work"]["function"], "total");
}

#[test]
fn filters_select_rows_and_sort_orders_them() {
    let fixture = TestCluster::new();
    for (line, ids) in [
        ("1", "1.0 1.1 1.2 1.3"),
        ("--failed", "1.1"),
        ("--pending", "2.1"),
        ("--running", ""),
        ("--state ok,error", "1.0 1.1 1.2 1.3 2.0"),
        ("1-2 --state ok", "1.0 1.2 1.3 2.0"),
        ("--where duration>=1s", "1.0 2.0"),
        ("--where duration<1h --where state=ok", "1.0 1.2 1.3"),
        ("--engine 0-3 --label sums", "1.0 1.1 1.2 1.3"),
        ("--engine 1", ""),
        ("--since 2026-11-20T20:30:00Z --state ok", "2.0"),
        ("1 --sort -duration --limit 2", "1.0 1.1"),
        ("1 --offset 3", "1.3"),
        ("1.0-1 2.1", "1.0 1.1 2.1"),
    ] {
        assert_eq!(fixture.ids(line), ids, "{line}");
    }
}

#[test]
fn pages_of_rows_add_up_to_all_rows() {
    let fixture = TestCluster::new();
    let path = fixture.context.profile_dir().unwrap().database_file("");
    let mut writer = Writer::open(&path, Durability::Normal).unwrap();
    let inputs = (0..2 * crate::cli::records::PORTION + 7).map(|i| format!("[{i}]").into()).collect();
    let more = Change::TasksAdded {
        map: MapId(2),
        first: 2,
        inputs,
        state: TaskState::Ready,
        submitted: at(1.0),
    };
    writer.apply(&[more]).unwrap();
    writer.close().unwrap();
    let text = fixture.results("2 --jsonl");
    let indices: Vec<u64> = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["index"].as_u64().unwrap())
        .collect();
    let all: Vec<u64> = (0..2 * crate::cli::records::PORTION + 9).collect();
    assert_eq!(indices, all);
    assert_eq!(fixture.ids("2 --sort -index --offset 10").split(' ').count(), all.len() - 10);
    // A table shows a part of it.
    assert_eq!(fixture.results("2").lines().count() as u64, 1 + TABLE_ROWS);
    assert_eq!(fixture.results("2 --limit 0").lines().count(), 1 + all.len());
}

#[test]
fn unanswerable_queries_report_the_reason() {
    let fixture = TestCluster::new();
    insta::assert_snapshot!(fixture.refused("3"), @r"
    3
    error: no map 3
    hint: list the maps: pcluster results
    ");
    insta::assert_snapshot!(fixture.refused("1.4"), @r"
    3
    error: no task 1.4
    hint: map 1 has the tasks 1.0 to 1.3
    ");
    insta::assert_snapshot!(fixture.refused("--where size>3"), @r#"
    2
    error: --where: unknown column "size" (columns: map index state engine host attempts exit_code duration submitted started completed input value error stdout stderr label peak_memory cause)
    "#);
    insta::assert_snapshot!(fixture.refused("--since tomorrow"), @r#"
    2
    error: --since: "tomorrow" is neither an age (90s, 10m, 2h, 3d) nor a date (2026-11-20, 2026-11-20T21:10)
    "#);
    insta::assert_snapshot!(fixture.refused("--json --csv"), @r"
    2
    error: --json cannot be combined with --jsonl or --csv
    hint: --json prints one document, --jsonl one object per line
    ");
    insta::assert_snapshot!(fixture.refused("1.x"), @r#"
    2
    error: invalid value '1.x' for '[IDS]...': "1.x" is neither a map (12) nor a task (12.3), nor a range of them (12-14, 12.3-9)
    "#);
    insta::assert_snapshot!(fixture.refused("1 1.2"), @r"
    2
    error: 1 is a map and 1.2 is a task: select either maps or tasks
    ");
    std::fs::remove_file(fixture.context.profile_dir().unwrap().database_file("")).unwrap();
    insta::assert_snapshot!(fixture.refused(""), @r"
    3
    error: no cluster is running in profile `default`: no file DIR/profile_default/security/ipcontroller-client.json
    hint: start one: pcluster start -n 4
    hint: or choose another with --profile and --cluster-id; `pcluster list` shows running clusters
    hint: no records exist: no file DIR/profile_default/pcluster.db
    ");
}

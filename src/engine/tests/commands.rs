//! Tests of commands.
use super::*;

fn command(argv: &[&str]) -> Work {
    Work::Command {
        argv: argv.iter().map(|word| word.to_string()).collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_run_without_python() {
    let mut c = TestController::with(|settings| settings.python = Some("/no/such/python".into())).await;
    assert_eq!(c.register.facts.python, "");
    let reason = c.register.unavailable.clone().unwrap();
    assert!(reason.contains("/no/such/python"), "{reason}");
    c.define(
        1,
        command(&["sh", "-c", "echo out $1; echo err >&2; exit $1", "sh"]),
        MapOptions::default(),
    );
    c.define(2, command(&["no-such-command-here"]), MapOptions::default());
    c.define(3, command(&["sh", "-c", "kill -9 $$"]), MapOptions::default());
    let call = |from: &str| Work::Call {
        from: crate::model::definition::CallSource::Module { module: from.into() },
        function: "f".into(),
    };
    let targeted = MapOptions {
        targets: Some("all".parse().unwrap()),
        ..MapOptions::default()
    };
    c.define(4, call("m"), targeted);
    c.define(5, call("m"), MapOptions::default());
    c.tasks(1, 0, &["[\"0\"]", "[\"7\"]"]);
    c.tasks(2, 0, &["[\"x\"]"]);
    c.tasks(3, 0, &["[]"]);
    c.tasks(4, 0, &["[]"]);
    c.tasks(5, 0, &["[1]", "[2]"]);
    let mut results = c.results(5).await;
    results.sort_by_key(|result| (result.map, result.index));
    assert_eq!(
        (results[0].outcome.stdout.as_str(), results[0].outcome.stderr.as_str()),
        ("out 0\n", "err\n")
    );
    assert_eq!((results[0].outcome.exit_code, value(&results[0])), (Some(0), "null"));
    assert_eq!((results[1].outcome.exit_code, ename(&results[1])), (Some(7), "ExitCode"));
    assert_eq!(ename(&results[2]), "CommandNotFound");
    assert!(evalue(&results[2]).contains("no-such-command-here"));
    assert_eq!((ename(&results[3]), results[3].outcome.crashed), ("Signal", false));
    assert_eq!(ename(&results[4]), "PythonUnavailable");
    assert!(evalue(&results[4]).contains("/no/such/python") && evalue(&results[4]).contains("engine: python:"));
    // Tasks that other engines can run are returned; a task bound to this engine fails.
    let (_, message) = c.next().await;
    assert_eq!(message.msg_type(), RETURNED);
    let returned: Returned = message.content().unwrap();
    let indices: Vec<(u32, u32)> = returned.tasks.iter().map(|held| (held.map.0, held.index)).collect();
    assert_eq!(indices, [(5, 0), (5, 1)]);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_stopped_together_with_their_children() {
    let mut c = TestController::new().await;
    let options = MapOptions {
        timeout_s: Some(0.3),
        ..MapOptions::default()
    };
    c.define(1, command(&["sh", "-c", "sleep 600 & echo $!; wait"]), options);
    c.define(
        2,
        command(&["sh", "-c", "trap '' INT TERM; echo $$; while true; do sleep 1; done"]),
        MapOptions::default(),
    );
    c.tasks(1, 0, &["[]"]);
    let result = c.result().await;
    assert_eq!((result.outcome.status, ename(&result)), (TaskState::Timeout, "TaskTimeout"));
    // The child dies too (a dead process stays until its new parent has messages of it).
    let stat = format!("/proc/{}/stat", c.progress[0].stdout().trim());
    let until = std::time::Instant::now() + TEST_TIMEOUT;
    while std::fs::read_to_string(&stat).is_ok_and(|state| !state.contains(") Z ")) {
        assert!(std::time::Instant::now() < until, "a child of the command is still running");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    c.tasks(2, 5, &["[]"]);
    c.until_running(5).await;
    c.native(CANCEL, &Cancel { tasks: vec![held(2, 5)] });
    let result = c.result().await;
    assert_eq!((result.outcome.status, ename(&result)), (TaskState::Aborted, "TaskCancelled"));
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_output_is_sent_unchanged_in_parts_and_not_read_faster_than_recorded() {
    let mut c = TestController::new().await;
    c.record_output = true;
    let script = "head -c 6000000 /dev/urandom > long; (cat long; sha256sum < long >&2)";
    let directory = tempfile::tempdir().unwrap();
    let options = MapOptions {
        cwd: Some(directory.path().to_string_lossy().into_owned()),
        ..MapOptions::default()
    };
    c.define(1, command(&["sh", "-c", script]), options.clone());
    c.define(2, command(&["sh", "-c", "cat long; touch over"]), options);
    c.tasks(1, 0, &["[]"]);
    let result = c.result().await;
    let long = std::fs::read(directory.path().join("long")).unwrap();
    let report = &c.progress[0];
    let whole = [
        &report.written[0][..result.outcome.stdout.start as usize],
        &result.outcome.stdout.bytes,
    ]
    .concat();
    assert!(whole == long && result.outcome.stdout.size == 6_000_000);
    assert!(report.largest <= 256 << 10);
    assert!(result.outcome.stdout.bytes.len() <= 256 << 10, "the rest is short");
    assert!(result.outcome.stderr.text().ends_with("-\n"));

    // Without acknowledgements the command blocks, and the engine's buffer stays limited.
    c.record_output = false;
    c.tasks(2, 7, &["[]"]);
    c.until_running(7).await;
    while c.progress[1].written[0].len() < 1 << 20 {
        c.take_one().await;
    }
    assert!(!directory.path().join("over").exists());
    // A new connection continues at the end of the record.
    c.progress[1].written[0].truncate(300_000);
    c.record_output = true;
    c.welcome(Vec::new());
    let result = c.result().await;
    let whole = [
        &c.progress[1].written[0][..result.outcome.stdout.start as usize],
        &result.outcome.stdout.bytes,
    ]
    .concat();
    assert!(whole == long);
    c.end().await;
}

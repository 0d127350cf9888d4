//! Tests of stopping and returning tasks, of losing and leaving the controller.
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeouts_and_cancelling_end_a_task() {
    let mut c = TestController::new().await;
    let from = CallSource::File {
        name: "sleepy.py".into(),
        text: "import time, signal\ndef f(kind):\n    if kind == 'deaf':\n        signal.signal(signal.SIGINT, signal.SIG_IGN)\n        signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    if kind: time.sleep(600)\n".into(),
    };
    let options = MapOptions {
        timeout_s: Some(0.3),
        ..MapOptions::default()
    };
    c.define(
        1,
        Work::Call {
            from: from.clone(),
            function: "f".into(),
        },
        options,
    );
    c.define(
        2,
        Work::Call {
            from,
            function: "f".into(),
        },
        MapOptions::default(),
    );
    c.tasks(1, 0, &["[\"sleep\"]", "[null]", "[\"deaf\"]"]);
    let results = c.results(3).await;
    assert_eq!(results[0].outcome.status, TaskState::Timeout);
    assert_eq!((ename(&results[0]), evalue(&results[0])), ("TaskTimeout", "timed out after 0.3 s"));
    assert!(results[0].outcome.error.as_ref().unwrap().traceback.contains("KeyboardInterrupt"));
    assert_eq!(value(&results[1]), "null");
    assert_eq!(results[2].outcome.status, TaskState::Timeout);
    assert!(!results[2].outcome.crashed);

    c.tasks(2, 0, &["[\"sleep\"]", "[null]", "[null]"]);
    c.until_running(0).await;
    c.native(
        CANCEL,
        &Cancel {
            tasks: vec![held(2, 0), held(2, 2), held(9, 9)],
        },
    );
    let mut results = c.results(3).await;
    results.sort_by_key(|r| r.index);
    let states: Vec<_> = results.iter().map(|r| r.outcome.status).collect();
    assert_eq!(states, [TaskState::Aborted, TaskState::Ok, TaskState::Aborted]);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_have_not_started_are_returned_even_from_the_worker() {
    let mut c = TestController::new().await;
    c.define_file(1, "import time\ndef f(s): time.sleep(s)\n");
    c.tasks(1, 0, &["[0]", "[0]", "[0]", "[0]", "[0]", "[0]"]);
    c.results(6).await;
    let mut inputs = vec!["[0.0001]"; 200];
    inputs.insert(0, "[600]");
    c.tasks(1, 10, &inputs);
    c.until_running(10).await;
    c.native(GIVE_BACK, &GiveBack { at_most: 1000 });
    let returned: Returned = c.native_answer(RETURNED).await;
    assert_eq!(returned.tasks.len(), 200);
    c.native(GIVE_BACK, &GiveBack { at_most: 1000 });
    let returned: Returned = c.native_answer(RETURNED).await;
    assert_eq!(returned.tasks, []);
    // The worker skips recalled tasks and continues.
    c.native(CANCEL, &Cancel { tasks: vec![held(1, 10)] });
    c.tasks(1, 300, &["[0]"]);
    let results = c.results(2).await;
    assert_eq!(
        results.iter().map(|r| (r.index, r.outcome.status)).collect::<Vec<_>>(),
        [(10, TaskState::Aborted), (300, TaskState::Ok)]
    );
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_are_resent_until_they_are_recorded() {
    let mut c = TestController::new().await;
    c.record = false;
    c.define_file(1, "import time\ndef f(s): time.sleep(s)\n");
    c.tasks(1, 0, &["[0]"]);
    assert_eq!(c.result().await.index, 0);
    c.tasks(1, 1, &["[600]", "[0]"]);
    c.until_running(1).await;
    // The controller has forgotten the engine.
    c.native(UNKNOWN_ENGINE, &());
    let again: Register = c.native_answer(REGISTER).await;
    assert_eq!(again.id, Some(EngineId(3)));
    assert_eq!(again.holds, [held(1, 1), held(1, 2)]);
    c.record = true;
    c.welcome(vec![held(1, 1)]);
    let mut results = c.results(2).await;
    results.sort_by_key(|r| r.index);
    assert_eq!(results.iter().map(|r| r.index).collect::<Vec<_>>(), [0, 2]);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_engine_finishes_the_running_task_and_returns_the_rest() {
    let mut c = TestController::new().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("go");
    c.define_file(
        1,
        "import os, time\ndef f(path):\n    while not os.path.exists(path): time.sleep(0.01)\n    return 'done'\n",
    );
    let input = format!("[\"{}\"]", path.display());
    c.tasks(1, 0, &[&input, &input, &input]);
    c.until_running(0).await;
    c.native(SHUTDOWN, &Shutdown { drain: true });
    let returned: Returned = c.native_answer(RETURNED).await;
    assert_eq!(returned.tasks, [held(1, 1), held(1, 2)]);
    std::fs::write(&path, "").unwrap();
    assert_eq!(value(&c.result().await), "\"done\"");
    let _: Unregister = c.native_answer(UNREGISTER).await;
    tokio::time::timeout(TEST_TIMEOUT, c.process).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_without_a_controller_lists_the_tried_addresses() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut settings = EngineSettings::new(connection_file(port, &KeyPair::generate().public));
    settings.registration_timeout_ms = 100;
    let error = run(settings).await.unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}")), "{error}");
    assert!(error.contains("Connection refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_with_a_silent_controller_exits() {
    let mut c = TestController::new().await;
    c.welcome_for(Vec::new(), 1000);
    let error = tokio::time::timeout(TEST_TIMEOUT, c.process).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, EngineError::ControllerGone(1)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_engine_reports_the_reason() {
    let mut c = TestController::with_answer(|_| {}, false).await;
    let refusal = Registered {
        status: "error".into(),
        evalue: "protocol 1 is not supported".into(),
        id: None,
        heartbeat_interval_ms: 0,
        engine_reconnect_timeout_ms: 0,
        drop: Vec::new(),
        max_message_bytes: 0,
    };
    c.native(REGISTERED, &refusal);
    let error = tokio::time::timeout(TEST_TIMEOUT, c.process)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err()
        .to_string();
    assert_eq!(error, "the controller rejected this engine: protocol 1 is not supported");
}

//! Tests of Python functions and code.
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_are_called() {
    let mut c = TestController::new().await;
    assert!(c.register.facts.python.starts_with("3."), "{:?}", c.register);
    assert!(c.register.facts.capabilities.contains(&"call".to_string()));
    c.define_file(
        1,
        "import sys\ndef f(x, y=1):\n    print('got', x)\n    if x < 0: raise ValueError('below zero')\n    return {'sum': x + y}\n",
    );
    c.tasks(1, 0, &["[1]", "[2, 3]", "{\"x\": 4, \"y\": 5}", "[-1]"]);
    let results = c.results(4).await;
    assert_eq!(results.iter().map(|r| r.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(value(&results[0]), r#"{"sum":2}"#);
    assert_eq!(value(&results[2]), r#"{"sum":9}"#);
    assert_eq!(results[1].outcome.stdout.as_str(), "got 2\n");
    assert_eq!((ename(&results[3]), evalue(&results[3])), ("ValueError", "below zero"));
    // Python 3.11 and later underline the position.
    let traceback = &results[3].outcome.error.as_ref().unwrap().traceback;
    let plain: Vec<&str> = traceback.lines().filter(|line| !line.trim().starts_with('^')).collect();
    insta::assert_snapshot!(plain.join("\n"), @r#"
    Traceback (most recent call last):
      File "shipped.py", line 4, in f
        if x < 0: raise ValueError('below zero')
    ValueError: below zero
    "#);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_allocator_of_workers_keeps_memory_and_their_children_are_unaffected() {
    let mut c = TestController::new().await;
    let source = "import os\ndef f(x):\n    mine = [name for name in os.environ if name.startswith('MALLOC_')]\n    \
                  begun = open('/proc/self/environ', 'rb').read().count(b'MALLOC_TRIM_THRESHOLD_=')\n    return [mine, begun]\n";
    c.define_file(1, source);
    c.tasks(1, 0, &["[0]"]);
    assert_eq!(value(&c.results(1).await[0]), "[[],1]");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_inputs_arrive_in_buffers() {
    let mut c = TestController::new().await;
    assert!(c.register.facts.supports_input_buffers());
    c.define_file(1, "def f(x): return len(x)\n");
    let text = |length: usize| Bytes::from(format!("[\"{}\"]", "x".repeat(length)));
    let mut buffers = Vec::new();
    let inputs = [text(3), text(100_000), text(4), text(3_000_000)];
    let tasks: Vec<TaskToRun> = (0..)
        .zip(&inputs)
        .map(|(index, input)| TaskToRun::new(index, 1, input.clone(), Some(&mut buffers)))
        .collect();
    assert_eq!(
        tasks.iter().map(|task| task.in_buffer).collect::<Vec<_>>(),
        [false, true, false, true]
    );
    let mut content = Tasks {
        allocation: None,
        map: MapId(1),
        definition: None,
        tasks,
    };
    c.native_with(TASKS, &content, buffers);
    let results = c.results(4).await;
    assert_eq!(results.iter().map(value).collect::<Vec<_>>(), ["3", "100000", "4", "3000000"]);
    // Without a buffer the message is dropped, not run on something else.
    content.tasks.remove(0);
    c.native_with(TASKS, &content, Vec::new());
    c.tasks(1, 7, &["[\"12345\"]"]);
    let results = c.results(1).await;
    assert_eq!((results[0].index, value(&results[0])), (7, "5"));
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_json_cannot_hold_are_pickled() {
    let mut c = TestController::new().await;
    let source = "import threading\ndef f(k):\n    return [(1, 2), {1: 2}, float('nan'), threading.Lock(), '\\ud800', {'a': [1, True]}, 10**5000][k]\n";
    c.define_file(1, source);
    c.tasks(1, 0, &["[0]", "[1]", "[2]", "[3]", "[4]", "[5]", "[6]"]);
    let results = c.results(7).await;
    let pickled = |result: &TaskResult| {
        let pickled = result.outcome.pickled.as_ref().unwrap();
        assert_eq!((pickled.bytes[0], pickled.bytes[1]), (0x80, 5), "a pickle of protocol 5");
        (value(result).to_string(), pickled.python_type.clone())
    };
    assert_eq!(pickled(&results[0]), ("[1,2]".into(), "tuple".into()));
    assert_eq!(pickled(&results[1]), ("{\"1\":2}".into(), "dict".into()));
    assert_eq!(pickled(&results[2]), ("\"NaN\"".into(), "float".into()));
    assert_eq!(ename(&results[3]), "ValueNotSerializable");
    assert!(evalue(&results[3]).contains("_thread.lock"), "{}", evalue(&results[3]));
    assert_eq!(pickled(&results[4]), ("\"\\\\ud800\"".into(), "str".into()));
    assert_eq!(
        (value(&results[5]), results[5].outcome.pickled.is_none()),
        ("{\"a\":[1,true]}", true)
    );
    assert!(pickled(&results[6]).0.ends_with("(16610 bits)\""));
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusable_definitions_report_the_reason() {
    let mut c = TestController::new().await;
    c.define_file(1, "def f(:\n");
    c.define_file(2, "def g(x): pass\n");
    c.define_file(3, "import no_such_module_here\ndef f(): pass\n");
    c.define_file(4, "f = 3\n");
    let from = CallSource::Module {
        module: "no_such.module".into(),
    };
    c.define(
        5,
        Work::Call {
            from,
            function: "f".into(),
        },
        MapOptions::default(),
    );
    let from = CallSource::Module { module: "os.path".into() };
    c.define(
        6,
        Work::Call {
            from,
            function: "basename".into(),
        },
        MapOptions::default(),
    );
    for map in 1..=6 {
        c.tasks(map, 0, &["[\"/a/b\"]"]);
    }
    c.tasks(7, 0, &["[]"]);
    let mut results = c.results(7).await;
    results.sort_by_key(|r| r.map);
    assert_eq!(ename(&results[0]), "SyntaxError");
    assert!(
        evalue(&results[0]).contains("shipped.py, line 1 does not compile"),
        "{}",
        evalue(&results[0])
    );
    assert!(evalue(&results[0]).contains("engine: python:"), "{}", evalue(&results[0]));
    assert_eq!(
        (ename(&results[1]), evalue(&results[1])),
        ("AttributeError", "shipped.py has no function 'f'; it has g")
    );
    assert_eq!(ename(&results[2]), "ModuleNotFoundError");
    assert!(
        evalue(&results[2]).contains("install the module in that interpreter"),
        "{}",
        evalue(&results[2])
    );
    assert_eq!(
        (ename(&results[3]), evalue(&results[3])),
        ("TypeError", "shipped.py:f is a int, not a function")
    );
    assert_eq!(ename(&results[4]), "ModuleNotFoundError");
    assert_eq!(value(&results[5]), "\"b\"");
    assert_eq!(ename(&results[6]), "MissingDefinition");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dying_worker_loses_only_its_task() {
    let mut c = TestController::new().await;
    let source = "import os, signal, sys\ndef f(k):\n    if k == 1: os._exit(3)\n    if k == 2: print('bye', file=sys.stderr); os.kill(os.getpid(), signal.SIGSEGV)\n    if k == 3: sys.exit('enough')\n    return k\n";
    c.define_file(1, source);
    c.tasks(1, 0, &["[0]", "[1]", "[0]", "[2]", "[3]", "[0]"]);
    let results = c.results(6).await;
    let states: Vec<_> = results.iter().map(|r| (r.index, r.outcome.crashed, ename(r))).collect();
    assert_eq!(
        states,
        [
            (0, false, ""),
            (1, true, "WorkerDied"),
            (2, false, ""),
            (3, true, "WorkerDied"),
            (4, false, "SystemExit"),
            (5, false, "")
        ]
    );
    assert!(evalue(&results[1]).contains("exit code 3"), "{}", evalue(&results[1]));
    assert!(evalue(&results[3]).contains("signal 11 (SIGSEGV)") && evalue(&results[3]).ends_with("bye"));
    assert_eq!(results[3].outcome.stderr.as_str(), "bye\n");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_comes_while_a_task_runs_and_belongs_to_it() {
    let mut c = TestController::new().await;
    let source = "import os, subprocess, sys, time\ndef f(k):\n    if k: return print('short', k)\n    print('one'); subprocess.run(['sh', '-c', 'echo two']); os.write(2, b'three\\n')\n    while not os.path.exists(sys.argv[0] or os.environ['GO']): time.sleep(0.01)\n    sys.stdout.write('four')\n";
    let go = tempfile::tempdir().unwrap();
    let path = go.path().join("go");
    let from = CallSource::File {
        name: "output.py".into(),
        text: source.into(),
    };
    let options = MapOptions {
        env: [("GO".to_string(), path.to_string_lossy().into_owned())].into(),
        ..MapOptions::default()
    };
    c.define(
        1,
        Work::Call {
            from,
            function: "f".into(),
        },
        options,
    );
    c.tasks(1, 0, &["[1]", "[0]", "[2]"]);
    let first = c.result().await;
    assert_eq!(first.outcome.stdout.as_str(), "short 1\n");
    c.until_running(1).await;
    let (mut out, mut err) = (String::new(), String::new());
    while out != "one\ntwo\n" || err != "three\n" {
        c.take_one().await;
        out = c.progress.iter().map(TaskProgress::stdout).collect();
        err = c.progress.iter().map(TaskProgress::stderr).collect();
    }
    std::fs::write(&path, "").unwrap();
    let results = c.results(2).await;
    // Reported output that was not acknowledged is sent again: a controller may have been killed before it recorded the output.
    let streams = |outcome: &crate::model::task::Outcome| (outcome.stdout.clone(), outcome.stderr.clone());
    assert_eq!(streams(&results[0].outcome), ("one\ntwo\nfour".into(), "three\n".into()));
    assert_eq!(streams(&results[1].outcome), ("short 2\n".into(), "".into()));
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_namespace_is_shared_by_execute_push_and_pull() {
    let mut c = TestController::new().await;
    let execute = |code: &str| Work::Execute {
        code: code.into(),
        filename: "<exec>".into(),
        bundle: None,
    };
    c.define(1, Work::Push, MapOptions::default());
    c.define(2, execute("import os\nb = a + 1\nb * 2"), MapOptions::default());
    c.define(3, Work::Pull, MapOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let options = MapOptions {
        cwd: Some(dir.path().to_string_lossy().into_owned()),
        env: [("COLOUR".to_string(), "red".to_string())].into(),
        ..MapOptions::default()
    };
    c.define(4, execute("(os.getcwd(), os.environ['COLOUR'])"), options);
    c.define(5, execute("os.environ.get('COLOUR')"), MapOptions::default());
    c.define(6, execute("raise SystemExit"), MapOptions::default());
    c.define(7, execute("x = "), MapOptions::default());
    c.tasks(1, 0, &["{\"a\": 20}"]);
    c.tasks(2, 0, &["null"]);
    c.tasks(3, 0, &["[\"a\", \"b\"]", "[\"c\"]"]);
    for map in 4..=7 {
        c.tasks(map, 0, &["null"]);
    }
    let results = c.results(8).await;
    assert_eq!(value(&results[0]), "null");
    assert_eq!(value(&results[1]), "42");
    assert_eq!(value(&results[2]), r#"{"a":20,"b":21}"#);
    assert_eq!(
        (ename(&results[3]), evalue(&results[3])),
        ("NameError", "not defined on this engine: c")
    );
    let directory = dir.path().canonicalize().unwrap();
    assert_eq!(value(&results[4]), format!("[\"{}\",\"red\"]", directory.display()));
    assert_eq!(value(&results[5]), "null");
    assert_eq!(value(&results[6]), "null");
    assert_eq!(ename(&results[7]), "SyntaxError");
    // It has no frame of Python's own parser.
    let traceback = &results[7].outcome.error.as_ref().unwrap().traceback;
    assert!(!traceback.contains("ast.py"), "{traceback}");
    c.end().await;
}

/// The complete output of a task on one stream: progress reports and the rest in its result.
fn whole(c: &TestController, result: &TaskResult, stream: usize) -> Vec<u8> {
    let rest = [&result.outcome.stdout, &result.outcome.stderr][stream];
    let report = c.progress.iter().find(|report| report.task.index == result.index);
    let report = report.map_or(&[][..], |report| &report.written[stream]);
    [&report[..rest.start as usize], &rest.bytes].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_prints_faster_than_recorded_blocks_and_no_output_is_lost() {
    let mut c = TestController::new().await;
    let source = "import os, sys\nblock = bytes(i * i >> 4 & 255 for i in range(1 << 16))\ndef f(path, count):\n    for i in range(count):\n        sys.stdout.buffer.write(block)\n        sys.stdout.flush()\n        with open(path, 'w') as file: file.write(str((i + 1) * len(block)))\n    print('done', file=sys.stderr)\n";
    c.define_file(1, source);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("written");
    c.tasks(1, 0, &[&format!("[{:?}, 480]", path.display().to_string())]);
    // Without acknowledgements.
    c.until_running(0).await;
    while c.progress[0].written[0].len() < 2 << 20 {
        c.take_one().await;
    }
    let written = || std::fs::read_to_string(&path).ok()?.parse::<u64>().ok();
    let (mut before, mut same) = (0, 0);
    while same < 20 {
        c.take_one().await;
        let now = written().unwrap_or_default();
        same = if now == before { same + 1 } else { 0 };
        before = now;
    }
    // It blocks: its output fills the engine's window, the pipe and its own buffer.
    assert!((2 << 20..3 << 20).contains(&before), "{before}");
    c.record_output = true;
    c.progress[0].written[0].truncate(100_000);
    c.welcome(Vec::new());
    let result = c.result().await;
    assert_eq!(result.outcome.status, TaskState::Ok);
    let block: Vec<u8> = (0..1u64 << 16).map(|i| ((i * i) >> 4) as u8).collect();
    assert!(whole(&c, &result, 0) == block.repeat(480));
    assert_eq!(whole(&c, &result, 1), b"done\n");
    // A blocked task can be stopped.
    c.record_output = false;
    c.tasks(1, 1, &[&format!("[{:?}, 48000]", path.display().to_string())]);
    c.until_running(1).await;
    while c.progress[1].written[0].len() < 2 << 20 {
        c.take_one().await;
    }
    c.native(CANCEL, &Cancel { tasks: vec![held(1, 1)] });
    c.record_output = true;
    c.welcome(Vec::new());
    let result = c.result().await;
    assert_eq!(ename(&result), "TaskCancelled");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_of_children_to_dev_stdout_follows_earlier_output() {
    let mut c = TestController::new().await;
    let source = "import os, subprocess, sys\ndef f(k):\n    out, name = (sys.stdout, '/dev/stdout') if k % 2 else (sys.stderr, '/dev/stderr')\n    print('a', k, file=out)\n    subprocess.run(f'echo b {k} > {name}', shell=True, check=True)\n    print('c', k, file=out)\n    with open(name, 'w') as file: file.write('d')\n";
    c.define_file(1, source);
    let code = "import subprocess\nprint('a')\nsubprocess.run('echo b > /dev/stdout; echo B > /dev/stderr', shell=True)\nprint('c')";
    let execute = Work::Execute {
        code: code.into(),
        filename: "<exec>".into(),
        bundle: None,
    };
    c.define(2, execute, MapOptions::default());
    let inputs: Vec<String> = (0..30).map(|k| format!("[{k}]")).collect();
    c.tasks(1, 0, &inputs.iter().map(String::as_str).collect::<Vec<_>>());
    for k in 0..30 {
        let result = c.result().await;
        let expected = format!("a {k}\nb {k}\nc {k}\nd").into_bytes();
        let streams = [whole(&c, &result, 0), whole(&c, &result, 1)];
        let written = if k % 2 == 1 {
            [expected, Vec::new()]
        } else {
            [Vec::new(), expected]
        };
        assert!(streams == written, "{k}: {:?}", result.outcome);
    }
    c.tasks(2, 0, &["null"]);
    let result = c.result().await;
    assert_eq!(
        (result.outcome.stdout.as_str(), result.outcome.stderr.as_str()),
        ("a\nb\nc\n", "B\n")
    );
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fast_task_gets_exactly_its_own_output_and_that_of_its_children() {
    let mut c = TestController::new().await;
    c.record_output = true;
    let source = "import os, sys\ndef f(k):\n    if k % 3: print(k, 'x' * (k % 5000))\n    if k % 7 == 0: print('err', k, file=sys.stderr)\n    if k % 500 == 0:\n        pid = os.fork()\n        if not pid: os.write(1, b'child %d\\n' % k); os._exit(0)\n        os.waitpid(pid, 0)\n    if k == 1111: os.dup2(2, 1)\n    if k == 2222: os.close(1)\n    if k == 3333: os.set_blocking(1, False)\n    return k\n";
    c.define_file(1, source);
    let inputs: Vec<String> = (0..6000).map(|k| format!("[{k}]")).collect();
    c.tasks(1, 0, &inputs.iter().map(String::as_str).collect::<Vec<_>>());
    for k in 0..6000 {
        let result = c.result().await;
        assert_eq!(value(&result), k.to_string());
        let mut out = if k % 3 != 0 {
            format!("{k} {}\n", "x".repeat(k % 5000))
        } else {
            String::new()
        };
        if k % 500 == 0 {
            out += &format!("child {k}\n");
        }
        let err = if k % 7 == 0 { format!("err {k}\n") } else { String::new() };
        let written = [whole(&c, &result, 0), whole(&c, &result, 1)];
        assert!(
            written == [out.into_bytes(), err.into_bytes()],
            "task {k}: {:?}",
            written.map(|bytes| bytes.len())
        );
    }
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_surviving_child_delays_no_result_and_its_late_output_belongs_to_no_task() {
    let mut c = TestController::new().await;
    let source = "import os, subprocess\ndef f(k):\n    print('task', k)\n    if k == 0: subprocess.Popen(['sh', '-c', 'while :; do echo noise; done'], start_new_session=True)\n    if k == 1: os._exit(3)\n";
    c.define_file(1, source);
    c.tasks(1, 0, &["[0]"]);
    let result = c.result().await;
    assert!(whole(&c, &result, 0).starts_with(b"task 0\n"));
    // It continues to write, assigned to no task; the worker ends although the child holds the pipe open.
    c.record_output = true;
    c.tasks(1, 1, &["[1]"]);
    let result = c.result().await;
    assert_eq!((result.index, ename(&result)), (1, "WorkerDied"));
    c.tasks(1, 2, &["[2]"]);
    let result = c.result().await;
    assert_eq!((result.index, whole(&c, &result, 0)), (2, b"task 2\n".to_vec()));
    c.end().await;
}

//! The output and values of tasks: every byte, or an error with the reason.
use super::support::{Cluster, Home, Running, shared, signal, wait_until};
use nix::sys::signal::Signal::SIGKILL;
use serde_json::Value;
use std::fs;
use std::path::Path;

const WORK: &str = r#"
import os, sys

def wordy(n):
    raise ValueError("x" * 5_000_000)

def echo(text):
    return len(text)

def prints(n):
    data = bytes((at * at >> 3) & 0xff for at in range(1 << 16))
    for _ in range(n >> 16):
        os.write(1, data)
    print("the end", file=sys.stderr)
    return n
"#;

/// Two engines, and a controller that receives messages of up to 2 MiB.
fn narrow() -> Cluster {
    let home = Home::new();
    home.file("work.py", WORK);
    Cluster::start_in(home, 2, &["--set", "controller.max_message_mb=2"])
}

#[test]
fn the_texts_of_an_error_are_bounded() {
    let cluster = narrow();
    cluster
        .run(&["map", "work.py:wordy", "--range", "0..1"])
        .fails(1, &["ValueError: xxx"]);
    let task = cluster.json(&["results", "1.0"]);
    let evalue = task["tasks"][0]["error"]["evalue"].as_str().unwrap();
    assert!((1000..1 << 20).contains(&evalue.len()), "{}", evalue.len());
    cluster.ok(&["stop"]);
}

#[test]
fn an_input_above_the_message_limit_is_rejected_with_the_limit() {
    let cluster = narrow();
    let long = "x".repeat(3 << 20);
    cluster.file("long.txt", &format!("short\n{long}\n"));
    // Of what can be read twice nothing runs.
    let ended = cluster.run(&["map", "work.py:echo", "long.txt"]);
    ended.fails(
        2,
        &[
            "input 2 of long.txt has 3145732 bytes",
            "accepts at most 20",
            "controller.max_message_mb",
            "nothing was submitted",
        ],
    );
    assert_eq!(cluster.json(&["results"])["maps"], Value::Array(Vec::new()));
    let lines = std::iter::repeat_n("y", 20_000).collect::<Vec<_>>().join("\n");
    let stream = cluster.run_reading(&format!("{lines}\n{long}\n"), &["map", "work.py:echo", "-"]);
    stream.fails(
        2,
        &[
            "the input of task 1.20000 has 3145732 bytes",
            "at most 2097152 bytes",
            "is cancelled",
        ],
    );
    let map = &cluster.json(&["results"])["maps"][0];
    assert!(map["aborted"].as_u64() > Some(0), "listed as failed: {map}");
    let open = cluster.json(&["results", "--pending"]);
    assert_eq!(open["tasks"], Value::Array(Vec::new()));
    cluster.ok(&["stop"]);
}

/// A file of bytes that are no text, the same each time.
fn binary(path: &Path, length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 8).to_le_bytes()[..7]);
    }
    bytes.truncate(length);
    fs::write(path, &bytes).unwrap();
    bytes
}

/// `pcluster …` with stdout in a file, whose bytes are returned.
fn into_file(cluster: &Cluster, arguments: &str, file: &str) -> Vec<u8> {
    let line = format!("exec {} {arguments} > {file}", env!("CARGO_BIN_EXE_pcluster"));
    let mut shell = cluster.program("sh");
    Running::spawn(shell.args(["-c", &line]), "").end().ok();
    fs::read(cluster.path().join(file)).unwrap()
}

#[test]
fn the_output_of_a_command_is_unchanged_byte_for_byte() {
    let cluster = shared();
    let long = binary(&cluster.path().join("long.bin"), 50_000_000);
    cluster.file("names.txt", "one\ntwo\n");
    assert!(
        into_file(
            cluster,
            "map names.txt -- sh -c 'cat long.bin; echo $0; cat long.bin >&2'",
            "out.bin"
        ) == [&long[..], b"one\n", &long, b"two\n"].concat()
    );
    cluster.ok(&[
        "map",
        "names.txt",
        "-o",
        "text.txt",
        "--",
        "sh",
        "-c",
        "yes 123456789 | head -c 3000000",
    ]);
    let text = fs::read(cluster.path().join("text.txt")).unwrap();
    assert!(text.len() == 6_000_000 && text.chunks(10).all(|line| line == b"123456789\n"));
    assert!(into_file(cluster, "map names.txt -- printf '\\377\\000%s'", "short.bin") == b"\xff\0one\xff\0two");
}

#[test]
fn both_streams_of_a_task_are_recorded_and_truncated_for_display() {
    let cluster = shared();
    let long = binary(&cluster.path().join("both.bin"), 3_000_000);
    cluster.file("both.txt", "x\n");
    let map = cluster.ok(&[
        "map",
        "--detach",
        "both.txt",
        "--",
        "sh",
        "-c",
        "for i in 1 2 3; do cat both.bin; cat both.bin >&2; done; echo $0",
    ]);
    let task = format!("{}.0", map.trim());
    cluster.ok(&["wait", map.trim()]);
    let three = [&long[..], &long, &long].concat();
    assert!(into_file(cluster, &format!("results {task} --stderr"), "err.bin") == three);
    assert!(into_file(cluster, &format!("results {task} --stdout"), "all.bin") == [&three[..], b"x\n"].concat());
    let shown = cluster.ok(&["results", &task]);
    assert!(shown.len() < 200_000, "{}", shown.len());
    let more = format!("9.0 MB more: pcluster results {task} --stdout > FILE");
    assert!(shown.contains(&more), "{shown}");
    assert!(
        shown.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()),
        "nothing steers the terminal"
    );
    let json = cluster.json(&["results", &task]);
    let json = &json["tasks"][0];
    assert_eq!((&json["stdout"], &json["stdout_size"]), (&Value::Null, &Value::from(9_000_002)));
    assert!(json["stdout_base64"].as_str().unwrap().len() > 1000);
    cluster.run(&["results", "--stdout"]).fails(2, &["exactly one task"]);
    cluster
        .run(&["results", &task, "--stdout", "--run", "9"])
        .fails(3, &["no such run"]);
}

#[test]
fn output_of_a_function_is_complete_and_visible_while_it_runs() {
    let cluster = Cluster::start_in(
        {
            let home = Home::new();
            home.file("work.py", WORK);
            home.file("slow.py", "import os, time\ndef f(x):\n    os.write(1, b'\\xff' * 400_000)\n    while not os.path.exists('go'): time.sleep(0.01)\n    os.write(1, b'end')\n");
            home
        },
        1,
        &[],
    );
    let printed = cluster.ok(&["map", "work.py:prints", "--range", "20000000..20000001"]);
    assert_eq!(printed, "20000000\n");
    let block: Vec<u8> = (0..1u64 << 16).map(|at| ((at * at) >> 3) as u8).collect();
    let expected = block.repeat(20_000_000 >> 16);
    assert!(into_file(&cluster, "results 1.0 --stdout", "printed.bin") == expected);

    cluster.ok(&["map", "--detach", "slow.py:f", "--range", "0..1"]);
    wait_until("400,000 bytes of a task that runs", || {
        let task = cluster.json(&["results", "2.0"]);
        (task["tasks"][0]["stdout_size"] == 400_000).then_some(())
    });
    assert!(into_file(&cluster, "results 2.0 --stdout", "part.bin") == vec![0xff; 400_000]);
    cluster.file("go", "");
    cluster.ok(&["wait", "2"]);
    // Also when nothing runs any more.
    cluster.ok(&["stop"]);
    assert!(into_file(&cluster, "results 2.0 --stdout", "part.bin") == [&vec![0xff; 400_000][..], b"end"].concat());
    assert!(into_file(&cluster, "results 1.0 --stdout", "printed.bin") == expected);
}

#[test]
fn output_is_exact_when_the_controller_is_killed_in_the_middle() {
    let cluster = Cluster::start(2);
    let long = binary(&cluster.path().join("long.bin"), 8_000_000);
    cluster.file("two.txt", "a\nb\n");
    let script = "cat long.bin; echo > begun.$0; while ! [ -e go ]; do sleep 0.05; done; cat long.bin; echo $0";
    let line = format!("exec {} map two.txt -- sh -c '{script}' > out.bin", env!("CARGO_BIN_EXE_pcluster"));
    let mut shell = cluster.program("sh");
    let map = Running::spawn(shell.args(["-c", &line]), "");
    let has_begun = |name: &str| cluster.path().join(name).exists().then_some(());
    wait_until("the first half", || has_begun("begun.a").and(has_begun("begun.b")));
    for _ in 0..2 {
        let controller = cluster.controller_pid();
        signal(controller, SIGKILL);
        wait_until("another controller", || (cluster.controller_pid() != controller).then_some(()));
    }
    cluster.file("go", "");
    map.end().ok();
    let out = fs::read(cluster.path().join("out.bin")).unwrap();
    assert!(out == [&long[..], &long, b"a\n", &long, &long, b"b\n"].concat(), "{}", out.len());
    let attempts = cluster.json(&["results", "1"]);
    assert_eq!(attempts["tasks"][0]["attempts"], 1, "it was not run again");
    cluster.ok(&["stop"]);
}

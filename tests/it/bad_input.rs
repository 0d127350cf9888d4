//! What a tired person reads when something is wrong: a message, a hint, an exit code.
use super::support::{Cluster, Home, shared};

/// Fails if a message lacks essential parts.
fn is_helpful(stderr: &str) {
    assert!(stderr.contains("error: "), "{stderr}");
    for word in ["panicked", "RUST_BACKTRACE", "Os {", "Some("] {
        assert!(!stderr.contains(word), "{word} in what the user reads:\n{stderr}");
    }
}

#[track_caller]
fn refused(home: &Home, arguments: &[&str], code: i32, words: &[&str]) {
    let ended = home.run(arguments).fails(code, words);
    assert_eq!(ended.stdout, "", "{}", ended.transcript());
    is_helpful(&ended.stderr);
}

#[test]
fn missing_functions_are_reported() {
    let cluster: &Cluster = shared();
    cluster.file("good.py", "def f(x):\n    return x\n\nvalue = 3\n");
    cluster.file("broken.py", "def f(x)\n    return x\n");
    cluster.file("inputs.txt", "1\n");
    for (function, code, words) in [
        ("nowhere.py:f", 2, &["nowhere.py"][..]),
        ("good.py", 2, &["hint: "]),
        (":f", 2, &["hint: "]),
        ("good.py:", 2, &["hint: "]),
        ("good.py:g", 1, &["g", "good.py"]),
        ("good.py:value", 1, &["value"]),
        ("broken.py:f", 1, &["SyntaxError"]),
        ("no_such_module_here:f", 1, &["no_such_module_here"]),
        ("math:no_such_function", 1, &["no_such_function"]),
    ] {
        let ended = cluster.run(&["map", function, "inputs.txt"]);
        let output = format!("{}{}", ended.stdout, ended.stderr);
        assert!(
            ended.code == Some(code) || ended.code == Some(2),
            "{function}: {}",
            ended.transcript()
        );
        for word in words {
            assert!(output.contains(word), "{function}: {word} is missing\n{}", ended.transcript());
        }
        assert!(!output.contains("panicked"), "{output}");
    }
}

#[test]
fn missing_or_malformed_inputs_are_reported() {
    let cluster = shared();
    cluster.file("good.py", "def f(x):\n    return x\n\nvalue = 3\n");
    cluster.file("empty.txt", "\n\n");
    cluster.file("bad.jsonl", "[1]\n[2\n[3]\n");
    refused(cluster, &["map", "good.py:f", "missing.txt"], 2, &["missing.txt"]);
    refused(cluster, &["map", "good.py:f", "empty.txt"], 2, &["empty.txt"]);
    refused(cluster, &["map", "good.py:f", "bad.jsonl", "--jsonl"], 2, &["bad.jsonl", "line 2"]);
    refused(cluster, &["map", "good.py:f", "--glob", "*.none"], 2, &["*.none"]);
    refused(cluster, &["map", "good.py:f"], 2, &["no inputs", "hint: "]);
    for arguments in [
        &["map", "good.py:f", "--range", "9..x"][..],
        &["map", "good.py:f", "inputs.txt", "--timeout", "soon"],
    ] {
        cluster.run(arguments).fails(2, &["error: "]);
    }
}

#[test]
fn invalid_commands_submit_nothing() {
    let cluster = shared();
    cluster.file("good.py", "def f(x):\n    return x\n\nvalue = 3\n");
    cluster.file("half.jsonl", "[1]\nnot json\n");
    let before = cluster.json(&["results"])["maps"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|map| map["name"] == "half.jsonl")
        .count();
    refused(
        cluster,
        &["map", "--name", "half.jsonl", "good.py:f", "half.jsonl", "--jsonl"],
        2,
        &["line 2"],
    );
    let after = cluster.json(&["results"])["maps"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|map| map["name"] == "half.jsonl")
        .count();
    assert_eq!((before, after), (0, 0));
}

#[test]
fn no_cluster_is_running() {
    let home = Home::new();
    for arguments in [
        &["status"][..],
        &["engines"],
        &["stop"],
        &["map", "math:sqrt", "--range", "0..1"],
        &["results"],
        &["cancel", "1"],
    ] {
        let ended = home.run(arguments).fails(3, &["hint: "]);
        is_helpful(&ended.stderr);
        assert!(ended.stderr.contains("pcluster start"), "{}", ended.transcript());
    }
    assert_eq!(home.run(&["list"]).code, Some(0));
}

#[test]
fn invalid_names_are_rejected() {
    let home = Home::new();
    for name in ["a/b", "..", "", "-x/../y"] {
        let ended = home.run(&["start", "-n", "1", &format!("--profile={name}")]).fails(2, &["profile"]);
        is_helpful(&ended.stderr);
    }
    let ended = home.run(&["start", "-n", "1", "--cluster-id=a/b"]).fails(2, &["a/b"]);
    is_helpful(&ended.stderr);
    home.run(&["no-such-command"]).fails(2, &["no-such-command"]);
    home.run(&["results", "1.x"]).fails(2, &["1.x"]);
    home.run(&["results", "--where", "size>3"]).fails(2, &["size"]);
}

#[test]
fn a_typo_in_the_configuration_has_its_position() {
    let home = Home::new();
    home.file(
        "ipython/profile_default/pcluster.yaml",
        "controller:\n  ip: 127.0.0.1\n  hearbeat_interval_ms: 500\n",
    );
    let ended = home
        .run(&["start", "-n", "1"])
        .fails(2, &["pcluster.yaml", "hearbeat_interval_ms", "heartbeat_interval_ms"]);
    assert!(
        ended.stderr.contains("line 3") || ended.stderr.contains(":3:3"),
        "{}",
        ended.transcript()
    );
    is_helpful(&ended.stderr);
    home.file("ipython/profile_default/pcluster.yaml", "controller:\n  hwm: three\n");
    let ended = home.run(&["start", "-n", "1"]).fails(2, &["hwm"]);
    assert!(
        ended.stderr.contains("line 2") || ended.stderr.contains(":2:"),
        "{}",
        ended.transcript()
    );
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a program, no secret")]
fn a_python_that_is_missing_or_too_old() {
    let home = Home::new();
    let ended = home
        .run(&["start", "-n", "1", "--python", "/nowhere/python3"])
        .fails(5, &["/nowhere/python3", "hint: "]);
    is_helpful(&ended.stderr);
    // Always reports that it is Python 3.6.
    let old = home.file("old-python", "#!/bin/sh\necho 3.6.8\necho '3 6'\nexit 0\n");
    std::fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let ended = home
        .run(&["start", "-n", "1", "--python", old.to_str().unwrap()])
        .fails(5, &["old-python"]);
    is_helpful(&ended.stderr);
}

#[test]
fn missing_maps_and_tasks_are_reported() {
    let cluster = shared();
    for arguments in [
        &["results", "999999"][..],
        &["results", "999999.3"],
        &["resubmit", "999999"],
        &["cancel", "999999"],
        &["wait", "999999"],
        &["resubmit", "999999.1"],
        &["cancel", "999999.1"],
    ] {
        let ended = cluster.run(arguments).fails(3, &["999999"]);
        is_helpful(&ended.stderr);
    }
}

//! Commands that need no cluster, or only inspect one.
use super::support::{Home, shared};

#[test]
fn profiles_are_created_listed_and_shown() {
    let home = Home::new();
    home.ok(&["profile", "create", "night"]);
    assert!(home.ok(&["profile", "list"]).contains("night"));
    let config = home.path().join("ipython/profile_night/pcluster.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("controller:"), "{text}");
    // What it wrote, it can read; nothing in it differs from the defaults.
    let shown = home.ok(&["profile", "show", "night"]);
    assert!(shown.contains("heartbeat_interval_ms: 1000"), "{shown}");
    home.run(&["profile", "show", "day"]).fails(3, &["day"]);
    std::fs::write(&config, "controller:\n  hwm: 5\n").unwrap();
    assert!(home.ok(&["profile", "show", "night"]).contains("hwm: 5"));
    // Creating it again does not overwrite edits.
    home.ok(&["profile", "create", "night"]);
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "controller:\n  hwm: 5\n");
}

#[test]
fn completions_for_every_shell() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.ok(&["completions", shell]).contains("resubmit"), "{shell}");
    }
}

#[test]
fn doctor_checks_python_and_suggests_fixes() {
    let home = Home::new();
    let ended = home.run(&["doctor"]);
    assert!(matches!(ended.code, Some(0)), "{}", ended.transcript());
    for word in ["Python", "ipyparallel", "network", "sbatch"] {
        assert!(
            ended.stdout.to_lowercase().contains(&word.to_lowercase()),
            "{word}: {}",
            ended.transcript()
        );
    }
    let ended = home.run(&["doctor", "--python", "/nowhere/python3"]);
    assert_eq!(ended.code, Some(5), "{}", ended.transcript());
    assert!(ended.stdout.contains("/nowhere/python3"), "{}", ended.transcript());
}

#[test]
fn logs_are_shown() {
    let cluster = shared();
    assert!(cluster.ok(&["logs"]).contains("controller ready"));
    assert!(!cluster.ok(&["logs", "engine", "0"]).is_empty());
    assert!(cluster.ok(&["logs", "all"]).contains("controller ready"));
}

#[test]
fn no_secret_is_in_a_log_an_argument_or_an_environment() {
    let cluster = shared();
    cluster.ok(&["map", "math:sqrt", "--range", "0..2"]);
    let mut secrets = Vec::new();
    for file in ["ipcontroller-client.json", "ipcontroller-engine.json"] {
        let text = std::fs::read(cluster.profile().join("security").join(file)).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        secrets.push(json["key"].as_str().unwrap().to_string());
    }
    assert_ne!(secrets[0], secrets[1], "an engine's file must not sign for a client");
    let logs = std::fs::read_dir(cluster.profile().join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let processes = cluster.engine_pids().into_iter().chain([cluster.controller_pid()]);
    let of_processes = processes.flat_map(|pid| ["cmdline", "environ"].map(|what| format!("/proc/{pid}/{what}").into()));
    let mut looked_at = 0;
    for path in logs.chain(of_processes) {
        let text = std::fs::read(&path).unwrap();
        for secret in &secrets {
            let found = text.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "a key stands in {}", path.display());
        }
        looked_at += 1;
    }
    assert!(looked_at >= 8, "only {looked_at} places were looked at");
}

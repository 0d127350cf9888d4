//! Printed output: without a terminal, and on one of 80 columns.
use super::support::{Cluster, Home};
use insta::assert_snapshot;

const WORK: &str = "def halve(n):\n    if n % 2:\n        raise ValueError('%s is odd' % n)\n    return n // 2\n";

/// A complete session without a terminal.
#[test]
fn a_session_without_a_terminal() {
    let home = Home::new();
    home.file("work.py", WORK);
    assert_snapshot!(home.run(&["start", "-n", "1"]).snapshot(), @r#"
    $ pcluster start -n 1
    profile `default`: a controller (process [PID]) and 1 engine, in [DURATION]
    next: pcluster map FILE.py:FUNCTION INPUTS.txt  (pcluster status, pcluster stop)
    [exit 0]
    "#);
    assert_snapshot!(home.run(&["map", "work.py:halve", "--range", "0..3"]).snapshot(), @r#"
    $ pcluster map work.py:halve --range 0..3
    0
    {"__error__":{"task":"1.1","state":"error","ename":"ValueError","evalue":"1 is odd"}}
    1
    task 1.1 failed on input 1: ValueError: 1 is odd
    1 of 3 tasks failed
    see them:  pcluster results 1 --failed
    run them again:  pcluster resubmit 1 --failed
    [exit 1]
    "#);
    assert_snapshot!(home.run(&["results"]).snapshot(), @r#"
    $ pcluster results
    MAP  STATE  DONE  FAILED  RUNNING  SUBMITTED  TIME  NAME
      1  failed  3/3  1  0  [DATE]  [DURATION]  work.py:halve
    [exit 0]
    "#);
    assert_snapshot!(home.run(&["results", "1", "--failed"]).snapshot(), @r#"
    $ pcluster results 1 --failed
    TASK  STATE  ENGINE  ATTEMPTS  TIME  COMPLETED  INPUT  ERROR
    1.1  error  0  1  [DURATION]  [DATE]  [1]  ValueError: 1 is odd
    [exit 0]
    "#);
    assert_snapshot!(home.run(&["results", "1.1"]).snapshot(), @r#"
    $ pcluster results 1.1
    task 1.1: error
      work  call work.py:halve
      input  [1]
      error  ValueError: 1 is odd
      engine  0 on [HOST]
      attempts  1
      submitted  [DATE] [TIME] ([AGO])
      started  [DATE] [TIME] ([AGO])
      completed  [DATE] [TIME] ([AGO])
      duration  [DURATION]
      memory  peak [SIZE]
    traceback:
      Traceback (most recent call last):
        File "[TEMP]/work.py", line 3, in halve
          raise ValueError('%s is odd' % n)
      ValueError: 1 is odd
    [exit 0]
    "#);
    assert_snapshot!(home.run(&["resubmit", "1.1"]).snapshot(), @r#"
    $ pcluster resubmit 1.1
    1 task resubmitted
    wait for them:  pcluster wait 1
    [exit 0]
    "#);
    assert_snapshot!(home.run(&["wait", "1"]).snapshot(), @r#"
    $ pcluster wait 1
    map 1: 1 of 3 tasks failed; see them: pcluster results 1 --failed
    [exit 1]
    "#);
    assert_snapshot!(home.run(&["results", "--pending"]).snapshot(), @r#"
    $ pcluster results --pending
    no matching tasks
    [exit 0]
    "#);
    assert_snapshot!(home.run(&["stop"]).snapshot(), @r#"
    $ pcluster stop
    profile `default`: stopped, with 1 engine
    [exit 0]
    "#);
    assert_snapshot!(home.run(&["status"]).snapshot(), @r#"
    $ pcluster status
    error: no cluster is running in profile `default`: no file [TEMP]/ipython/profile_default/security/ipcontroller-client.json
    hint: start one: pcluster start -n 4
    hint: or choose another with --profile and --cluster-id; `pcluster list` shows running clusters
    [exit 3]
    "#);
}

/// On a terminal of 80 columns no line is longer, and status messages do not go to stdout.
#[test]
fn tables_fit_a_terminal_of_80_columns() {
    let cluster = Cluster::start_in(Home::new(), 1, &[]);
    let folder = format!("{}/{}", cluster.path().display(), "a long folder name ".repeat(6));
    cluster
        .run_reading(
            &format!("{folder}/input"),
            &["map", "--name", &"a name ".repeat(20), "os.path:basename", "-"],
        )
        .ok();
    for arguments in ["results", "results 1", "engines", "list"] {
        let shell = format!("stty cols 80; exec {} {arguments}", super::support::PCLUSTER);
        let output = cluster
            .program("script")
            .args(["-qec", &shell, "/dev/null"])
            .env("TERM", "xterm")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        assert!(output.status.success() && text.lines().count() > 1, "{arguments}: {text}");
        for line in text.lines() {
            let width = without_colours(line).chars().count();
            assert!(width <= 80, "{arguments}: a line of {width} columns:\n{text}");
        }
    }
    cluster.ok(&["stop"]);
}

fn without_colours(line: &str) -> String {
    let mut text = String::new();
    let mut parts = line.split('\x1b');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        text.push_str(part.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, rest)| rest));
    }
    text
}

/// Errors and output of tasks cannot control the user's terminal; data is unchanged.
#[test]
fn control_characters_are_escaped_and_data_is_unchanged() {
    let cluster = Cluster::start(1);
    cluster.file(
        "steer.py",
        "def steer(x):\n    print('out \\x1b[2J')\n    raise ValueError('bad \\x1b]0;title\\x07 \\x9b2J')\n",
    );
    let failed = cluster.run(&["-v", "map", "steer.py:steer", "--range", "0..1"]);
    let steers = |text: &str| text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t'));
    assert!(!steers(&failed.stderr), "{:?}", failed.stderr);
    assert!(failed.stderr.contains("\\u{1b}]0;title"), "{}", failed.stderr);
    for arguments in [&["results", "1"][..], &["results", "1.0"]] {
        let shown = cluster.ok(arguments);
        assert!(!steers(&shown) && shown.contains("\\u{1b}"), "{arguments:?}: {shown:?}");
    }
    // The same from a log, a connection file and an argument.
    let log = cluster.profile().join("log/engine-0.log");
    let before = std::fs::read(&log).unwrap();
    std::fs::write(&log, [before.as_slice(), b"evil \x1b[2J \xc2\x9b \xff\n"].concat()).unwrap();
    let shown = cluster.ok(&["logs", "engine"]);
    assert!(!steers(&shown) && shown.contains("evil \\u{1b}[2J \\u{9b}"), "{shown:?}");
    let refused = cluster.run(&["results", "--label", "x", "9\u{1b}[2J"]);
    assert!(!steers(&refused.stderr), "{:?}", refused.stderr);
    // Data.
    let output = cluster.ok(&["map", "--range", "0..1", "--", "printf", "\\033[1mx\\n"]);
    assert_eq!(output, "\u{1b}[1mx\n");
    cluster.ok(&["stop"]);
}

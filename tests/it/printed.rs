//! What is printed: without a terminal, and on one of 80 columns.
use super::support::{Cluster, Home};
use insta::assert_snapshot;

const WORK: &str = "def halve(n):\n    if n % 2:\n        raise ValueError('%s is odd' % n)\n    return n // 2\n";

/// One cluster's life, as a newcomer sees it without a terminal.
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
    task 1.1 failed on 1: ValueError: 1 is odd
    1 of 3 tasks failed
    see them:  pcluster results 1 --failed
    run them again: pcluster resubmit 1 --failed
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
    traceback:
      Traceback (most recent call last):
        File "work.py", line 3, in halve
          raise ValueError('%s is odd' % n)
      ValueError: 1 is odd
    [exit 0]
    "#);
    assert_snapshot!(home.run(&["resubmit", "1.1"]).snapshot(), @r#"
    $ pcluster resubmit 1.1
    1 task resubmitted
    wait for them: pcluster wait 1
    [exit 0]
    "#);
    assert_snapshot!(home.run(&["wait", "1"]).snapshot(), @r#"
    $ pcluster wait 1
    map 1: 1 failed of 3 tasks; see them: pcluster results 1 --failed
    [exit 1]
    "#);
    assert_snapshot!(home.run(&["results", "--pending"]).snapshot(), @r#"
    $ pcluster results --pending
    no task fits
    [exit 0]
    "#);
    assert_snapshot!(home.run(&["stop"]).snapshot(), @r#"
    $ pcluster stop
    profile `default`: stopped, with 1 engine
    [exit 0]
    "#);
    assert_snapshot!(home.run(&["status"]).snapshot(), @r#"
    $ pcluster status
    error: no cluster is running in profile `default`: there is no [TEMP]/ipython/profile_default/security/ipcontroller-client.json
    hint: start one: pcluster start -n 4
    hint: or choose another with --profile and --cluster-id; `pcluster list` shows those that run
    [exit 3]
    "#);
}

/// On a terminal of 80 columns no line is longer, and what is only talk stays out of stdout.
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

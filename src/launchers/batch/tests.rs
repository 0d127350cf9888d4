//! Helpers shared by the tests of the rows.
use super::{BatchSystem, CommandOutput, JobId, JobKind, JobRequest, JobRow, JobTarget, Problem, SYSTEMS, TemplateError, by_name, render};
use crate::profile::config::resources::Resources;
use std::path::Path;

/// A request for `n` engines without any resources.
pub(crate) fn engines(n: u32) -> JobRequest {
    JobRequest {
        kind: JobKind::Engines,
        name: "pcluster-mycluster-k3x9".into(),
        profile: "mycluster".into(),
        cluster_id: String::new(),
        n,
        engines_per_job: 1,
        argv: [
            "/opt/pcluster/bin/pcluster",
            "engine",
            "--profile-dir",
            "/home/ada/.ipython/profile_mycluster",
        ]
        .map(String::from)
        .to_vec(),
        cwd: "/home/ada/work".into(),
        script: "/home/ada/.ipython/profile_mycluster/batch/pcluster-mycluster-k3x9.sh".into(),
        log_dir: "/home/ada/.ipython/profile_mycluster/log".into(),
        log_stem: "engines".into(),
        env: Vec::new(),
        resources: Resources::default(),
        handles_sigusr2: true,
        after_term_s: None,
        after_user_s: None,
        mpiexec: vec!["mpiexec".into()],
        per_job_resources: Vec::new(),
    }
}

/// Renders pcluster's own template.
pub(crate) fn rendered(system: &dyn BatchSystem, request: &JobRequest) -> String {
    let template = system.templates(request.kind)[0];
    render(system, template.name, template.text, request).unwrap()
}

/// Recorded output of a command: a file of `tests/fixtures/batch/` whose first line names its
/// source.
pub(crate) fn fixture(name: &str) -> CommandOutput {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/batch").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (head, rest) = text.split_once("--- stdout\n").unwrap();
    let (stdout, stderr) = rest.split_once("--- stderr\n").unwrap();
    assert!(head.starts_with("source: "), "{name}");
    let code = head.lines().find_map(|line| line.strip_prefix("code: ")).unwrap();
    CommandOutput {
        code: Some(code.parse().unwrap()),
        stdout: stdout.into(),
        stderr: stderr.into(),
    }
}

/// One row per line: job, element, status, word, host, exit code, name, reason.
pub(crate) fn shown(rows: &[JobRow]) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or("-".into());
    let line = |row: &JobRow| {
        let element = or_dash(row.element.map(|e| e.to_string()));
        let code = or_dash(row.exit_code.map(|c| c.to_string()));
        let [host, name, reason] = [&row.host, &row.name, &row.reason].map(|text| or_dash(text.clone()));
        format!(
            "{} {element} {:?} [{}] {host} {code} {name}: {reason}",
            row.job, row.status, row.word
        )
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Why a submission failed: the problem and the hint.
pub(crate) fn refused(system: &dyn BatchSystem, name: &str) -> String {
    let failure = system.parse_submit(&fixture(name)).unwrap_err();
    assert!(!failure.message.is_empty());
    format!("{:?}: {}", failure.problem, failure.hint.unwrap_or("-".into()))
}

pub(crate) fn target(job: &str, element: Option<u32>) -> JobTarget {
    JobTarget {
        job: JobId(job.into()),
        element,
    }
}

#[test]
fn each_name_identifies_one_system() {
    for name in SYSTEMS {
        let system = by_name(name).unwrap();
        assert_eq!(system.name(), name);
        for kind in [JobKind::Engines, JobKind::Controller] {
            assert!(!system.templates(kind).is_empty());
        }
    }
    assert!(by_name("local").is_none());
}

#[test]
fn empty_and_arbitrary_output_yields_no_id_and_no_panic() {
    for name in SYSTEMS {
        let system = by_name(name).unwrap();
        for (code, text) in [(Some(0), ""), (Some(0), "hello\n"), (Some(1), ""), (None, "")] {
            let output = CommandOutput {
                code,
                stdout: text.into(),
                stderr: String::new(),
            };
            let failure = system.parse_submit(&output).unwrap_err();
            assert!(!failure.message.is_empty());
            assert_eq!(failure.problem == Problem::NoId, code == Some(0), "{name} {failure:?}");
        }
    }
}

/// Renders all templates of a system.
fn files(system: &dyn BatchSystem, request: &JobRequest) -> Result<Vec<String>, TemplateError> {
    let templates = system.templates(request.kind).iter();
    templates.map(|t| render(system, t.name, t.text, request)).collect()
}

#[test]
fn every_setting_appears_in_the_script_or_is_rejected() {
    type Change<'a> = &'a dyn Fn(&mut Resources);
    let set: [(&str, Change); 18] = [
        ("queue", &|r| r.queue = Some("needle".into())),
        ("account", &|r| r.account = Some("needle".into())),
        ("qos", &|r| r.qos = Some("needle".into())),
        ("walltime", &|r| r.walltime = Some("12:34:00".parse().unwrap())),
        ("memory", &|r| r.memory = Some("777M".parse().unwrap())),
        ("cpus", &|r| r.cpus = Some(13)),
        ("gpus", &|r| r.gpus = Some(3)),
        ("nodes", &|r| r.nodes = Some(2)),
        ("constraint", &|r| r.constraint = Some("needle".into())),
        ("parallel_environment", &|r| r.parallel_environment = Some("needle".into())),
        ("reservation", &|r| r.reservation = Some("needle".into())),
        ("mail_user", &|r| r.mail_user = Some("needle".into())),
        ("mail_type", &|r| r.mail_type = Some("needle".into())),
        ("directives", &|r| r.directives = vec!["-needle".into()]),
        ("modules", &|r| r.modules = vec!["needle".into()]),
        ("before", &|r| r.before = vec!["needle".into()]),
        ("env", &|r| drop(r.env.insert("NEEDLE".into(), "needle".into()))),
        ("engines_per_job", &|_| {}),
    ];
    for system in SYSTEMS.iter().filter_map(|name| by_name(name)) {
        let plain = files(system, &engines(6)).unwrap();
        for (key, change) in &set {
            let mut request = engines(6);
            change(&mut request.resources);
            if *key == "engines_per_job" {
                request.engines_per_job = 4;
            }
            match files(system, &request) {
                Ok(changed) => assert_ne!(changed, plain, "{}: {key} is without effect", system.name()),
                Err(e) => {
                    assert!(matches!(e, TemplateError::Unsupported { .. }), "{}: {key}: {e}", system.name());
                    assert!(e.hint().is_some());
                }
            }
        }
    }
}

/// 1 to 1000 engines are one submission.
#[test]
fn any_number_of_engines_is_one_submission() {
    for system in SYSTEMS.iter().filter_map(|name| by_name(name)) {
        for (n, per_job, jobs) in [(1, 1, 1), (1, 8, 1), (15, 1, 15), (15, 4, 4), (1000, 1, 1000), (1000, 64, 16)] {
            let mut request = engines(n);
            request.engines_per_job = per_job;
            assert_eq!(request.jobs(), jobs);
            let script = files(system, &request).unwrap().join("\n");
            let array = match system.name() {
                "slurm" => format!("--array=1-{jobs}"),
                "sge" => format!("-t 1-{jobs}"),
                "pbs" if jobs == 1 => "select=1".into(),
                "pbs" => format!("-J 1-{jobs}"),
                "lsf" => format!("[1-{jobs}]"),
                _ => format!("queue {jobs}"),
            };
            assert!(script.contains(&array), "{}: {array} is not in {script}", system.name());
        }
    }
}

mod quoting {
    use super::*;
    use proptest::prelude::*;

    /// Runs a script with `sh`. Its command prints its arguments and part of its environment, each
    /// after a NUL.
    fn message_of(system: &'static dyn BatchSystem, argv: Vec<String>, value: &str) -> Vec<String> {
        let mut request = engines(1);
        let printer = ["/bin/sh", "-c", "printf '%s\\0' \"$@\" \"$NEEDLE\"", "x"].map(String::from);
        request.argv = printer.into_iter().chain(argv).collect();
        request.resources.env.insert("NEEDLE".into(), value.into());
        let templates = system.templates(JobKind::Engines);
        let shell = templates.iter().find(|t| t.name.ends_with(".sh.tera")).unwrap();
        // Print to the test instead of a log file.
        let text = shell
            .text
            .lines()
            .filter(|line| !line.starts_with("exec >>") && !line.starts_with("cd "));
        let script = render(system, shell.name, &text.collect::<Vec<_>>().join("\n"), &request).unwrap();
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", &script, "script", "7", "0"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}\n{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.strip_suffix('\0').unwrap().split('\0').map(String::from).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// The engine receives every argument unchanged, whatever it contains: blanks, quotes, `$`,
        /// line breaks, other scripts.
        #[test]
        fn arguments_pass_unchanged_through_the_script_and_the_shell(
            words in proptest::collection::vec("[a\"'$`\\\\ #*?!{}%~;&|<>()\n\t=üλ-]{0,12}", 0..4),
            value in "[a\"'$`\\\\ #*?!{}%~;&|<>()\n\t=üλ-]{0,12}",
            which in 0..SYSTEMS.len(),
        ) {
            let system = by_name(SYSTEMS[which]).unwrap();
            let mut expected = words.clone();
            expected.push(value.clone());
            prop_assert_eq!(message_of(system, words, &value), expected);
        }
    }

    #[test]
    fn a_line_break_cannot_add_a_directive() {
        for system in SYSTEMS.iter().filter_map(|name| by_name(name)) {
            let mut request = engines(3);
            request.resources.account = Some("pi\n#SBATCH --uid=0".into());
            let error = files(system, &request).unwrap_err();
            assert!(matches!(error, TemplateError::InvalidValue { .. }), "{}: {error}", system.name());
            let mut request = engines(3);
            request.resources.directives = vec!["-x\nrm -rf /".into()];
            assert!(matches!(files(system, &request).unwrap_err(), TemplateError::InvalidValue { .. }));
        }
    }

    #[test]
    fn shell_braces_are_preserved() {
        let own = "#!/bin/sh\n#SBATCH --array={{ array }}\nx=${PATH%%:*} y=${#x} z=\"${x:-{}}\"\n{{ engines }}\n";
        let script = render(by_name("slurm").unwrap(), "engines.sh.tera", own, &engines(2)).unwrap();
        assert!(script.contains("x=${PATH%%:*} y=${#x} z=\"${x:-{}}\"\n"), "{script}");
    }
}

#[test]
fn conditions_choose_lines_by_the_values_of_variables() {
    let own = "#!/bin/sh\n#SBATCH -a {{ array }}\n{% if n > 64 and not queue %}\n#SBATCH -p wide\n{% elif queue %}\n#SBATCH -p {{ queue }}\n\
               {% endif %}\n#SBATCH --mem={% if jobs == 2 %}1G{% else %}8G{% endif %}\n{% raw %}\nprintf '{%s}' \"${x%}\" \"${#x}\"\n{% endraw %}\n\
               {% if modules %}\nmodule purge\n{% endif %}\n{{ engines }}\n";
    let slurm = by_name("slurm").unwrap();
    let script = |n: u32, queue: Option<&str>| {
        let mut request = engines(n);
        request.resources.queue = queue.map(String::from);
        let script = render(slurm, "mine.sh", own, &request).unwrap();
        script.lines().take(5).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(script(65, None), @r##"
    #!/bin/sh
    #SBATCH -a 1-65
    #SBATCH -p wide
    #SBATCH --mem=8G
    printf '{%s}' "${x%}" "${#x}"
    "##);
    insta::assert_snapshot!(script(2, Some("a b")), @r##"
    #!/bin/sh
    #SBATCH -a 1-2
    #SBATCH -p "a b"
    #SBATCH --mem=1G
    printf '{%s}' "${x%}" "${#x}"
    "##);
    let error = |text: &str| render(slurm, "mine.sh", text, &engines(2)).unwrap_err().to_string();
    insta::assert_snapshot!(error("{{ engines }}\n{% if ngpus %}\n{% endif %}\n"), @"mine.sh:2: unknown variable `ngpus`");
    insta::assert_snapshot!(error("{{ engines }}\n\n{% if gpus %}\n"), @"mine.sh:4: Unexpected end of input");
    insta::assert_snapshot!(error("{% if gpus %}\n\n{% endif %}\n\n#SBATCH {{ nope }}\n"), @"mine.sh:5: unknown variable `nope`");
    insta::assert_snapshot!(error("{% include \"/etc/passwd\" %}\n"), @"mine.sh:1: Unknown template `/etc/passwd`");
}

#[test]
fn errors_of_incomplete_templates_suggest_the_line_to_add() {
    let system = by_name("slurm").unwrap();
    let error = |text: &str, request: &JobRequest| {
        let e = render(system, "mine.sh", text, request).unwrap_err();
        format!("{e}\nhint: {}", e.hint().unwrap_or_default())
    };
    let mut many = engines(8);
    many.engines_per_job = 4;
    insta::assert_snapshot!(error("#!/bin/sh\n#SBATCH --array={{ array }}\necho\n", &engines(2)), @r"
    mine.sh: the command of the engine is missing
    hint: add this line: {{ engines }}
    ");
    insta::assert_snapshot!(error("#!/bin/sh\n{{ engines }}\n", &engines(2)), @r"
    mine.sh: the line that makes the job an array is missing
    hint: add this line: #SBATCH --array={{ array }}
    ");
    insta::assert_snapshot!(error("#!/bin/sh\n#SBATCH --array={{ array }}\nexec {{ command }}\n", &many), @r"
    mine.sh: the lines that start the engines is missing
    hint: add this line: {{ engines }}
    ");
    insta::assert_snapshot!(error("#!/bin/sh\n#SBATCH --array={{ arry }}\n", &engines(2)), @r"
    mine.sh:2: unknown variable `arry`
    hint: known variables: name, profile, cluster_id, version, n, jobs, engines_per_job, array, tasks, engines, controller, command, script, cwd, log, queue, account, qos, walltime, memory, mem_free, memory_per_slot, cpus, gpus, gpu, nodes, resources, constraint, parallel_environment, reservation, mail_user, mail_type, directives, environment, modules, before; `pcluster template list` describes them
    ");
    insta::assert_snapshot!(error("#!/bin/sh\n#SBATCH --array={{ array\n", &engines(2)), @r"
    mine.sh:2: Unexpected end of input
    hint: write a variable as {{ name }}, a condition as {% if name %} … {% endif %}; {% raw %} … {% endraw %} is copied unchanged
    ");
    let mut spaced = engines(2);
    spaced.cwd = "/home/ada/my work".into();
    insta::assert_snapshot!(error("#SBATCH -a 1-2\ncd \"{{ cwd }}\"\n{{ engines }}\n", &spaced), @r"
    mine.sh:2: `{{ cwd }}` is inside quotes, but its value '/home/ada/my work' is already quoted
    hint: remove the quotes
    ");
    let mut set = engines(2);
    set.resources.queue = Some("long".into());
    insta::assert_snapshot!(error("#SBATCH -a {{ array }}\n{{ engines }}\n", &set), @r"
    mine.sh: the directive for launchers.slurm.queue is missing
    hint: add this line: #SBATCH --partition={{ queue }}
    ");
    // A hand-written array and the bare command are accepted.
    let own = render(system, "mine.sh", "#!/bin/sh\n#SBATCH -a 1-2\nexec {{ command }}\n", &engines(2)).unwrap();
    assert!(own.ends_with("exec /opt/pcluster/bin/pcluster engine --profile-dir /home/ada/.ipython/profile_mycluster\n"));
}

/// Tests how the shell lines handle signals and exit codes, with a real shell.
mod running {
    use super::*;
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};

    /// For engines that handle only SIGTERM.
    fn script(n: u32, per_job: u32, code: &str) -> String {
        let mut request = engines(n);
        request.handles_sigusr2 = false;
        script_of(request, per_job, ["/bin/sh", "-c", code])
    }

    fn script_of(mut request: JobRequest, per_job: u32, argv: [&str; 3]) -> String {
        request.engines_per_job = per_job;
        request.argv = argv.map(String::from).to_vec();
        let system = by_name("slurm").unwrap();
        let text = "#SBATCH -a {{ array }}\n{{ engines }}\n";
        render(system, "t.sh", text, &request).unwrap()
    }

    #[test]
    fn the_shell_forwards_a_warning_as_one_sigterm_per_engine_and_waits_for_them() {
        let code = "trap 'echo term; exit 0' TERM; echo up; while :; do sleep 0.05; done";
        warn(
            &script(6, 3, code),
            &[("TERM", "term"), ("USR1", "term"), ("USR2", "term"), ("XCPU", "term")],
        );
    }

    #[test]
    fn the_shell_forwards_the_warning_signal_to_engines_that_handle_it() {
        // Written in Python, because a shell cannot trap signals that were ignored when it started.
        // Each message must be a single write, since three processes write at the same time.
        let code = "import os, signal, sys, time\n\
                    def on(text):\n return lambda *_: (os.write(1, text), sys.exit(0))\n\
                    signal.signal(signal.SIGTERM, on(b'term\\n'))\nsignal.signal(signal.SIGUSR2, on(b'warned\\n'))\n\
                    os.write(1, b'up\\n')\nwhile True: time.sleep(0.05)";
        let script = script_of(engines(6), 3, ["python3", "-c", code]);
        warn(
            &script,
            &[("TERM", "term"), ("USR1", "warned"), ("USR2", "warned"), ("XCPU", "warned")],
        );
    }

    /// Sends each signal to the shell, and checks what the three engines print.
    fn warn(script: &str, signals: &[(&str, &str)]) {
        for (signal, expected) in signals {
            let mut child = Command::new("/bin/bash")
                .args(["-c", script])
                .env("PCLUSTER_ELEMENT", "1")
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap());
            for _ in 0..3 {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                assert_eq!(line, "up\n");
            }
            let kill = format!("kill -{signal} {}", child.id());
            // The shell may not have set its second trap yet.
            let asked = Command::new("/bin/sh")
                .args(["-c", &format!("sleep 0.3; {kill}")])
                .status()
                .unwrap();
            assert!(asked.success());
            let mut rest = String::new();
            lines.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, format!("{expected}\n").repeat(3), "{signal}");
            assert!(child.wait().unwrap().success());
        }
    }

    #[test]
    fn the_job_exits_with_the_engines_code_and_the_last_job_has_the_remaining_engines() {
        for (element, starts) in [("1", 4), ("2", 2)] {
            let output = Command::new("/bin/bash")
                .args(["-c", &script(6, 4, "echo x; exit 3")])
                .env("PCLUSTER_ELEMENT", element)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(3));
            assert_eq!(String::from_utf8_lossy(&output.stdout), "x\n".repeat(starts));
        }
    }

    /// Runs a job with these setup lines in the given shell, as a script file; returns its exit
    /// code and output.
    fn set_up(shell: &str, before: &[&str]) -> (Option<i32>, String) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("odd"),
            "inside() { false; return 3; }\nfalse\ninside\n[ -n '' ]\ntrue\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("bad"), "echo no licence >&2\nreturn 4\n").unwrap();
        let mut request = engines(1);
        request.resources.before = before.iter().map(|line| line.to_string()).collect();
        request.argv = ["echo", "started"].map(String::from).to_vec();
        let system = by_name("slurm").unwrap();
        let text = "#SBATCH -a {{ array }}\n{{ environment }}\n{{ before }}\n{{ engines }}\n";
        let script = render(system, "t.sh", text, &request).unwrap();
        std::fs::write(dir.path().join("script"), script).unwrap();
        let output = Command::new(shell).arg("script").current_dir(dir.path()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    #[test]
    fn a_failing_setup_line_ends_the_job_and_is_reported() {
        let failing: &[(&[&str], i32, &str)] = &[
            (
                &["module() { return 1; }", "module load gcc/12"],
                1,
                "a setup line failed (exit code 1), line L: module load gcc/12",
            ),
            (
                &["source ./bad"],
                4,
                "no licence|a setup line failed (exit code 4), line L: source ./bad",
            ),
            (
                &["if true; then", "  cd /nowhere", "fi"],
                1,
                "a setup line failed (exit code 1), line L: cd /nowhere",
            ),
            (&["X=$(exit 7)"], 7, "a setup line failed (exit code 7), line L: X=$(exit 7)"),
            (
                &["exit 3"],
                3,
                "the script ended before it started anything (exit code 3), after: exit 3",
            ),
            (
                &["exit 0"],
                0,
                "the script ended before it started anything (exit code 0), after: exit 0",
            ),
            (
                &["done"],
                2,
                "syntax error near unexpected token `done'|the script ended before it started anything (exit code 2)",
            ),
        ];
        for (before, code, expected) in failing {
            let (ended, text) = set_up("bash", before);
            assert_eq!(ended, Some(*code), "{before:?} {text}");
            let text = match text.split_once("), line ") {
                Some((before, after)) => format!("{before}), line L{}", after.trim_start_matches(|c: char| c.is_ascii_digit())),
                None => text,
            };
            for part in expected.split('|') {
                assert!(text.contains(part), "{before:?} {text}");
            }
            assert!(!text.contains("started\n"), "{before:?} {text}");
        }
        let fine: &[&[&str]] = &[
            &[],
            &["source ./odd"],
            &["module() { false; true; }", "module load x"],
            &[
                "false || true",
                "test -d /nowhere && cd /nowhere",
                "if false; then :; fi",
                "false | true",
            ],
            &["for x in 1 2; do", "  test $x = 3 || continue", "done", "! false"],
            &["unset HOME", "echo ${NOT_SET} > /dev/null"],
        ];
        for before in fine {
            assert_eq!(set_up("bash", before), (Some(0), "started\n".into()), "{before:?}");
        }
        // A user's template for another shell has no such trap, and works.
        assert_eq!(set_up("sh", &[]), (Some(0), "started\n".into()));
    }

    #[test]
    fn module_is_defined_in_non_login_shells() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("init")).unwrap();
        std::fs::write(dir.path().join("init/bash"), "module() { echo \"$@\"; }\n").unwrap();
        let mut request = engines(1);
        request.resources.modules = vec!["gcc/12".into()];
        request.argv = vec!["true".into()];
        let text = "#SBATCH -a {{ array }}\n{{ environment }}\n{{ modules }}\n{{ engines }}\n";
        let script = render(by_name("slurm").unwrap(), "t.sh", text, &request).unwrap();
        // Pretend that the site's own files do not exist.
        let script = script.replace("/etc/profile.d/", "/nowhere/");
        let output = Command::new("bash")
            .args(["-c", &script])
            .env("MODULESHOME", dir.path())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "load gcc/12\n", "{output:?}");
    }
}

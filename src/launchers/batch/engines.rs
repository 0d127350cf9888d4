//! Generates the shell lines that start the job's engines or its controller.
use super::JobKind;
use super::request::JobRequest;
use super::template::{FoundBy, Requirement};
use crate::model::shell::{quoted, quoted_words};
use crate::profile::config::resources::StartMode;

/// Each process is a child of the script's shell. The shell forwards the batch system's warning
/// signals to its children (as SIGTERM if they handle no other) and waits for them. Several engines
/// run in parallel.
pub(crate) fn lines(request: &JobRequest) -> Vec<String> {
    let command = quoted_words(&request.argv);
    let (count, last) = match request.is_one_job() {
        true => (1, None),
        false => (request.engines_in_a_job(), last_job_engines(request)),
    };
    let command = match request.resources.start {
        StartMode::Array => command,
        _ if !request.is_one_job() => command,
        StartMode::Srun => format!("srun --ntasks={} --export=ALL --kill-on-bad-exit=0 --wait=0 {command}", request.n),
        StartMode::Mpiexec => format!("{} -n {} {command}", quoted_words(&request.mpiexec), request.n),
    };
    let mut lines = vec![
        DISARM.to_string(),
        "# A batch system may signal the whole process group before it kills; only the shell handles it.".to_string(),
        "trap '' USR1 USR2 XCPU".into(),
        "started=".into(),
    ];
    if count == 1 {
        lines.extend([format!("{command} &"), "started=$!".into()]);
    } else {
        lines.push(format!("count={count}"));
        if let Some(last) = last {
            lines.push(format!("if [ \"$PCLUSTER_ELEMENT\" = {} ]; then count={last}; fi", request.jobs()));
        }
        lines.extend(["while [ \"$count\" -gt 0 ]; do".into(), format!("    {command} &")]);
        lines.extend(["    started=\"$started $!\"", "    count=$((count - 1))", "done"].map(String::from));
    }
    let traps: &[&str] = match request.handles_sigusr2 {
        // The children do not all exit at the same time.
        true => &[
            "trap 'kill -TERM $started 2>/dev/null' TERM INT",
            "trap 'kill -USR2 $started 2>/dev/null' USR1 USR2 XCPU",
        ],
        false => &["trap 'kill -TERM $started 2>/dev/null' TERM INT USR1 USR2 XCPU"],
    };
    lines.extend(traps.iter().map(|line| line.to_string()));
    let waiting = [
        "status=0",
        "for process in $started; do",
        "    wait \"$process\"; code=$?",
        "    # A signal interrupts the wait, not the process. Some shells forget a status that was already returned (127).",
        "    while [ \"$code\" -gt 128 ]; do",
        "        wait \"$process\" 2>/dev/null; again=$?",
        "        [ \"$again\" != 127 ] || break",
        "        [ \"$again\" != \"$code\" ] || kill -0 \"$process\" 2>/dev/null || break",
        "        code=$again",
        "    done",
        "    [ \"$code\" = 0 ] || status=$code",
        "done",
        "exit \"$status\"",
    ];
    lines.extend(waiting.map(String::from));
    lines
}

/// The number of engines in the last job if it is not full.
fn last_job_engines(request: &JobRequest) -> Option<u32> {
    let (jobs, each) = (request.jobs(), request.engines_in_a_job());
    let last = request.n.saturating_sub(jobs.saturating_sub(1) * each);
    (jobs > 1 && last != each).then_some(last)
}

/// `export NAME='value'` for the variables of the settings and of the request (the request wins),
/// and the two variables that identify the job to an engine. `job` and `element` are shell
/// expressions.
pub(crate) fn environment(request: &JobRequest, job: &str, element: &str) -> Vec<String> {
    let mut all = request.resources.env.clone();
    all.extend(request.env.iter().cloned());
    let mut lines: Vec<String> = all.iter().map(|(name, value)| format!("export {name}={}", quoted(value))).collect();
    // How many engines share a job with several nodes is not known here.
    let engines = request
        .is_array()
        .then(|| format!(" PCLUSTER_ENGINES={}", request.engines_in_a_job()));
    let engines = engines.unwrap_or_default();
    lines.push(format!("export PCLUSTER_JOB=\"{job}\" PCLUSTER_ELEMENT=\"{element}\"{engines}"));
    if let Some(walltime) = request.resources.walltime {
        // Engines leave before the limit, including replacements started in the same job.
        lines.push(format!("export PCLUSTER_ENDS=\"$(($(date +%s) + {}))\"", walltime.seconds));
    }
    for (name, seconds) in [("AFTER_TERM", request.after_term_s), ("AFTER_USR", request.after_user_s)] {
        // A task that is running at that moment may use the remaining time.
        lines.extend(seconds.map(|seconds| format!("export PCLUSTER_{name}={seconds}")));
    }
    let setup = [&request.resources.modules, &request.resources.before].into_iter().flatten();
    if !request.resources.modules.is_empty() || setup.clone().any(|line| uses_modules(line)) {
        lines.extend(MODULES.map(String::from));
    }
    lines.extend(ARM.map(String::from));
    lines
}

/// Between here and [`DISARM`], a command that fails at the top level of the script ends the job
/// and is reported. Inside functions and sourced files only the resulting status counts. A user's
/// template may use another shell, which has no ERR trap.
const ARM: [&str; 11] = [
    "# A failing setup line ends the job and is reported.",
    r#"if [ -n "$BASH_VERSION" ]; then"#,
    "    pcluster_script=${BASH_SOURCE[0]-}",
    "    pcluster_failed() {",
    "        trap - ERR EXIT",
    r#"        echo "pcluster: a setup line failed (exit code $1), line $2: $(sed -n "$2{s/^ *//;p}" "$pcluster_script" 2> /dev/null || echo "$3")" >&2"#,
    r#"        exit "$1""#,
    "    }",
    r#"    trap 'pcluster_status=$?; [ "${BASH_SOURCE[0]-}" != "$pcluster_script" ] || pcluster_failed "$pcluster_status" "$LINENO" "$BASH_COMMAND"' ERR"#,
    r#"    trap 'echo "pcluster: the script ended before it started anything (exit code $?), after: $BASH_COMMAND" >&2' EXIT"#,
    "fi",
];
const DISARM: &str = r#"[ -z "$BASH_VERSION" ] || trap - ERR EXIT"#;

/// Login shells define `module`. Jobs do not run in a login shell, because its other settings
/// (PATH) would override the job's.
const MODULES: [&str; 7] = [
    "# A non-login shell may not define `module`.",
    "if ! type module > /dev/null 2>&1; then",
    "    for file in /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh \\",
    r#"        "${MODULESHOME:-/usr/share/modules}/init/bash" "${LMOD_PKG:-/usr/share/lmod/lmod}/init/bash"; do"#,
    r#"        if [ -r "$file" ]; then . "$file"; break; fi"#,
    "    done",
    "fi",
];

fn uses_modules(line: &str) -> bool {
    line.split_whitespace().any(|word| matches!(word, "module" | "ml"))
}

/// The one thing that every template must contain.
pub(crate) fn requirement(request: &JobRequest) -> Requirement {
    let (what, names, line): (_, &'static [&'static str], _) = match request.kind {
        JobKind::Controller => ("the command of the controller", &["controller", "command"], "{{ controller }}"),
        // A single command would start a single engine.
        JobKind::Engines if request.is_one_job() || request.engines_in_a_job() > 1 => {
            ("the lines that start the engines", &["engines"], "{{ engines }}")
        }
        JobKind::Engines => ("the command of the engine", &["engines", "command"], "{{ engines }}"),
    };
    Requirement {
        what: what.into(),
        found_by: FoundBy::Variable(names),
        line: line.into(),
    }
}

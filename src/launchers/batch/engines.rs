//! The shell lines that start the engines of one job.
use super::JobKind;
use super::quote::{shell, shell_words};
use super::render::{FoundBy, Need};
use super::request::JobRequest;
use crate::profile::config::resources::StartMode;

/// One engine takes the shell's place. Several run beside each other, and what signal the shell gets, they get.
pub fn lines(request: &JobRequest) -> Vec<String> {
    let command = shell_words(&request.argv);
    let per_job = request.engines_per_job.max(1);
    if request.is_one_job() {
        let starter = match request.resources.start {
            StartMode::Mpiexec => format!("{} -n {}", shell_words(&request.mpiexec), request.n),
            _ => format!("srun --ntasks={} --kill-on-bad-exit=0 --wait=0", request.n),
        };
        return vec![format!("exec {starter} {command}")];
    }
    if request.kind == JobKind::Controller || per_job == 1 || request.n <= 1 {
        return vec![format!("exec {command}")];
    }
    let (jobs, last) = (request.jobs(), request.n - (request.jobs() - 1) * per_job);
    let mut lines = vec![format!("count={}", per_job.min(request.n))];
    if jobs > 1 && last != per_job {
        lines.push(format!("if [ \"$PCLUSTER_ELEMENT\" = {jobs} ]; then count={last}; fi"));
    }
    lines.extend(
        [
            "engines=",
            "trap 'kill -TERM $engines 2>/dev/null' TERM INT USR1 USR2 XCPU",
            "while [ \"$count\" -gt 0 ]; do",
            &format!("    {command} &"),
            "    engines=\"$engines $!\"",
            "    count=$((count - 1))",
            "done",
            "status=0",
            "for engine in $engines; do",
            "    # A signal ends the waiting, not the engine.",
            "    while kill -0 \"$engine\" 2>/dev/null; do",
            "        wait \"$engine\" || status=$?",
            "    done",
            "done",
            "exit \"$status\"",
        ]
        .map(String::from),
    );
    lines
}

/// `export NAME='value'` for the settings' and the request's variables (which win), and the two that tell an engine which job it is in.
pub fn environment(request: &JobRequest, job: &str, element: &str) -> Vec<String> {
    let mut all = request.resources.env.clone();
    all.extend(request.env.iter().cloned());
    let mut lines: Vec<String> = all.iter().map(|(name, value)| format!("export {name}={}", shell(value))).collect();
    lines.push(format!("export PCLUSTER_JOB=\"{job}\" PCLUSTER_ELEMENT=\"{element}\""));
    lines
}

/// Whatever else a template leaves out, this it must have.
pub fn need(request: &JobRequest) -> Need {
    let (what, names, line): (_, &'static [&'static str], _) = match request.kind {
        JobKind::Controller => ("the command of the controller", &["controller", "command"], "{{ controller }}"),
        // One command alone would be one engine.
        JobKind::Engines if request.is_one_job() || request.engines_in_a_job() > 1 => {
            ("the start of the engines", &["engines"], "{{ engines }}")
        }
        JobKind::Engines => ("the command of the engine", &["engines", "command"], "{{ engines }}"),
    };
    Need {
        what: what.into(),
        found_by: FoundBy::Variable(names),
        line: line.into(),
    }
}

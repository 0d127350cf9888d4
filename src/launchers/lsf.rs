//! LSF. Sources: the pages of bsub, bjobs and bkill in the IBM Spectrum LSF 10.1 command reference,
//! and recorded outputs (tests/fixtures/batch/lsf names their sources). Not tested with a real LSF.
use super::batch::environment::Rule;
use super::batch::render::{
    FoundBy, Requirement, VariableValue, Variables, common, invalid_value, nodes_are_of_one_job, set_variables, unsupported,
};
use super::batch::{
    BatchSystem, CommandLine, CommandOutput, EnvironmentRules, JobId, JobKind, JobRequest, JobRow, JobStatus, JobTarget, KillWait, Problem,
    QueryFailure, SubmitFailure, Template, TemplateError, engines, failure,
};
use crate::profile::config::resources::StartMode;
use std::path::{Path, PathBuf};

pub(crate) struct Lsf;

/// The fields of bjobs, separated by a character that no name contains; the name is last
/// nevertheless.
const FIELDS: &str = "jobid jobindex stat first_host exit_code exit_reason pend_reason job_name delimiter='|'";

/// Lower-case text of its errors and what it indicates.
const FAILURES: &[(&str, Problem, &str)] = &[
    (
        "no such queue",
        Problem::NoSuchQueue,
        "`bqueues` lists the queues; name one with --queue or launchers.lsf.queue",
    ),
    (
        "no such project",
        Problem::NoSuchAccount,
        "choose one of your projects with --account or launchers.lsf.account",
    ),
    (
        "bad project",
        Problem::NoSuchAccount,
        "choose one of your projects with --account or launchers.lsf.account",
    ),
    ("advance reservation", Problem::NoSuchQueue, "`brsvs` lists the reservations"),
    (
        "too many processors",
        Problem::Limit,
        "`bhosts` shows the hosts' processors, `bqueues -l` the queues' limits",
    ),
    (
        "cannot exceed queue",
        Problem::Limit,
        "`bqueues -l` shows the queues' limits; request less, or use another queue",
    ),
    (
        "job limit",
        Problem::Limit,
        "`busers` shows your job limit; --engines-per-job reduces the number of jobs",
    ),
    (
        "job array index too large",
        Problem::Limit,
        "reduce the number of jobs with --engines-per-job; the site's limit is MAX_JOB_ARRAY_SIZE",
    ),
    (
        "cannot use the queue",
        Problem::NoPermission,
        "`bqueues -u $USER` lists the queues that you may use",
    ),
    (
        "permission denied",
        Problem::NoPermission,
        "ask your site's administrators which queues you may use",
    ),
    (
        "non-lsf host rejected",
        Problem::NoPermission,
        "this host may not submit jobs; run this on a login node of the cluster",
    ),
    (
        "batch daemon not responding",
        Problem::SchedulerDown,
        "`badmin showstatus` and `lsid` show whether LSF is up",
    ),
    ("lsf is down", Problem::SchedulerDown, "`lsid` shows whether LSF is up"),
    (
        "failed in an lsf library call",
        Problem::SchedulerDown,
        "`lsid` shows whether LSF is up",
    ),
    ("lsf daemon", Problem::SchedulerDown, "`lsid` shows whether LSF is up"),
    (
        "lsf.conf",
        Problem::NoCommand,
        "LSF's settings are not loaded: run `. <LSF>/conf/profile.lsf`, or load the site's module",
    ),
    (
        "illegal option",
        Problem::BadScript,
        "check the script's #BSUB lines and launchers.lsf.directives",
    ),
    (
        "section",
        Problem::BadScript,
        "check the script's -R lines, launchers.lsf.constraint and launchers.lsf.directives",
    ),
    (
        "resource requirement",
        Problem::BadScript,
        "check the script's -R lines, launchers.lsf.constraint and launchers.lsf.directives",
    ),
    (
        "bad ",
        Problem::BadScript,
        "check the script's #BSUB lines and launchers.lsf.directives",
    ),
];

impl BatchSystem for Lsf {
    fn name(&self) -> &'static str {
        "lsf"
    }
    fn title(&self) -> &'static str {
        "LSF"
    }
    fn templates(&self, kind: JobKind) -> &'static [Template] {
        match kind {
            JobKind::Controller => &[Template {
                name: "controller.sh.tera",
                text: include_str!("../../templates/lsf/controller.sh.tera"),
            }],
            JobKind::Engines => &[Template {
                name: "engines.sh.tera",
                text: include_str!("../../templates/lsf/engines.sh.tera"),
            }],
        }
    }
    fn directive_prefix(&self) -> &'static str {
        "#BSUB"
    }

    /// bsub parses a directive like a shell, but expands nothing: a double-quoted string cannot
    /// contain a double quote.
    fn quote_directive(&self, name: &str, value: &str) -> Result<String, TemplateError> {
        if value.contains(['"', '\\', '`', '$']) {
            return Err(invalid_value(
                self.title(),
                name,
                value,
                "it contains a double quote, `\\`, `$` or a backtick",
            ));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,@%".contains(c);
        match !value.is_empty() && value.chars().all(plain) {
            true => Ok(value.to_string()),
            false => Ok(format!("\"{value}\"")),
        }
    }

    fn variables(&self, request: &JobRequest) -> Result<Variables, TemplateError> {
        let resources = &request.resources;
        unsupported(self, request, &[("parallel_environment", resources.parallel_environment.is_some())])?;
        nodes_are_of_one_job(self, request, "mpiexec")?;
        let one_job = request.is_one_job();
        if one_job && resources.start == StartMode::Srun {
            return Err(TemplateError::Unsupported {
                system: self.title(),
                what: "srun".into(),
                hint: Some("set launchers.lsf.start to mpiexec for one job of all engines, or to array".into()),
            });
        }
        if request.log_dir.to_string_lossy().contains('%') {
            return Err(invalid_value(
                self.title(),
                "log",
                &request.log_dir.to_string_lossy(),
                "`%` has a special meaning in LSF's file names",
            ));
        }
        let is_array = request.kind == JobKind::Engines && !one_job;
        let here = if one_job { 1 } else { request.engines_in_a_job() };
        let cpus = resources.cpus.unwrap_or(1).max(1) * here;
        let slots = if one_job { request.n * cpus } else { cpus };
        let mut wanted = Vec::new();
        match (one_job, resources.nodes) {
            (true, Some(nodes)) => wanted.push(format!("span[ptile={}]", slots.div_ceil(nodes.max(1)))),
            (true, None) if cpus > 1 => wanted.push(format!("span[ptile={cpus}]")),
            (true, None) => {}
            _ => wanted.push("span[hosts=1]".into()),
        }
        // LSF reserves memory per host of a job. The unit is MB, unless the site has chosen another
        // one (LSF_UNIT_FOR_LIMITS).
        if let Some(each) = resources.memory {
            wanted.push(format!("rusage[mem={}]", each.mib() * u64::from(here)));
        }
        if let Some(constraint) = &resources.constraint {
            wanted.push(format!("select[{constraint}]"));
        }
        let quoted: Result<Vec<String>, TemplateError> = wanted.iter().map(|text| self.quote_directive("constraint", text)).collect();
        let log = request.log_dir.join(&request.log_stem).to_string_lossy().into_owned();
        let mut variables = common(request);
        set_variables(
            &mut variables,
            [
                (
                    "array",
                    if is_array {
                        VariableValue::Text(format!("{}[1-{}]", request.name, request.jobs()))
                    } else {
                        VariableValue::Unset
                    },
                ),
                (
                    "single",
                    if is_array {
                        VariableValue::Unset
                    } else {
                        VariableValue::Text(request.name.clone())
                    },
                ),
                (
                    "tasks",
                    if one_job {
                        VariableValue::Text(request.n.to_string())
                    } else {
                        VariableValue::Unset
                    },
                ),
                ("cpus", VariableValue::Text(slots.to_string())),
                (
                    "gpus",
                    resources
                        .gpus
                        .map_or(VariableValue::Unset, |each| VariableValue::Text(format!("num={}", each * here))),
                ),
                ("resources", VariableValue::Lines(quoted?)),
                // Hours and minutes.
                (
                    "walltime",
                    resources.walltime.map_or(VariableValue::Unset, |time| {
                        let minutes = time.seconds.div_ceil(60);
                        VariableValue::Text(format!("{}:{:02}", minutes / 60, minutes % 60))
                    }),
                ),
                // `-B` and `-N` are options without a value.
                (
                    "mail_type",
                    resources
                        .mail_type
                        .clone()
                        .map_or(VariableValue::Unset, |options| VariableValue::Lines(vec![options])),
                ),
                (
                    "log",
                    VariableValue::Text(format!("{log}-{}", if is_array { "%J.%I.log" } else { "%J.log" })),
                ),
                // Outside an array the index is 0.
                (
                    "environment",
                    VariableValue::Lines(engines::environment(request, "$LSB_JOBID", "${LSB_JOBINDEX#0}")),
                ),
            ],
        );
        Ok(variables)
    }

    fn requirements(&self, _template: &str, request: &JobRequest) -> Vec<Requirement> {
        let mut requirements = vec![engines::requirement(request)];
        if request.kind == JobKind::Engines && !request.is_one_job() {
            requirements.push(Requirement {
                what: "the line that makes the job an array".into(),
                found_by: FoundBy::Variable(&["array"]),
                line: "#BSUB -J {{ array }}".into(),
            });
        }
        requirements
    }

    fn log_path(&self, request: &JobRequest, job: &JobId, element: Option<u32>) -> PathBuf {
        let name = match element {
            Some(element) => format!("{}-{job}.{element}.log", request.log_stem),
            None => format!("{}-{job}.log", request.log_stem),
        };
        request.log_dir.join(name)
    }

    /// bsub reads the script and its directives only from stdin.
    fn submit_command(&self, _script: &Path, text: &str, _request: &JobRequest) -> CommandLine {
        CommandLine {
            program: "bsub".into(),
            stdin: Some(text.into()),
            ..CommandLine::default()
        }
    }

    fn parse_submit(&self, output: &CommandOutput) -> Result<JobId, SubmitFailure> {
        // A site's esub may print more, on either stream.
        let id = output.stdout.lines().chain(output.stderr.lines()).find_map(|line| {
            let (_, after) = line.split_once("Job <")?;
            let (id, after) = after.split_once('>')?;
            (after.contains("is submitted") && !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit())).then(|| JobId(id.into()))
        });
        match (id, output.is_success()) {
            (Some(id), true) => Ok(id),
            (None, true) => Err(failure::no_id(output, "`bjobs` shows whether the job exists")),
            (_, false) => Err(failure::of_submit(output, FAILURES)),
        }
    }

    /// IBM Spectrum LSF 10.1, "Environment variables": `BSUB_BLOCK` waits for the job's end,
    /// `BSUB_CHK_RESREQ` does not submit, `BSUB_QUIET` suppresses the job id. Defaults
    /// (`LSB_DEFAULTQUEUE`, …) apply only to options missing from the script, and stay.
    fn environment(&self) -> EnvironmentRules {
        EnvironmentRules {
            submissions: Rule {
                removed: &["BSUB_*"],
                kept: &[],
            },
            queries: Rule {
                removed: &["BSUB_*", "LSB_BJOBS_*", "LSB_DISPLAY_*", "LSB_SHORT_HOSTLIST", "LSB_SUBK_*"],
                kept: &[],
            },
            options: &[],
        }
    }

    fn query_command(&self, _jobs: &[JobId], user: &str) -> CommandLine {
        CommandLine::new("bjobs", ["-a", "-u", user, "-noheader", "-o", FIELDS])
    }

    fn parse_query(&self, output: &CommandOutput) -> Result<Vec<JobRow>, QueryFailure> {
        let message = output.message().to_lowercase();
        let nothing = ["no job found", "no unfinished job", "is not found", "no matching job"];
        if output.is_success() || nothing.iter().any(|words| message.contains(words)) {
            return Ok(output.stdout.lines().filter_map(row).collect());
        }
        Err(failure::of_query(output, FAILURES))
    }

    fn find_command(&self, name: &str, user: &str) -> CommandLine {
        CommandLine::new("bjobs", ["-a", "-u", user, "-J", name, "-noheader", "-o", FIELDS])
    }

    /// lsb.params(5), JOB_TERMINATE_INTERVAL: 10 s between SIGTERM and SIGKILL; bsub(1), -W:
    /// SIGUSR2 is sent ten minutes before the end.
    fn kill_wait(&self) -> KillWait {
        KillWait {
            term_s: Some(10),
            user_s: Some(600),
        }
    }

    fn cancel_command(&self, targets: &[JobTarget]) -> CommandLine {
        CommandLine::new("bkill", targets.iter().map(target))
    }

    fn parse_cancel(&self, output: &CommandOutput) -> Result<(), QueryFailure> {
        let message = output.message();
        let fine = |line: &str| {
            let line = line.to_lowercase();
            let words = [
                "being terminated",
                "being signaled",
                "already finished",
                "is not found",
                "no matching job",
                "will be terminated",
            ];
            words.iter().any(|words| line.contains(words))
        };
        match output.is_success() || (!message.is_empty() && message.lines().all(fine)) {
            true => Ok(()),
            false => Err(failure::of_query(output, FAILURES)),
        }
    }
}

fn target(target: &JobTarget) -> String {
    match target.element {
        Some(element) => format!("{}[{element}]", target.job),
        None => target.job.0.clone(),
    }
}

/// Parses a line of [`FIELDS`].
fn row(line: &str) -> Option<JobRow> {
    let mut fields = line.trim().splitn(8, '|').map(str::trim);
    let (job, index, word) = (fields.next()?, fields.next()?, fields.next()?);
    if job.is_empty() || !job.bytes().all(|b| b.is_ascii_digit()) || word.is_empty() {
        return None;
    }
    let present = |text: Option<&str>| text.filter(|t| !matches!(*t, "" | "-")).map(str::to_string);
    let host = present(fields.next());
    let exit_code = fields.next().and_then(|code| code.parse().ok());
    let (exit_reason, pend_reason) = (present(fields.next()), present(fields.next()));
    // `name[3]`
    let name = present(fields.next()).map(|name| name.split('[').next().unwrap_or_default().to_string());
    let element = index.parse().ok().filter(|index| *index > 0);
    let row = JobRow::new(job, element, status(word, exit_code, exit_reason.as_deref()), word);
    Some(
        JobRow {
            host,
            name,
            exit_code,
            ..row
        }
        .with_reason(exit_reason.or(pend_reason)),
    )
}

/// bjobs, "STAT"; a job's end is explained by its termination reason. 130 is the exit code after `bkill`,
/// 140 (128 and SIGUSR2) that of the time limit.
fn status(word: &str, exit_code: Option<i32>, reason: Option<&str>) -> JobStatus {
    let reason_contains = |words: &str| reason.is_some_and(|reason| reason.contains(words));
    match word {
        "PEND" | "WAIT" => JobStatus::Queued,
        "PSUSP" => JobStatus::Held,
        "PROV" => JobStatus::Starting,
        "RUN" => JobStatus::Running,
        "USUSP" | "SSUSP" => JobStatus::Suspended,
        "DONE" => JobStatus::Completed,
        "EXIT" if reason_contains("TERM_RUNLIMIT") || exit_code == Some(140) => JobStatus::TimedOut,
        "EXIT" if reason_contains("TERM_MEMLIMIT") || reason_contains("TERM_SWAP") => JobStatus::OutOfMemory,
        "EXIT" if reason_contains("TERM_PREEMPT") => JobStatus::Preempted,
        "EXIT" if reason_contains("TERM_ZOMBIE") || reason_contains("TERM_CHKPNT_HOST") => JobStatus::NodeFailed,
        "EXIT"
            if reason_contains("TERM_OWNER")
                || reason_contains("TERM_ADMIN")
                || reason_contains("TERM_FORCE")
                || exit_code == Some(130) =>
        {
            JobStatus::Cancelled
        }
        "EXIT" => JobStatus::Failed,
        // The host does not answer, or did not when the job was killed: the outcome is unknown.
        other => JobStatus::Unknown(other.into()),
    }
}

#[cfg(test)]
mod tests;

//! LSF. Sources: the pages of bsub, bjobs and bkill in the IBM Spectrum LSF 10.1 command reference,
//! and recorded outputs (tests/fixtures/batch/lsf names their sources). Not tested with a real LSF.
use super::batch::environment::Rule;
use super::batch::failure::{ErrorPatterns, failures};
use super::batch::render::{common, invalid_value, set_variables};
use super::batch::table::template;
use super::batch::template::{VariableValue, Variables};
use super::batch::{
    BatchSystem, CommandLine, CommandOutput, EnvironmentRules, JobId, JobRequest, JobRow, JobStatus, JobTarget, KillWait, QueryFailure,
    SubmitFailure, SystemTable, TemplateError, failure,
};
use crate::profile::config::resources::StartMode;
use std::path::Path;

pub(crate) struct Lsf;

/// The fields of bjobs, separated by a character that no name contains; the name is last
/// nevertheless.
const FIELDS: &str = "jobid jobindex stat first_host exit_code exit_reason pend_reason job_name delimiter='|'";

/// Lower-case text of its errors and what it indicates.
const FAILURES: &ErrorPatterns = failures! {
    NoSuchQueue: "no such queue" => "`bqueues` lists the queues; name one with --queue or launchers.lsf.queue";
    NoSuchAccount: "no such project" | "bad project" => "choose one of your projects with --account or launchers.lsf.account";
    NoSuchQueue: "advance reservation" => "`brsvs` lists the reservations";
    Limit: "too many processors" => "`bhosts` shows the hosts' processors, `bqueues -l` the queues' limits";
    Limit: "cannot exceed queue" => "`bqueues -l` shows the queues' limits; request less, or use another queue";
    Limit: "job limit" => "`busers` shows your job limit; --engines-per-job reduces the number of jobs";
    Limit: "job array index too large" => "reduce the number of jobs with --engines-per-job; the site's limit is MAX_JOB_ARRAY_SIZE";
    NoPermission: "cannot use the queue" => "`bqueues -u $USER` lists the queues that you may use";
    NoPermission: "permission denied" => "ask your site's administrators which queues you may use";
    NoPermission: "non-lsf host rejected" => "this host may not submit jobs; run this on a login node of the cluster";
    SchedulerDown: "batch daemon not responding" => "`badmin showstatus` and `lsid` show whether LSF is up";
    SchedulerDown: "lsf is down" | "failed in an lsf library call" | "lsf daemon" => "`lsid` shows whether LSF is up";
    NoCommand: "lsf.conf" => "LSF's settings are not loaded: run `. <LSF>/conf/profile.lsf`, or load the site's module";
    BadScript: "illegal option" => "check the script's #BSUB lines and launchers.lsf.directives";
    BadScript: "section" | "resource requirement"
        => "check the script's -R lines, launchers.lsf.constraint and launchers.lsf.directives";
    BadScript: "bad " => "check the script's #BSUB lines and launchers.lsf.directives";
};

static TABLE: SystemTable = SystemTable {
    name: "lsf",
    title: "LSF",
    directive_prefix: "#BSUB",
    controller: &[template!("lsf", "controller.sh.tera")],
    engines: &[template!("lsf", "engines.sh.tera")],
    array: (&[], "#BSUB -J {{ array }}"),
    unsupported: &["parallel_environment"],
    one_job: &[StartMode::Mpiexec],
    log: ["%J.%I.log", "%J.log"],
    log_separator: '.',
    log_has_element: false,
    // Outside an array the index is 0.
    job: ["$LSB_JOBID", "${LSB_JOBINDEX#0}"],
    // IBM Spectrum LSF 10.1, "Environment variables": `BSUB_BLOCK` waits for the job's end, `BSUB_CHK_RESREQ` does not submit,
    // `BSUB_QUIET` suppresses the job id. Defaults (`LSB_DEFAULTQUEUE`, …) apply only to options missing from the script, and stay.
    environment: EnvironmentRules {
        submissions: Rule {
            removed: &["BSUB_*"],
            kept: &[],
        },
        queries: Rule {
            removed: &["BSUB_*", "LSB_BJOBS_*", "LSB_DISPLAY_*", "LSB_SHORT_HOSTLIST", "LSB_SUBK_*"],
            kept: &[],
        },
        options: &[],
    },
    failures: FAILURES,
    no_id: "`bjobs` shows whether the job exists",
    // bjobs, "STAT". An unknown state means that the host does not answer, or did not when the job was killed.
    states: &[
        ("PEND WAIT", JobStatus::Queued),
        ("PSUSP", JobStatus::Held),
        ("PROV", JobStatus::Starting),
        ("RUN", JobStatus::Running),
        ("USUSP SSUSP", JobStatus::Suspended),
        ("DONE", JobStatus::Completed),
        ("EXIT", JobStatus::Failed),
    ],
    cancelled: &[
        "being terminated",
        "being signaled",
        "already finished",
        "is not found",
        "no matching job",
        "will be terminated",
    ],
    // lsb.params(5), JOB_TERMINATE_INTERVAL: 10 s between SIGTERM and SIGKILL; bsub(1), -W: SIGUSR2 is sent ten minutes before
    // the end.
    kill_wait: KillWait {
        term_s: Some(10),
        user_s: Some(600),
    },
};

/// Termination reasons and what they mean; the first match counts.
const REASONS: &[(&str, JobStatus)] = &[
    ("TERM_RUNLIMIT", JobStatus::TimedOut),
    ("TERM_MEMLIMIT", JobStatus::OutOfMemory),
    ("TERM_SWAP", JobStatus::OutOfMemory),
    ("TERM_PREEMPT", JobStatus::Preempted),
    ("TERM_ZOMBIE", JobStatus::NodeFailed),
    ("TERM_CHKPNT_HOST", JobStatus::NodeFailed),
    ("TERM_OWNER", JobStatus::Cancelled),
    ("TERM_ADMIN", JobStatus::Cancelled),
    ("TERM_FORCE", JobStatus::Cancelled),
];

impl BatchSystem for Lsf {
    fn table(&self) -> &'static SystemTable {
        &TABLE
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
        let mut variables = common(&TABLE, request)?;
        let resources = &request.resources;
        let one_job = request.is_one_job();
        if request.log_dir.to_string_lossy().contains('%') {
            return Err(invalid_value(
                self.title(),
                "log",
                &request.log_dir.to_string_lossy(),
                "`%` has a special meaning in LSF's file names",
            ));
        }
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
        let is_array = request.is_array();
        set_variables(
            &mut variables,
            [
                (
                    "array",
                    VariableValue::of(is_array.then(|| format!("{}[1-{}]", request.name, request.jobs()))),
                ),
                ("cpus", VariableValue::Text(slots.to_string())),
                ("gpus", VariableValue::of(resources.gpus.map(|each| format!("num={}", each * here)))),
                ("resources", VariableValue::Lines(quoted?)),
                (
                    "walltime",
                    VariableValue::of(resources.walltime.map(|time| hours_and_minutes(time.seconds))),
                ),
                // `-B` and `-N` are options without a value.
                ("mail_type", VariableValue::Lines(resources.mail_type.iter().cloned().collect())),
            ],
        );
        Ok(variables)
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
            (None, true) => Err(failure::no_id(output, TABLE.no_id)),
            (_, false) => Err(failure::of_submit(output, FAILURES)),
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

    fn cancel_command(&self, targets: &[JobTarget]) -> CommandLine {
        CommandLine::new("bkill", targets.iter().map(target))
    }
}

fn hours_and_minutes(seconds: u64) -> String {
    let minutes = seconds.div_ceil(60);
    format!("{}:{:02}", minutes / 60, minutes % 60)
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

/// A job's end is explained by its termination reason. 130 is the exit code after `bkill`, 140 (128 and SIGUSR2) that of the time limit.
fn status(word: &str, exit_code: Option<i32>, reason: Option<&str>) -> JobStatus {
    let by_reason = REASONS.iter().find(|(text, _)| reason.is_some_and(|reason| reason.contains(text)));
    match (TABLE.status(word), by_reason, exit_code) {
        (JobStatus::Failed, _, Some(140)) => JobStatus::TimedOut,
        (JobStatus::Failed, Some((_, status)), _) => status.clone(),
        (JobStatus::Failed, _, Some(130)) => JobStatus::Cancelled,
        (status, ..) => status,
    }
}

#[cfg(test)]
mod tests;

//! Slurm's commands for jobs, shared by the two ways of submitting: sbatch, and Slurm's `qsub`.
//! Sources: squeue(1), scancel(1) of Slurm 22.05, and the output of that version.
use super::failure::{ErrorPatterns, failures};
use super::table::status_in;
use super::{CommandLine, CommandOutput, JobId, JobRow, JobStatus, JobTarget, KillWait, QueryFailure, failure};

/// Array job id, index, state, reason, batch host, name (last, because it may contain any
/// character).
const FORMAT: &str = "%F|%K|%T|%r|%B|%j";

/// Lower-case text of sbatch's errors and what it indicates.
pub(crate) const FAILURES: &ErrorPatterns = failures! {
    NoSuchQueue: "invalid partition" => "`sinfo -s` lists the partitions; name one with --queue or launchers.slurm.queue";
    NoSuchAccount: "invalid account"
        => "`sacctmgr show associations user=$USER` lists your accounts; name one with --account or launchers.slurm.account";
    NoSuchAccount: "invalid qos" => "`sacctmgr show associations user=$USER` lists the qualities of service that you may use";
    Limit: "violates accounting/qos policy" => "reduce the number of engines (-n) or the time (--walltime), or use another --account";
    Limit: "time limit is invalid" => "`sinfo -o '%P %l'` shows the partitions' time limits; reduce --walltime";
    Limit: "node configuration is not available"
        => "no node has that many processors or GPUs, or that much memory; `sinfo -o '%P %c %m %G'` shows the nodes";
    Limit: "memory specification can not be satisfied" => "`sinfo -o '%P %m'` shows the nodes' memory; reduce --mem";
    Limit: "can not be satisfied" => "`sinfo -o '%P %c %m %G'` shows what the nodes have";
    Limit: "more processors requested than permitted" => "`sinfo -o '%P %c'` shows the nodes' processors";
    Limit: "invalid job array specification"
        => "`scontrol show config | grep MaxArraySize` shows the maximum array size; --engines-per-job reduces the number of jobs";
    Limit: "submit limit" => "wait for some of your jobs to finish, or reduce the number of jobs with --engines-per-job";
    NoPermission: "not permitted to use this partition" => "name another partition with --queue";
    NoPermission: "permission denied" => "ask your site's administrators for permission";
    SchedulerDown: "unable to contact slurm controller" | "unable to connect" => "`scontrol ping` shows whether the controller is up";
    SchedulerDown: "timed out on send/recv" => "the controller is busy; `squeue --me` shows whether the job exists";
    SchedulerDown: "unable to resolve" => "this host cannot resolve the controller's name: run this on a login node of the cluster";
    BadScript: "invalid directive" | "unrecognized option" | "invalid option"
        => "check the script's #SBATCH lines and launchers.slurm.directives";
    BadScript: "does not look like a batch script" => "the first line must be #!/bin/sh or similar";
    NoSuchQueue: "requested reservation is invalid" => "`scontrol show reservation` lists the reservations";
    NoSuchQueue: "invalid feature" => "`sinfo -o '%n %f'` lists the nodes' features for launchers.slurm.constraint";
};

/// slurm.conf(5), KillWait: "the interval, in seconds, given to a job's processes between the SIGTERM and SIGKILL signals upon reaching
/// its time limit … The default value is 30 seconds". scancel(1) and preemption use it too.
pub(crate) const KILL_WAIT: KillWait = KillWait {
    term_s: Some(30),
    user_s: None,
};

pub(crate) fn kill_wait() -> CommandLine {
    CommandLine::new("scontrol", ["show", "config"])
}

/// `KillWait                = 30 sec`
pub(crate) fn parse_kill_wait(output: &CommandOutput) -> Option<u32> {
    let value = |line: &str| {
        line.strip_prefix("KillWait")?
            .trim_start()
            .strip_prefix('=')?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    output.stdout.lines().find_map(value)
}

/// `18;east` is job 18 of the cluster east.
pub(crate) fn cluster_of(job: &JobId) -> &str {
    job.0.split_once(';').map_or("", |(_, cluster)| cluster)
}

pub(crate) fn number_of(job: &JobId) -> &str {
    job.0.split(';').next().unwrap_or_default()
}

/// All jobs of a user on the cluster of these jobs. Queries by user, because squeue fails for an id
/// that it no longer knows. Jobs that have ended are shown for MinJobAge (300 s).
pub(crate) fn query(jobs: &[JobId], user: &str) -> CommandLine {
    let (user, format) = (format!("--user={user}"), format!("--format={FORMAT}"));
    let mut command = CommandLine::new("squeue", ["--noheader", "--array", "--states=all", &user, &format]);
    command.arguments.extend(jobs.first().and_then(clusters));
    command
}

fn clusters(job: &JobId) -> Option<String> {
    Some(cluster_of(job))
        .filter(|cluster| !cluster.is_empty())
        .map(|cluster| format!("--clusters={cluster}"))
}

pub(crate) fn find(name: &str, user: &str) -> CommandLine {
    let mut command = query(&[], user);
    command.arguments.push(format!("--name={name}"));
    command
}

pub(crate) fn parse(output: &CommandOutput) -> Result<Vec<JobRow>, QueryFailure> {
    match output.is_success() {
        true => Ok(rows(&output.stdout)),
        false => Err(failure::of_query(output, FAILURES)),
    }
}

pub(crate) fn cancel(targets: &[JobTarget]) -> CommandLine {
    let cluster = targets.first().and_then(|target| clusters(&target.job));
    CommandLine::new("scancel", cluster.into_iter().chain(targets.iter().map(target)))
}

pub(crate) fn cancelled(output: &CommandOutput) -> Result<(), QueryFailure> {
    let message = output.message().to_lowercase();
    if output.is_success() || message.contains("invalid job id") || message.contains("already completing or completed") {
        return Ok(());
    }
    Err(failure::of_query(output, FAILURES))
}

fn target(target: &JobTarget) -> String {
    match target.element {
        Some(element) => format!("{}_{element}", number_of(&target.job)),
        None => number_of(&target.job).into(),
    }
}

/// Parses the rows. If a cluster was named, a line `CLUSTER: east` precedes its jobs.
fn rows(text: &str) -> Vec<JobRow> {
    let mut cluster = "";
    let mut rows = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("CLUSTER: ") {
            cluster = name.trim();
            continue;
        }
        rows.extend(row(line).map(|row| match cluster {
            "" => row,
            _ => JobRow {
                job: JobId(format!("{};{cluster}", row.job)),
                ..row
            },
        }));
    }
    rows
}

/// Parses a line of [`FORMAT`]; none for anything else (a banner).
fn row(line: &str) -> Option<JobRow> {
    let mut fields = line.trim().splitn(6, '|');
    let (job, index, word) = (fields.next()?, fields.next()?, fields.next()?);
    if job.is_empty() || !job.bytes().all(|b| b.is_ascii_digit()) || word.is_empty() {
        return None;
    }
    let present = |text: Option<&str>| {
        text.filter(|t| !matches!(*t, "" | "None" | "n/a" | "N/A" | "(null)"))
            .map(str::to_string)
    };
    let reason = present(fields.next());
    Some(
        JobRow {
            host: present(fields.next()),
            name: present(fields.next()),
            ..JobRow::new(job, index.parse().ok(), status(word, reason.as_deref()), word)
        }
        .with_reason(reason),
    )
}

/// squeue(1), "JOB STATE CODES".
pub(crate) const STATES: &[(&str, JobStatus)] = &[
    ("PENDING", JobStatus::Queued),
    ("CONFIGURING", JobStatus::Starting),
    ("RUNNING RESIZING SIGNALING", JobStatus::Running),
    ("SUSPENDED STOPPED", JobStatus::Suspended),
    ("COMPLETING STAGE_OUT", JobStatus::Completing),
    ("COMPLETED", JobStatus::Completed),
    ("FAILED", JobStatus::Failed),
    ("CANCELLED REVOKED", JobStatus::Cancelled),
    ("TIMEOUT DEADLINE", JobStatus::TimedOut),
    ("NODE_FAIL BOOT_FAIL", JobStatus::NodeFailed),
    ("OUT_OF_MEMORY", JobStatus::OutOfMemory),
    ("PREEMPTED", JobStatus::Preempted),
    ("REQUEUED REQUEUE_FED", JobStatus::Requeued),
    ("REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT", JobStatus::Held),
];

pub(crate) fn status(word: &str, reason: Option<&str>) -> JobStatus {
    let is_held = reason.is_some_and(|reason| reason.to_ascii_lowercase().contains("held"));
    match status_in(STATES, word) {
        JobStatus::Queued if is_held => JobStatus::Held,
        status => status,
    }
}

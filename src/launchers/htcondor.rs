//! HTCondor: a submit description and, next to it, the shell script that each job runs. Sources:
//! the pages of condor_submit, condor_q, condor_rm and condor_history in the HTCondor manual
//! (23.0), and recorded outputs (tests/fixtures/batch/htcondor names their sources). Not tested
//! with a real HTCondor.
use super::batch::failure::{ErrorPatterns, failures};
use super::batch::render::{common, invalid_value, set_variables};
use super::batch::table::template;
use super::batch::template::{FoundBy, Requirement, VariableValue, Variables};
use super::batch::{
    BatchSystem, CommandLine, CommandOutput, EnvironmentRules, JobId, JobRequest, JobRow, JobStatus, JobTarget, KillWait, QueryFailure,
    SubmitFailure, SystemTable, TemplateError, engines, failure,
};
use serde::Deserialize;
use std::path::Path;

pub(crate) struct HtCondor;

const ATTRIBUTES: &str = "ClusterId,ProcId,JobStatus,JobBatchName,HoldReason,RemoveReason,RemoteHost,LastRemoteHost,ExitCode,ExitBySignal";

/// Lower-case text of its errors and what it indicates.
const FAILURES: &ErrorPatterns = failures! {
    SchedulerDown: "failed to connect to" | "can't find address of" | "unable to locate"
        => "`condor_status -schedd` shows whether the schedd is up";
    NoCommand: "condor_config" => "HTCondor's configuration is not found: run this on a submit host of the pool";
    Limit: "max_jobs" | "failed to create proc" => "the schedd accepts no more of your jobs; --engines-per-job reduces their number";
    NoPermission: "permission denied" | "authorization" | "authentication" => "ask your site's administrators for permission";
    NoSuchAccount: "accounting_group" => "choose one of your groups with --account or launchers.htcondor.account";
    BadScript: "submit file" | "parse" => "check the submit description and launchers.htcondor.directives";
    BadScript: "\"queue\" command" => "the description needs a line `queue {{ jobs }}`";
};

static TABLE: SystemTable = SystemTable {
    name: "htcondor",
    title: "HTCondor",
    directive_prefix: "",
    controller: &[
        template!("htcondor", "controller.sub.tera"),
        template!("htcondor", "controller.sh.tera"),
    ],
    engines: &[template!("htcondor", "engines.sub.tera"), template!("htcondor", "engines.sh.tera")],
    array: (&["queue"], "queue {{ jobs }}"),
    unsupported: &["queue", "qos", "nodes", "reservation", "parallel_environment"],
    one_job: &[],
    log: ["", ""],
    log_separator: '.',
    log_has_element: true,
    job: ["$1", "$(($2 + 1))"],
    // A variable `_CONDOR_NAME` sets NAME of the configuration, which also selects the pool. Therefore only variables that change
    // the output are removed.
    environment: EnvironmentRules::removing(&["_CONDOR_CONDOR_Q_*", "_CONDOR_TOOL_DEBUG*"]),
    failures: FAILURES,
    no_id: "`condor_q` shows whether the job exists",
    // JobStatus in the manual's "Job ClassAd Attributes".
    states: &[
        ("1", JobStatus::Queued),
        ("2", JobStatus::Running),
        ("3", JobStatus::Cancelled),
        ("4", JobStatus::Completed),
        ("5", JobStatus::Held),
        ("6", JobStatus::Completing),
        ("7", JobStatus::Suspended),
    ],
    cancelled: &["marked for removal", "couldn't find", "not found", "no job found", "already"],
    kill_wait: KillWait {
        term_s: None,
        user_s: None,
    },
};

impl BatchSystem for HtCondor {
    fn table(&self) -> &'static SystemTable {
        &TABLE
    }

    /// A value is the rest of its line, verbatim, except for `$(…)`.
    fn quote_directive(&self, name: &str, value: &str) -> Result<String, TemplateError> {
        if value.trim() != value || value.ends_with('\\') {
            return Err(invalid_value(
                self.title(),
                name,
                value,
                "it begins or ends with a blank, or ends with `\\`",
            ));
        }
        Ok(value.replace('$', "$(DOLLAR)"))
    }

    fn variables(&self, request: &JobRequest) -> Result<Variables, TemplateError> {
        let mut variables = common(&TABLE, request)?;
        let resources = &request.resources;
        let here = request.engines_in_a_job();
        let script = request.script.with_extension("sh").to_string_lossy().into_owned();
        let memory = resources.memory.map(|each| format!("{}MB", each.mib() * u64::from(here)));
        // HTCondor has no time limit except one in the job's own description.
        let limit = |seconds| format!("(JobStatus == 2) && (time() - EnteredCurrentStatus > {seconds})");
        let cpus = resources.cpus.or((here > 1).then_some(1));
        set_variables(
            &mut variables,
            [
                ("array", VariableValue::of(Some(request.jobs()))),
                ("script", VariableValue::Text(script)),
                ("cpus", VariableValue::of(cpus.map(|each| each * here))),
                ("gpus", VariableValue::of(resources.gpus.map(|each| each * here))),
                ("memory", VariableValue::of(memory)),
                ("walltime", VariableValue::of(resources.walltime.map(|time| limit(time.seconds)))),
            ],
        );
        Ok(variables)
    }

    fn requirements(&self, template: &str, request: &JobRequest) -> Vec<Requirement> {
        if template.contains(".sub") {
            let queue = Requirement {
                what: "the line that sets the number of jobs".into(),
                found_by: FoundBy::Directive(&["queue"]),
                line: "queue {{ jobs }}".into(),
            };
            let script = Requirement {
                what: "the line that names the script of each job".into(),
                found_by: FoundBy::Variable(&["script"]),
                line: "executable = {{ script }}".into(),
            };
            let numbers = Requirement {
                what: "the line that passes each job its number".into(),
                found_by: FoundBy::Directive(&["arguments"]),
                line: "arguments = $(Cluster) $(Process)".into(),
            };
            return vec![queue, script, numbers];
        }
        vec![engines::requirement(request)]
    }

    fn submit_command(&self, script: &Path, _text: &str, _request: &JobRequest) -> CommandLine {
        CommandLine::new("condor_submit", [script.to_string_lossy()])
    }

    fn parse_submit(&self, output: &CommandOutput) -> Result<JobId, SubmitFailure> {
        if !output.is_success() {
            return Err(failure::of_submit(output, FAILURES));
        }
        let id = output.stdout.lines().rev().find_map(|line| {
            let (_, after) = line.split_once("submitted to cluster ")?;
            let id: String = after.chars().take_while(char::is_ascii_digit).collect();
            (!id.is_empty()).then_some(JobId(id))
        });
        id.ok_or_else(|| failure::no_id(output, TABLE.no_id))
    }

    fn query_command(&self, jobs: &[JobId], _user: &str) -> CommandLine {
        let options = ["-json", "-attributes", ATTRIBUTES].map(String::from);
        CommandLine::new("condor_q", options.into_iter().chain(jobs.iter().map(|job| job.0.clone())))
    }

    fn parse_query(&self, output: &CommandOutput) -> Result<Vec<JobRow>, QueryFailure> {
        match output.is_success() {
            true => rows(&output.stdout).ok_or_else(|| failure::of_query(output, FAILURES)),
            false => Err(failure::of_query(output, FAILURES)),
        }
    }

    fn history_command(&self, job: &JobId) -> Option<CommandLine> {
        Some(CommandLine::new("condor_history", ["-json", "-attributes", ATTRIBUTES, &job.0]))
    }

    fn parse_history(&self, output: &CommandOutput) -> Vec<JobRow> {
        rows(&output.stdout).unwrap_or_default()
    }

    fn find_command(&self, name: &str, _user: &str) -> CommandLine {
        let constraint = format!("JobBatchName == \"{name}\"");
        CommandLine::new("condor_q", ["-json", "-attributes", ATTRIBUTES, "-constraint", &constraint])
    }

    fn cancel_command(&self, targets: &[JobTarget]) -> CommandLine {
        let target = |target: &JobTarget| match target.element {
            Some(element) => format!("{}.{}", target.job, element.saturating_sub(1)),
            None => target.job.0.clone(),
        };
        CommandLine::new("condor_rm", targets.iter().map(target))
    }
}

/// The queried attributes of a job; missing attributes and those of another type are unknown.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ad {
    cluster_id: u64,
    proc_id: u32,
    #[serde(default)]
    job_status: Option<i64>,
    #[serde(default)]
    job_batch_name: Option<String>,
    #[serde(default)]
    hold_reason: Option<String>,
    #[serde(default)]
    remove_reason: Option<String>,
    #[serde(default)]
    remote_host: Option<String>,
    #[serde(default)]
    last_remote_host: Option<String>,
    #[serde(default)]
    exit_code: Option<i32>,
    #[serde(default)]
    exit_by_signal: Option<bool>,
}

/// Parses a list of ads; empty output means no jobs. None if the output is neither.
fn rows(text: &str) -> Option<Vec<JobRow>> {
    let Some(begin) = text.find('[') else {
        return text.trim().is_empty().then(Vec::new);
    };
    let ads: Vec<serde_json::Value> = serde_json::from_str(&text[begin..]).ok()?;
    Some(ads.into_iter().filter_map(|ad| serde_json::from_value(ad).ok()).map(row).collect())
}

fn row(ad: Ad) -> JobRow {
    let status = status(&ad);
    let (number, word) = (ad.job_status, ad.job_status.map_or("?", word));
    let row = JobRow::new(ad.cluster_id.to_string(), Some(ad.proc_id.saturating_add(1)), status, word);
    // `slot1_1@node17`
    let host = ad.remote_host.or(ad.last_remote_host);
    let reason = match number {
        Some(5) => ad.hold_reason,
        _ => ad.remove_reason,
    };
    JobRow {
        host: host.map(|host| host.rsplit('@').next().unwrap_or_default().to_string()),
        name: ad.job_batch_name,
        exit_code: ad.exit_code,
        ..row
    }
    .with_reason(reason)
}

/// JobStatus in the manual's "Job ClassAd Attributes".
fn word(number: i64) -> &'static str {
    match number {
        1 => "Idle",
        2 => "Running",
        3 => "Removed",
        4 => "Completed",
        5 => "Held",
        6 => "Transferring Output",
        7 => "Suspended",
        _ => "?",
    }
}

fn status(ad: &Ad) -> JobStatus {
    let Some(number) = ad.job_status else {
        return JobStatus::Unknown("JobStatus missing".into());
    };
    let by_policy = ad.remove_reason.as_deref().is_some_and(|reason| reason.contains("PeriodicRemove"));
    let has_failed = ad.exit_by_signal == Some(true) || ad.exit_code.is_some_and(|code| code != 0);
    match TABLE.status(&number.to_string()) {
        // The only such rule in our description is the time limit.
        JobStatus::Cancelled if by_policy => JobStatus::TimedOut,
        JobStatus::Completed if has_failed => JobStatus::Failed,
        JobStatus::Unknown(_) => JobStatus::Unknown(format!("JobStatus {number}")),
        status => status,
    }
}

#[cfg(test)]
mod tests;

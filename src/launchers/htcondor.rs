//! HTCondor: a submit description and, next to it, the shell script that each job runs. Sources:
//! the pages of condor_submit, condor_q, condor_rm and condor_history in the HTCondor manual
//! (23.0), and recorded outputs (tests/fixtures/batch/htcondor names their sources). Not tested
//! with a real HTCondor.
use super::batch::environment::{Names, Rule};
use super::batch::render::{FoundBy, Requirement, VariableValue, Variables, common, invalid_value, set_variables, unsupported};
use super::batch::{
    BatchSystem, CommandLine, CommandOutput, EnvironmentRules, JobId, JobKind, JobRequest, JobRow, JobStatus, JobTarget, Problem,
    QueryFailure, SubmitFailure, Template, TemplateError, engines, failure,
};
use serde::Deserialize;
use std::path::{Path, PathBuf};

pub(crate) struct HtCondor;

const ATTRIBUTES: &str = "ClusterId,ProcId,JobStatus,JobBatchName,HoldReason,RemoveReason,RemoteHost,LastRemoteHost,ExitCode,ExitBySignal";

/// Lower-case text of its errors and what it indicates.
const FAILURES: &[(&str, Problem, &str)] = &[
    (
        "failed to connect to",
        Problem::SchedulerDown,
        "`condor_status -schedd` shows whether the schedd is up",
    ),
    (
        "can't find address of",
        Problem::SchedulerDown,
        "`condor_status -schedd` shows whether the schedd is up",
    ),
    (
        "unable to locate",
        Problem::SchedulerDown,
        "`condor_status -schedd` shows whether the schedd is up",
    ),
    (
        "condor_config",
        Problem::NoCommand,
        "HTCondor's configuration is not found: run this on a submit host of the pool",
    ),
    (
        "max_jobs",
        Problem::Limit,
        "the schedd accepts no more of your jobs; --engines-per-job reduces their number",
    ),
    (
        "failed to create proc",
        Problem::Limit,
        "the schedd accepts no more of your jobs; --engines-per-job reduces their number",
    ),
    (
        "permission denied",
        Problem::NoPermission,
        "ask your site's administrators for permission",
    ),
    (
        "authorization",
        Problem::NoPermission,
        "ask your site's administrators for permission",
    ),
    (
        "authentication",
        Problem::NoPermission,
        "ask your site's administrators for permission",
    ),
    (
        "accounting_group",
        Problem::NoSuchAccount,
        "choose one of your groups with --account or launchers.htcondor.account",
    ),
    (
        "submit file",
        Problem::BadScript,
        "check the submit description and launchers.htcondor.directives",
    ),
    (
        "parse",
        Problem::BadScript,
        "check the submit description and launchers.htcondor.directives",
    ),
    (
        "\"queue\" command",
        Problem::BadScript,
        "the description needs a line `queue {{ jobs }}`",
    ),
];

impl BatchSystem for HtCondor {
    fn name(&self) -> &'static str {
        "htcondor"
    }
    fn title(&self) -> &'static str {
        "HTCondor"
    }
    fn templates(&self, kind: JobKind) -> &'static [Template] {
        match kind {
            JobKind::Controller => &[
                Template {
                    name: "controller.sub.tera",
                    text: include_str!("../../templates/htcondor/controller.sub.tera"),
                },
                Template {
                    name: "controller.sh.tera",
                    text: include_str!("../../templates/htcondor/controller.sh.tera"),
                },
            ],
            JobKind::Engines => &[
                Template {
                    name: "engines.sub.tera",
                    text: include_str!("../../templates/htcondor/engines.sub.tera"),
                },
                Template {
                    name: "engines.sh.tera",
                    text: include_str!("../../templates/htcondor/engines.sh.tera"),
                },
            ],
        }
    }
    fn directive_prefix(&self) -> &'static str {
        ""
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
        let resources = &request.resources;
        let unknown = [
            ("queue", resources.queue.is_some()),
            ("qos", resources.qos.is_some()),
            ("nodes", resources.nodes.is_some()),
            ("reservation", resources.reservation.is_some()),
            ("parallel_environment", resources.parallel_environment.is_some()),
        ];
        unsupported(self, request, &unknown)?;
        if request.is_one_job() {
            return Err(TemplateError::Unsupported {
                system: self.title(),
                what: "one job of all engines".into(),
                hint: Some("set launchers.htcondor.start to array".into()),
            });
        }
        let here = request.engines_in_a_job();
        let times = |value: Option<u32>| value.map_or(VariableValue::Unset, |each| VariableValue::Text((each * here).to_string()));
        let log = request.log_dir.join(&request.log_stem).to_string_lossy().into_owned();
        let mut variables = common(request);
        set_variables(
            &mut variables,
            [
                ("array", VariableValue::Text(request.jobs().to_string())),
                (
                    "script",
                    VariableValue::Text(request.script.with_extension("sh").to_string_lossy().into_owned()),
                ),
                ("cpus", times(resources.cpus.or((here > 1).then_some(1)))),
                ("gpus", times(resources.gpus)),
                (
                    "memory",
                    resources.memory.map_or(VariableValue::Unset, |each| {
                        VariableValue::Text(format!("{}MB", each.mib() * u64::from(here)))
                    }),
                ),
                // HTCondor has no time limit except one in the job's own description.
                (
                    "walltime",
                    resources.walltime.map_or(VariableValue::Unset, |time| {
                        VariableValue::Text(format!("(JobStatus == 2) && (time() - EnteredCurrentStatus > {})", time.seconds))
                    }),
                ),
                ("log", VariableValue::Text(format!("{log}-"))),
                (
                    "environment",
                    VariableValue::Lines(engines::environment(request, "$1", "$(($2 + 1))")),
                ),
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

    fn log_path(&self, request: &JobRequest, job: &JobId, element: Option<u32>) -> PathBuf {
        request
            .log_dir
            .join(format!("{}-{job}.{}.log", request.log_stem, element.unwrap_or(1)))
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
        id.ok_or_else(|| failure::no_id(output, "`condor_q` shows whether the job exists"))
    }

    /// A variable `_CONDOR_NAME` sets NAME of the configuration, which also selects the pool.
    /// Therefore only variables that change the output are removed.
    fn environment(&self) -> EnvironmentRules {
        const DISPLAY: Names = &["_CONDOR_CONDOR_Q_*", "_CONDOR_TOOL_DEBUG*"];
        EnvironmentRules {
            submissions: Rule {
                removed: DISPLAY,
                kept: &[],
            },
            queries: Rule {
                removed: DISPLAY,
                kept: &[],
            },
            options: &[],
        }
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

    fn parse_cancel(&self, output: &CommandOutput) -> Result<(), QueryFailure> {
        let message = output.message();
        let fine = |line: &str| {
            let line = line.to_lowercase();
            ["marked for removal", "couldn't find", "not found", "no job found", "already"]
                .iter()
                .any(|words| line.contains(words))
        };
        match output.is_success() || (!message.is_empty() && message.lines().all(fine)) {
            true => Ok(()),
            false => Err(failure::of_query(output, FAILURES)),
        }
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
    let by_policy = ad.remove_reason.as_deref().is_some_and(|reason| reason.contains("PeriodicRemove"));
    match ad.job_status {
        Some(1) => JobStatus::Queued,
        Some(2) => JobStatus::Running,
        // The only such rule in our description is the time limit.
        Some(3) if by_policy => JobStatus::TimedOut,
        Some(3) => JobStatus::Cancelled,
        Some(4) if ad.exit_by_signal == Some(true) || ad.exit_code.is_some_and(|code| code != 0) => JobStatus::Failed,
        Some(4) => JobStatus::Completed,
        Some(5) => JobStatus::Held,
        Some(6) => JobStatus::Completing,
        Some(7) => JobStatus::Suspended,
        Some(other) => JobStatus::Unknown(format!("JobStatus {other}")),
        None => JobStatus::Unknown("JobStatus missing".into()),
    }
}

#[cfg(test)]
mod tests;

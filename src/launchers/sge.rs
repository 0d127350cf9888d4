//! Grid Engine (SGE, Son of Grid Engine, Open Grid Scheduler, Univa, Altair). Sources: qsub(1),
//! qstat(1), sge_status(5), accounting(5) of 8.1.9, and the output of that version.
use super::batch::failure::{ErrorPatterns, failures};
use super::batch::render::{common, invalid_value, set_variables};
use super::batch::table::template;
use super::batch::template::{VariableValue, Variables};
use super::batch::{
    BatchSystem, CommandLine, CommandOutput, EnvironmentRules, JobId, JobRequest, JobRow, JobStatus, JobTarget, KillWait, QueryFailure,
    SubmitFailure, SystemTable, TemplateError, failure, ranges, xml,
};
use crate::profile::config::resources::StartMode;
use std::path::Path;

pub(crate) struct Sge;

/// Lower-case text of its errors and what it indicates.
const FAILURES: &ErrorPatterns = failures! {
    NoSuchQueue: "unknown queue" => "`qconf -sql` lists the queues; name one with --queue or launchers.sge.queue";
    NoSuchQueue: "requested parallel environment"
        => "`qconf -spl` lists the parallel environments; name one with launchers.sge.parallel_environment";
    NoSuchAccount: "requested project" => "`qconf -sprjl` lists the projects; name one with --account or launchers.sge.account";
    BadScript: "unknown resource"
        => "`qconf -sc` lists the resources for -l; use the site's names in your own template (pcluster template copy)";
    NoSuchQueue: "reservation id" => "`qrstat` lists the advance reservations";
    BadScript: "is not a time value" | "invalid option argument" | "unknown option" | "unable to read script file"
        => "check the script's #$ lines and launchers.sge.directives";
    Limit: "can't be requested" => "`qconf -sc` and `qhost -F` show the available resources";
    Limit: "quota" => "`qquota` shows your limits";
    Limit: "limit" => "`qconf -sconf` (max_aj_tasks, max_u_jobs) and `qquota` show the limits";
    NoPermission: "not allowed" | "has no permission" => "ask your site's administrators which queues and projects you may use";
    NoPermission: "denied: host" | "no submit host"
        => "this host may not submit jobs; run this on a submit host (`qconf -ss` lists them)";
    SchedulerDown: "unable to contact qmaster" => "`qping -info $SGE_QMASTER_HOST 6444 qmaster 1` shows whether it is up";
    SchedulerDown: "unable to send message to qmaster" | "got select error" | "commlib error"
        => "the master does not answer; `qstat` shows whether it is back";
    NoCommand: "sge_root"
        => "the Grid Engine settings are not loaded: run `. $SGE_ROOT/default/common/settings.sh`, or load the site's module";
};

static TABLE: SystemTable = SystemTable {
    name: "sge",
    title: "Grid Engine",
    directive_prefix: "#$",
    controller: &[template!("sge", "controller.sh.tera")],
    engines: &[template!("sge", "engines.sh.tera")],
    array: (&["-t"], "#$ -t {{ array }}"),
    unsupported: &["qos", "nodes"],
    one_job: &[StartMode::Mpiexec],
    log: ["$JOB_ID.$TASK_ID.log", "$JOB_ID.log"],
    log_separator: '.',
    log_has_element: false,
    // Outside an array SGE_TASK_ID is `undefined`.
    job: ["$JOB_ID", "${SGE_TASK_ID#undefined}"],
    // sge_intro(1): debugging output mixes with the answers; the other variables truncate names or join lines. The default
    // request files are handled separately: see `submit_command`.
    environment: EnvironmentRules::removing(&["SGE_DEBUG_LEVEL", "SGE_DEBUG_TARGET", "SGE_LONG_*", "SGE_SINGLE_LINE"]),
    failures: FAILURES,
    no_id: "`qstat` shows whether the job exists",
    states: STATES,
    // The exit code is 1 if one of several jobs was already gone.
    cancelled: &["does not exist", "for deletion", "has deleted job"],
    // queue_conf(5), `notify`: SIGUSR2 is sent this long before SIGKILL, by default 00:00:60. SIGTERM is not sent.
    kill_wait: KillWait {
        term_s: None,
        user_s: Some(60),
    },
};

impl BatchSystem for Sge {
    fn table(&self) -> &'static SystemTable {
        &TABLE
    }

    /// qsub removes quotes everywhere, and has no escape character. In a path it interprets
    /// `host:path`, commas (as a list) and `$JOB_ID`.
    fn quote_directive(&self, name: &str, value: &str) -> Result<String, TemplateError> {
        let is_path = matches!(name, "cwd" | "log");
        let wrong = |c: char| "'\"#".contains(c) || (is_path && "$:,".contains(c));
        // The `$` in `log` itself belongs to its two variables.
        let own = TABLE.log.iter().fold(value.to_string(), |own, end| own.replace(end, ""));
        if (if name == "log" { own.as_str() } else { value }).contains(wrong) {
            return Err(invalid_value(
                self.title(),
                name,
                value,
                "it contains a quote, `#`, or in a path `$`, `:` or a comma",
            ));
        }
        Ok(match value.contains(char::is_whitespace) {
            true => format!("\"{value}\""),
            false => value.to_string(),
        })
    }

    fn variables(&self, request: &JobRequest) -> Result<Variables, TemplateError> {
        let mut variables = common(&TABLE, request)?;
        let resources = &request.resources;
        let (one_job, per_job) = (request.is_one_job(), request.engines_in_a_job());
        let cpus = resources.cpus.unwrap_or(1).max(1);
        let slots = if one_job { request.n } else { per_job } * cpus;
        // A slot is a processor. More than one slot requires a parallel environment, whose name
        // depends on the site.
        let name = match &resources.parallel_environment {
            Some(name) => Some(name.as_str()),
            None if one_job => Some("mpi"),
            None => (slots > 1).then_some("smp"),
        };
        let environment = match name {
            Some(name) => VariableValue::Lines(vec![format!("{} {slots}", one_word(name)?)]),
            None => VariableValue::Unset,
        };
        let amount = |value: Option<u64>, unit: &str| VariableValue::of(value.map(|amount| format!("{amount}{unit}")));
        let engines_per_job = if one_job { 1 } else { u64::from(per_job) };
        let gpus = resources.gpus.map(|each| u64::from(each) * engines_per_job);
        let memory = resources.memory.map(|each| each.mib() * engines_per_job);
        // complex(5): resources that are counted per slot are multiplied by the slots.
        let each_slot = |whole: u64| whole.div_ceil(u64::from(cpus) * engines_per_job);
        let as_counted = |name: &str, whole: u64| match request.per_job_resources.iter().any(|known| known == name) {
            true => whole,
            false => each_slot(whole),
        };
        set_variables(
            &mut variables,
            [
                ("parallel_environment", environment),
                ("cpus", VariableValue::Text(slots.to_string())),
                ("gpus", amount(gpus, "")),
                ("gpu", amount(gpus.map(|whole| as_counted("gpu", whole)), "")),
                ("memory", amount(memory, "M")),
                ("mem_free", amount(memory.map(|whole| as_counted("mem_free", whole)), "M")),
                ("memory_per_slot", amount(memory.map(each_slot), "M")),
            ],
        );
        Ok(variables)
    }

    fn submit_command(&self, script: &Path, _text: &str, _request: &JobRequest) -> CommandLine {
        // Options that a default request file (sge_request(5): `~/.sge_request`, `sge_request` of
        // the cell) may contain and a script cannot undo: that it is not a script, or must start
        // immediately or not at all.
        let options = ["-terse", "-b", "n", "-now", "n", "-C", "#$"].map(String::from);
        CommandLine::new("qsub", options.into_iter().chain([script.to_string_lossy().into_owned()]))
    }

    fn parse_submit(&self, output: &CommandOutput) -> Result<JobId, SubmitFailure> {
        if !output.is_success() {
            return Err(failure::of_submit(output, FAILURES));
        }
        let id = output.stdout.lines().rev().find_map(|line| submitted(line.trim()));
        id.map(JobId).ok_or_else(|| failure::no_id(output, TABLE.no_id))
    }

    fn query_command(&self, _jobs: &[JobId], user: &str) -> CommandLine {
        // States and queues are explicit because a default file (`~/.sge_qstat`, `sge_qstat` of the
        // cell) may contain others.
        CommandLine::new("qstat", ["-u", user, "-s", "prs", "-q", "*", "-xml"])
    }

    fn parse_query(&self, output: &CommandOutput) -> Result<Vec<JobRow>, QueryFailure> {
        if !output.is_success() || (!output.stdout.contains("<job_info") && !output.message().is_empty()) {
            return Err(failure::of_query(output, FAILURES));
        }
        Ok(xml::elements(&output.stdout, "job_list").flat_map(rows).collect())
    }

    fn reason_command(&self, job: &JobId) -> Option<CommandLine> {
        Some(CommandLine::new("qstat", ["-j", &job.0]))
    }

    /// The error of a job that cannot start, else the first lines of the scheduler's messages, if
    /// the site stores them (schedd_job_info).
    fn parse_reason(&self, output: &CommandOutput) -> Option<String> {
        let after = |line: &str, begin: &str| -> Option<String> {
            let rest = line.strip_prefix(begin)?;
            Some(rest.split_once(':')?.1.trim().to_string())
        };
        let lines = || output.stdout.lines();
        if let Some(error) = lines().find_map(|line| after(line, "error reason")) {
            return Some(error);
        }
        let mut messages = lines().skip_while(|line| !line.starts_with("scheduling info"));
        let first = after(messages.next()?, "scheduling info")?;
        let further: Vec<&str> = messages.map(str::trim).take_while(|line| !line.is_empty()).collect();
        // Lines that exclude a single queue come first; the line that excludes every queue is the
        // reason.
        let best = further
            .iter()
            .rev()
            .find(|line| line.contains("because it only offers") || line.contains("slots"));
        let reason = best.map_or(first, |line| line.to_string());
        (!reason.is_empty() && !reason.contains("no messages available")).then_some(reason)
    }

    fn history_command(&self, job: &JobId) -> Option<CommandLine> {
        Some(CommandLine::new("qacct", ["-j", &job.0]))
    }

    fn parse_history(&self, output: &CommandOutput) -> Vec<JobRow> {
        let mut rows = Vec::new();
        for record in output.stdout.split("\n=====").chain(output.stdout.is_empty().then_some("")) {
            let field = |name: &str| {
                let mut lines = record.lines().filter_map(|line| line.strip_prefix(name));
                lines.find(|rest| rest.starts_with(' ')).map(str::trim)
            };
            let (Some(job), Some(failed)) = (field("jobnumber"), field("failed")) else {
                continue;
            };
            let code = field("exit_status").and_then(|text| text.split_whitespace().next()?.parse().ok());
            let row = JobRow::new(
                job,
                field("taskid").and_then(|t| t.parse().ok()),
                ended(failed, code),
                format!("failed {failed}"),
            );
            rows.push(
                JobRow {
                    exit_code: code,
                    host: field("hostname").map(str::to_string),
                    name: field("jobname").map(str::to_string),
                    ..row
                }
                .with_reason(
                    field("exit_status").map(|text| format!("exit_status {}", text.split_whitespace().collect::<Vec<_>>().join(" "))),
                ),
            );
        }
        rows
    }

    fn find_command(&self, _name: &str, user: &str) -> CommandLine {
        self.query_command(&[], user)
    }

    fn job_resources_command(&self) -> Option<CommandLine> {
        Some(CommandLine::new("qconf", ["-sc"]))
    }

    /// complex(5): `name shortcut type relop requestable consumable default urgency`. A consumable
    /// of `YES` is counted per slot, one of `JOB` per job; for `NO` each host must offer the
    /// requested amount.
    fn parse_job_resources(&self, output: &CommandOutput) -> Vec<String> {
        let lines = output.stdout.lines().filter(|line| output.is_success() && !line.starts_with('#'));
        let names = lines.filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let [name, _, _, _, _, consumable, ..] = columns[..] else {
                return None;
            };
            matches!(consumable, "JOB" | "NO").then(|| name.to_string())
        });
        names.collect()
    }

    fn cancel_command(&self, targets: &[JobTarget]) -> CommandLine {
        let target = |target: &JobTarget| match target.element {
            Some(element) => format!("{}.{element}", target.job),
            None => target.job.0.clone(),
        };
        CommandLine::new("qdel", targets.iter().map(target))
    }
}

fn one_word(name: &str) -> Result<&str, TemplateError> {
    match name.contains(|c: char| c.is_whitespace() || c.is_control() || "'\"#".contains(c)) || name.is_empty() {
        true => Err(invalid_value(TABLE.title, "parallel_environment", name, "it is not a single word")),
        false => Ok(name),
    }
}

/// `4`, `4.1-15:1`, `Your job 4 ("name") has been submitted`, `Your job-array 4.1-15:1 ("name") …`
fn submitted(line: &str) -> Option<String> {
    let id = match line.strip_prefix("Your job") {
        Some(rest) if line.contains("has been submitted") => rest.trim_start_matches("-array").split_whitespace().next()?,
        Some(_) => return None,
        None if line.bytes().all(|b| b.is_ascii_digit() || b".-:".contains(&b)) => line,
        None => return None,
    };
    let job = id.split('.').next()?;
    (!job.is_empty() && job.bytes().all(|b| b.is_ascii_digit())).then(|| job.to_string())
}

/// The rows of a `<job_list>`: usually one; one per element for waiting elements of an array.
fn rows(list: xml::Element) -> Vec<JobRow> {
    let (Some(job), Some(word)) = (list.text("JB_job_number"), list.text("state")) else {
        return Vec::new();
    };
    let row = |element| JobRow {
        host: list.text("queue_name").and_then(|queue| Some(queue.split_once('@')?.1.to_string())),
        name: list.text("JB_name"),
        ..JobRow::new(job.clone(), element, status(&word), word.clone())
    };
    match list.text("tasks") {
        Some(tasks) => ranges::expand(&tasks).into_iter().map(|element| row(Some(element))).collect(),
        None => vec![row(None)],
    }
}

/// sge_status(5). Letters combine: `hqw`, `dRr`, `Eqw`.
fn status(word: &str) -> JobStatus {
    let has = |letters: &str| letters.chars().any(|letter| word.contains(letter));
    if word.is_empty() || !word.chars().all(|c| "EhqwrtsSTNPdRz".contains(c)) {
        return JobStatus::Unknown(word.into());
    }
    let found = STATES.iter().find(|(letters, _)| has(letters));
    match found.map(|(_, status)| status) {
        Some(JobStatus::Queued) if has("R") => JobStatus::Requeued,
        found => found.cloned().unwrap_or_else(|| JobStatus::Unknown(word.into())),
    }
}

/// A state is a set of letters; the first of these that it contains decides.
const STATES: &[(&str, JobStatus)] = &[
    ("z", JobStatus::Completed),
    ("E", JobStatus::Stuck),
    ("d", JobStatus::Completing),
    ("sSTNP", JobStatus::Suspended),
    ("h", JobStatus::Held),
    ("qw", JobStatus::Queued),
    ("t", JobStatus::Starting),
    ("rR", JobStatus::Running),
];

/// `failed` and `exit_status` of accounting(5): 37 is a time or memory limit, 100 a signal.
fn ended(failed: &str, code: Option<i32>) -> JobStatus {
    match (failed.split_whitespace().next(), code) {
        (Some("0"), Some(0)) => JobStatus::Completed,
        (Some("37"), _) => JobStatus::TimedOut,
        (Some("19" | "21" | "22"), _) => JobStatus::NodeFailed,
        _ => JobStatus::Failed,
    }
}

#[cfg(test)]
mod tests;

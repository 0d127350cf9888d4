//! Slurm. Sources: sbatch(1), squeue(1), scancel(1), sacct(1) of Slurm 22.05, and the output of
//! that version.
use super::batch::render::{common, set_variables};
use super::batch::table::template;
use super::batch::template::{FoundBy, Requirement, VariableValue, Variables};
use super::batch::{
    BatchSystem, CommandLine, CommandOutput, JobId, JobRequest, JobRow, JobTarget, QueryFailure, SubmitFailure, SystemTable, TemplateError,
    engines, failure, slurm_environment, squeue,
};
use crate::profile::config::resources::StartMode;
use std::path::Path;

pub(crate) struct Slurm;

static TABLE: SystemTable = SystemTable {
    name: "slurm",
    title: "Slurm",
    directive_prefix: "#SBATCH",
    controller: &[template!("slurm", "controller.sh.tera")],
    engines: &[template!("slurm", "engines.sh.tera")],
    array: (&["--array", "-a"], "#SBATCH --array={{ array }}"),
    unsupported: &["parallel_environment"],
    one_job: &[StartMode::Srun, StartMode::Mpiexec],
    // sbatch's placeholders: `%A` array job, `%a` index, `%j` job.
    log: ["%A_%a.log", "%j.log"],
    log_separator: '_',
    log_has_element: false,
    job: ["${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}", "${SLURM_ARRAY_TASK_ID:-}"],
    environment: slurm_environment::RULES,
    failures: squeue::FAILURES,
    no_id: "`squeue --me` shows whether the job exists",
    states: squeue::STATES,
    cancelled: &[],
    kill_wait: squeue::KILL_WAIT,
};

impl BatchSystem for Slurm {
    fn table(&self) -> &'static SystemTable {
        &TABLE
    }

    /// sbatch parses a directive's words with the shell's quotes and backslashes; an unquoted `#`
    /// would begin a comment.
    fn quote_directive(&self, _name: &str, value: &str) -> Result<String, TemplateError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,@%^[]&|*!~()<>".contains(c) || !c.is_ascii();
        if !value.is_empty() && value.chars().all(plain) {
            return Ok(value.to_string());
        }
        Ok(format!("\"{}\"", value.replace('\\', r"\\").replace('"', r#"\""#)))
    }

    fn variables(&self, request: &JobRequest) -> Result<Variables, TemplateError> {
        let mut variables = common(&TABLE, request)?;
        let resources = &request.resources;
        let one_job = request.is_one_job();
        let per_job = if one_job { 1 } else { u64::from(request.engines_in_a_job()) };
        let times = |value: Option<u32>| VariableValue::of(value.map(|each| u64::from(each) * per_job));
        let mut further = Vec::new();
        let mut memory = None;
        match resources.memory {
            Some(each) if one_job => further.push(format!(
                "--mem-per-cpu={}M",
                each.mib().div_ceil(u64::from(resources.cpus.unwrap_or(1).max(1)))
            )),
            Some(each) => memory = Some(format!("{}M", each.mib() * per_job)),
            None => {}
        }
        match resources.gpus {
            Some(each) if one_job => further.push(format!("--gpus-per-task={each}")),
            Some(each) => further.push(format!("--gres=gpu:{}", u64::from(each) * per_job)),
            None => {}
        }
        // `%%` is a percent sign.
        let log = request.log_dir.join(&request.log_stem).to_string_lossy().replace('%', "%%");
        set_variables(
            &mut variables,
            [
                (
                    "log",
                    VariableValue::Text(format!("{log}-{}", TABLE.log[usize::from(!request.is_array())])),
                ),
                ("cpus", times(resources.cpus)),
                ("gpus", times(resources.gpus)),
                ("memory", VariableValue::of(memory)),
                ("resources", VariableValue::Lines(further)),
            ],
        );
        Ok(variables)
    }

    fn requirements(&self, _template: &str, request: &JobRequest) -> Vec<Requirement> {
        let array = request.is_array().then(|| TABLE.array_requirement());
        let tasks = request.is_one_job().then(|| Requirement {
            what: "the line that sets the number of engines in the job".into(),
            found_by: FoundBy::Directive(&["--ntasks", "-n"]),
            line: "#SBATCH --ntasks={{ tasks }}".into(),
        });
        [engines::requirement(request)].into_iter().chain(array).chain(tasks).collect()
    }

    fn cluster_of<'a>(&self, job: &'a JobId) -> &'a str {
        squeue::cluster_of(job)
    }

    fn submit_command(&self, script: &Path, _text: &str, _request: &JobRequest) -> CommandLine {
        CommandLine::new("sbatch", ["--parsable".to_string(), script.to_string_lossy().into_owned()])
    }

    fn parse_submit(&self, output: &CommandOutput) -> Result<JobId, SubmitFailure> {
        if !output.is_success() {
            return Err(failure::of_submit(output, TABLE.failures));
        }
        // A site's banner may precede the id, and a wrapper may print sbatch's sentence.
        let id = output.stdout.lines().rev().find_map(|line| {
            let line = line.trim();
            let (id, rest) = match line.strip_prefix("Submitted batch job ") {
                Some(sentence) => sentence.split_once(' ').unwrap_or((sentence, "")),
                None => (line, ""),
            };
            // `18;east` if the job was sent to another cluster; in the sentence, `18 on cluster
            // east`.
            let (number, cluster) = match (id.split_once(';'), rest.strip_prefix("on cluster ")) {
                (Some((number, cluster)), _) => (number, Some(cluster)),
                (None, cluster) => (id, cluster.map(str::trim)),
            };
            let is_id = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            is_id.then(|| JobId(cluster.map_or(number.into(), |cluster| format!("{number};{cluster}"))))
        });
        id.ok_or_else(|| failure::no_id(output, TABLE.no_id))
    }

    fn query_command(&self, jobs: &[JobId], user: &str) -> CommandLine {
        squeue::query(jobs, user)
    }

    fn parse_query(&self, output: &CommandOutput) -> Result<Vec<JobRow>, QueryFailure> {
        squeue::parse(output)
    }

    fn history_command(&self, job: &JobId) -> Option<CommandLine> {
        let fields = "--format=JobID,State,ExitCode,NodeList,JobName";
        let mut arguments = ["--noheader", "--parsable2", "--allocations", fields].map(String::from).to_vec();
        arguments.push(format!("--jobs={}", squeue::number_of(job)));
        if !squeue::cluster_of(job).is_empty() {
            arguments.push(format!("--clusters={}", squeue::cluster_of(job)));
        }
        Some(CommandLine::new("sacct", arguments))
    }

    fn parse_history(&self, output: &CommandOutput) -> Vec<JobRow> {
        match output.is_success() {
            true => output.stdout.lines().filter_map(history_row).collect(),
            false => Vec::new(),
        }
    }

    fn find_command(&self, name: &str, user: &str) -> CommandLine {
        squeue::find(name, user)
    }

    fn cancel_command(&self, targets: &[JobTarget]) -> CommandLine {
        squeue::cancel(targets)
    }

    fn parse_cancel(&self, output: &CommandOutput) -> Result<(), QueryFailure> {
        squeue::cancelled(output)
    }

    fn kill_wait_command(&self) -> Option<CommandLine> {
        Some(squeue::kill_wait())
    }
    fn parse_kill_wait(&self, output: &CommandOutput) -> Option<u32> {
        squeue::parse_kill_wait(output)
    }
}

/// `4711_3|CANCELLED by 0|0:15|n2|name`
fn history_row(line: &str) -> Option<JobRow> {
    let mut fields = line.trim().splitn(5, '|');
    let (id, word) = (fields.next()?, fields.next()?);
    let (job, element) = match id.split_once('_') {
        Some((job, element)) => (job, element.parse().ok()),
        None => (id, None),
    };
    let code = fields.next()?.split(':').next().and_then(|code| code.parse().ok());
    let bare = word.split(' ').next().unwrap_or(word);
    let is_id = !job.is_empty() && job.bytes().all(|b| b.is_ascii_digit());
    is_id.then(|| JobRow {
        exit_code: code,
        host: fields
            .next()
            .filter(|host| !matches!(*host, "" | "None assigned"))
            .map(str::to_string),
        name: fields.next().map(str::to_string),
        ..JobRow::new(job, element, squeue::status(bare, None), word)
    })
}

#[cfg(test)]
mod tests;

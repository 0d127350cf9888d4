//! Slurm. Sources: sbatch(1), squeue(1), scancel(1), sacct(1) of Slurm 22.05, and the output of
//! that version.
use super::batch::render::{FoundBy, Requirement, VariableValue, Variables, common, nodes_are_of_one_job, set_variables, unsupported};
use super::batch::{
    BatchSystem, CommandLine, CommandOutput, EnvironmentRules, JobId, JobKind, JobRequest, JobRow, JobTarget, KillWait, QueryFailure,
    SubmitFailure, Template, TemplateError, engines, failure, slurm_environment, squeue,
};
use std::path::{Path, PathBuf};

pub(crate) struct Slurm;

impl BatchSystem for Slurm {
    fn name(&self) -> &'static str {
        "slurm"
    }
    fn title(&self) -> &'static str {
        "Slurm"
    }

    fn templates(&self, kind: JobKind) -> &'static [Template] {
        match kind {
            JobKind::Controller => &[Template {
                name: "controller.sh.tera",
                text: include_str!("../../templates/slurm/controller.sh.tera"),
            }],
            JobKind::Engines => &[Template {
                name: "engines.sh.tera",
                text: include_str!("../../templates/slurm/engines.sh.tera"),
            }],
        }
    }
    fn directive_prefix(&self) -> &'static str {
        "#SBATCH"
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
        let resources = &request.resources;
        unsupported(self, request, &[("parallel_environment", resources.parallel_environment.is_some())])?;
        let one_job = request.is_one_job();
        nodes_are_of_one_job(self, request, "srun")?;
        let per_job = if one_job { 1 } else { request.engines_in_a_job() };
        let times = |value: Option<u32>| {
            value.map_or(VariableValue::Unset, |v| {
                VariableValue::Text((u64::from(v) * u64::from(per_job)).to_string())
            })
        };
        let mut further = Vec::new();
        let mut memory = VariableValue::Unset;
        match resources.memory {
            Some(each) if one_job => further.push(format!(
                "--mem-per-cpu={}M",
                each.mib().div_ceil(u64::from(resources.cpus.unwrap_or(1).max(1)))
            )),
            Some(each) => memory = VariableValue::Text(format!("{}M", each.mib() * u64::from(per_job))),
            None => {}
        }
        match resources.gpus {
            Some(each) if one_job => further.push(format!("--gpus-per-task={each}")),
            Some(each) => further.push(format!("--gres=gpu:{}", each * per_job)),
            None => {}
        }
        let is_array = request.kind == JobKind::Engines && !one_job;
        let mut variables = common(request);
        set_variables(
            &mut variables,
            [
                (
                    "array",
                    if is_array {
                        VariableValue::Text(format!("1-{}", request.jobs()))
                    } else {
                        VariableValue::Unset
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
                ("log", VariableValue::Text(log_pattern(request, is_array))),
                ("cpus", times(resources.cpus)),
                ("gpus", times(resources.gpus)),
                ("memory", memory),
                ("resources", VariableValue::Lines(further)),
                (
                    "environment",
                    VariableValue::Lines(engines::environment(
                        request,
                        "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}",
                        "${SLURM_ARRAY_TASK_ID:-}",
                    )),
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
                found_by: FoundBy::Directive(&["--array", "-a"]),
                line: "#SBATCH --array={{ array }}".into(),
            });
        } else if request.is_one_job() {
            requirements.push(Requirement {
                what: "the line that sets the number of engines in the job".into(),
                found_by: FoundBy::Directive(&["--ntasks", "-n"]),
                line: "#SBATCH --ntasks={{ tasks }}".into(),
            });
        }
        requirements
    }

    fn log_path(&self, request: &JobRequest, job: &JobId, element: Option<u32>) -> PathBuf {
        let job = squeue::number_of(job);
        let name = match element {
            Some(element) => format!("{}-{job}_{element}.log", request.log_stem),
            None => format!("{}-{job}.log", request.log_stem),
        };
        request.log_dir.join(name)
    }

    fn environment(&self) -> EnvironmentRules {
        slurm_environment::RULES
    }
    fn cluster_of<'a>(&self, job: &'a JobId) -> &'a str {
        squeue::cluster_of(job)
    }

    fn submit_command(&self, script: &Path, _text: &str, _request: &JobRequest) -> CommandLine {
        CommandLine::new("sbatch", ["--parsable".to_string(), script.to_string_lossy().into_owned()])
    }

    fn parse_submit(&self, output: &CommandOutput) -> Result<JobId, SubmitFailure> {
        if !output.is_success() {
            return Err(failure::of_submit(output, squeue::FAILURES));
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
        id.ok_or_else(|| failure::no_id(output, "`squeue --me` shows whether the job exists"))
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

    fn kill_wait(&self) -> KillWait {
        KillWait {
            term_s: Some(squeue::KILL_WAIT_S),
            user_s: None,
        }
    }
    fn kill_wait_command(&self) -> Option<CommandLine> {
        Some(squeue::kill_wait())
    }
    fn parse_kill_wait(&self, output: &CommandOutput) -> Option<u32> {
        squeue::parse_kill_wait(output)
    }
}

/// sbatch's placeholders: `%A` array job, `%a` index, `%j` job; `%%` is a percent sign.
fn log_pattern(request: &JobRequest, is_array: bool) -> String {
    let path = request.log_dir.join(&request.log_stem).to_string_lossy().replace('%', "%%");
    format!("{path}-{}.log", if is_array { "%A_%a" } else { "%j" })
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

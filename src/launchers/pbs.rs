//! PBS in three dialects: OpenPBS (with PBS Professional), Torque, and Slurm's commands for former
//! Torque users.
//!
//! Sources: qsub(1B), qstat(1B), qdel(1B) of OpenPBS 23.06 and of Torque 6, and the Perl scripts of
//! slurm-wlm-torque 22.05. They differ in the option for an array (`-J`, `-t`), in the variable
//! that contains the array index (`PBS_ARRAY_INDEX`, `PBS_ARRAYID`), and in the resources of `-l`.
use super::batch::environment::{Names, Rule};
use super::batch::render::{
    FoundBy, Requirement, VariableValue, Variables, common, invalid_value, nodes_are_of_one_job, set_variables, unsupported,
};
use super::batch::{
    BatchSystem, CommandLine, CommandOutput, EnvironmentRules, JobId, JobKind, JobRequest, JobRow, JobTarget, KillWait, Problem,
    QueryFailure, SubmitFailure, Template, TemplateError, engines, failure, slurm_environment, squeue,
};
use crate::model::shell;
use crate::profile::config::resources::StartMode;
use std::path::{Path, PathBuf};

mod answers;

/// PBS in one dialect.
pub(crate) struct Pbs(Dialect);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    OpenPbs,
    Torque,
    /// Slurm's `qsub`. Its `qstat` shows an array's jobs without their array, and its `qdel 7_2`
    /// cancels all of array 7; therefore Slurm's own commands are used, which are installed too.
    Slurm,
}

static OPENPBS: Pbs = Pbs(Dialect::OpenPbs);
static TORQUE: Pbs = Pbs(Dialect::Torque);
static SLURM: Pbs = Pbs(Dialect::Slurm);

/// The row to use until the dialect is known.
pub(crate) fn row() -> &'static dyn BatchSystem {
    &OPENPBS
}

/// Lower-case text of its errors and what it indicates.
const FAILURES: &[(&str, Problem, &str)] = &[
    (
        "unknown queue",
        Problem::NoSuchQueue,
        "`qstat -Q` lists the queues; name one with --queue or launchers.pbs.queue",
    ),
    (
        "invalid partition",
        Problem::NoSuchQueue,
        "`qstat -Q` lists the queues; name one with --queue or launchers.pbs.queue",
    ),
    (
        "cannot locate destination",
        Problem::NoSuchQueue,
        "`qstat -Q` lists the queues; name one with --queue or launchers.pbs.queue",
    ),
    (
        "invalid account",
        Problem::NoSuchAccount,
        "choose one of your accounts with --account or launchers.pbs.account",
    ),
    (
        "invalid project",
        Problem::NoSuchAccount,
        "choose one of your projects in launchers.pbs.directives (-P name)",
    ),
    (
        "unknown resource",
        Problem::BadScript,
        "this PBS does not know the resource; use the site's names in your own template (pcluster template copy)",
    ),
    (
        "cannot be used with select",
        Problem::BadScript,
        "`-l nodes=` and `-l select=` exclude each other; check launchers.pbs.directives",
    ),
    (
        "illegal -",
        Problem::BadScript,
        "check the script's #PBS lines and launchers.pbs.directives",
    ),
    (
        "invalid option",
        Problem::BadScript,
        "check the script's #PBS lines and launchers.pbs.directives",
    ),
    (
        "directive error",
        Problem::BadScript,
        "check the script's #PBS lines and launchers.pbs.directives",
    ),
    (
        "invalid directive",
        Problem::BadScript,
        "check the script's #PBS lines and launchers.pbs.directives",
    ),
    (
        "exceeds",
        Problem::Limit,
        "`qstat -Qf` shows the queues' limits; request less, or use another queue",
    ),
    (
        "violates queue",
        Problem::Limit,
        "`qstat -Qf` shows the queues' limits; request less, or use another queue",
    ),
    (
        "violates accounting/qos policy",
        Problem::Limit,
        "reduce the number of engines (-n) or the time (--walltime), or use another --account",
    ),
    (
        "limit",
        Problem::Limit,
        "`qstat -Qf` shows the queues' limits; --engines-per-job reduces the number of jobs",
    ),
    (
        "unauthorized",
        Problem::NoPermission,
        "you may not submit to this queue, or not from this host",
    ),
    (
        "not authorized",
        Problem::NoPermission,
        "you may not submit to this queue, or not from this host",
    ),
    (
        "access/permission denied",
        Problem::NoPermission,
        "you may not submit to this queue, or not from this host",
    ),
    (
        "permission denied",
        Problem::NoPermission,
        "you may not submit to this queue, or not from this host",
    ),
    (
        "bad uid",
        Problem::NoPermission,
        "the server does not know this user or host; run this on a login node of the cluster",
    ),
    (
        "cannot connect to server",
        Problem::SchedulerDown,
        "`qstat -B` shows whether the server is up",
    ),
    (
        "connection refused",
        Problem::SchedulerDown,
        "`qstat -B` shows whether the server is up",
    ),
    (
        "communication failure",
        Problem::SchedulerDown,
        "`qstat -B` shows whether the server is up",
    ),
    (
        "unable to contact slurm",
        Problem::SchedulerDown,
        "`scontrol ping` shows whether the controller is up",
    ),
    ("pbs_server", Problem::SchedulerDown, "`qstat -B` shows whether the server is up"),
];

impl BatchSystem for Pbs {
    fn name(&self) -> &'static str {
        "pbs"
    }
    fn title(&self) -> &'static str {
        match self.0 {
            Dialect::OpenPbs => "OpenPBS",
            Dialect::Torque => "Torque",
            Dialect::Slurm => "Slurm's qsub",
        }
    }

    fn dialect_command(&self) -> Option<CommandLine> {
        Some(CommandLine::new("qstat", ["--version"]))
    }
    /// `pbs_version = 23.06.06`; `Version: 6.1.2`, `Commit: …`; slurm-wlm-torque does not know the
    /// option and prints its usage, with `[-f] [-a|-i|-r] [-n [-1]] [-G|-M]`.
    fn detect_dialect(&self, output: &CommandOutput) -> Option<&'static dyn BatchSystem> {
        let message = output.message();
        if message.contains("pbs_version") || message.contains("PBSPro") {
            return Some(&OPENPBS);
        }
        if message.contains("[-G|-M]") || message.contains("--man") {
            return Some(&SLURM);
        }
        let torque = message.contains("Commit:") || message.to_lowercase().contains("version:");
        if torque { Some(&TORQUE) } else { None }
    }
    fn dialect(&self) -> &'static str {
        match self.0 {
            Dialect::OpenPbs => "openpbs",
            Dialect::Torque => "torque",
            Dialect::Slurm => "slurm",
        }
    }
    fn with_dialect(&self, name: &str) -> Option<&'static dyn BatchSystem> {
        match name {
            "openpbs" => Some(&OPENPBS),
            "torque" => Some(&TORQUE),
            "slurm" => Some(&SLURM),
            _ => None,
        }
    }

    fn templates(&self, kind: JobKind) -> &'static [Template] {
        match kind {
            JobKind::Controller => &[Template {
                name: "controller.sh.tera",
                text: include_str!("../../templates/pbs/controller.sh.tera"),
            }],
            JobKind::Engines => &[Template {
                name: "engines.sh.tera",
                text: include_str!("../../templates/pbs/engines.sh.tera"),
            }],
        }
    }
    fn directive_prefix(&self) -> &'static str {
        "#PBS"
    }

    /// #PBS lines contain only names and numbers; paths appear only in shell lines of these
    /// scripts.
    fn quote_directive(&self, name: &str, value: &str) -> Result<String, TemplateError> {
        if value.is_empty() || value.contains(|c: char| c.is_whitespace() || "'\"\\#$`".contains(c)) {
            return Err(invalid_value(
                self.title(),
                name,
                value,
                "it contains a blank, a quote, `\\`, `#` or `$`",
            ));
        }
        Ok(value.to_string())
    }

    fn variables(&self, request: &JobRequest) -> Result<Variables, TemplateError> {
        let resources = &request.resources;
        let unknown = [
            ("qos", resources.qos.is_some()),
            ("reservation", resources.reservation.is_some()),
            ("parallel_environment", resources.parallel_environment.is_some()),
        ];
        unsupported(self, request, &unknown)?;
        nodes_are_of_one_job(self, request, "mpiexec")?;
        if request.is_one_job() && resources.start == StartMode::Srun && self.0 != Dialect::Slurm {
            return Err(TemplateError::Unsupported {
                system: self.title(),
                what: "srun".into(),
                hint: Some("set launchers.pbs.start to mpiexec for one job of all engines, or to array".into()),
            });
        }
        let mut variables = common(request);
        set_variables(
            &mut variables,
            [
                (
                    "array",
                    self.array(request)
                        .map_or(VariableValue::Unset, |line| VariableValue::Lines(vec![line])),
                ),
                (
                    "tasks",
                    if request.is_one_job() {
                        VariableValue::Text(request.n.to_string())
                    } else {
                        VariableValue::Unset
                    },
                ),
                ("resources", VariableValue::Lines(self.resources(request))),
                (
                    "log",
                    VariableValue::Text(format!("{}-", request.log_dir.join(&request.log_stem).to_string_lossy())),
                ),
                ("environment", VariableValue::Lines(self.environment(request))),
            ],
        );
        Ok(variables)
    }

    fn requirements(&self, _template: &str, request: &JobRequest) -> Vec<Requirement> {
        let mut requirements = vec![engines::requirement(request)];
        if self.array(request).is_some() {
            requirements.push(Requirement {
                what: "the line that makes the job an array".into(),
                found_by: FoundBy::Directive(&["-J", "-t"]),
                line: "#PBS {{ array }}".into(),
            });
        }
        requirements
    }

    fn log_path(&self, request: &JobRequest, job: &JobId, element: Option<u32>) -> PathBuf {
        let number: String = job.0.chars().take_while(char::is_ascii_digit).collect();
        let element = element.unwrap_or(1);
        request.log_dir.join(format!("{}-{number}.{element}.log", request.log_stem))
    }

    /// pbs(7B) and qsub(1B): `PBS_DPREFIX` changes the prefix of directives. Torque's qstat hides
    /// jobs according to `PBS_QSTAT_…`. Slurm's `qsub` runs sbatch, and does not print the cluster
    /// that a job was sent to.
    fn environment(&self) -> EnvironmentRules {
        const DISPLAY: Names = &["PBS_DPREFIX", "PBS_QSTAT_*"];
        match self.0 {
            Dialect::Slurm => slurm_environment::WITHOUT_CLUSTERS,
            _ => EnvironmentRules {
                submissions: Rule {
                    removed: DISPLAY,
                    kept: &[],
                },
                queries: Rule {
                    removed: DISPLAY,
                    kept: &[],
                },
                options: &[],
            },
        }
    }

    /// Slurm's `qsub` puts its own output option before the script's, and passes all its arguments
    /// through a shell.
    fn submit_command(&self, script: &Path, _text: &str, request: &JobRequest) -> CommandLine {
        let script = script.to_string_lossy().into_owned();
        if self.0 != Dialect::Slurm {
            return CommandLine::new("qsub", [script]);
        }
        let mut arguments: Vec<String> = ["-j", "oe", "-o", "/dev/null"].map(String::from).to_vec();
        if let Some(range) = self.array(request) {
            arguments.extend(range.split(' ').map(String::from));
        }
        if let Some(walltime) = request.resources.walltime {
            arguments.extend(["-l".into(), format!("walltime={walltime}")]);
        }
        arguments.push(shell::quoted(&script));
        CommandLine::new("qsub", arguments)
    }

    fn parse_submit(&self, output: &CommandOutput) -> Result<JobId, SubmitFailure> {
        if !output.is_success() {
            return Err(failure::of_submit(output, FAILURES));
        }
        let id = output.stdout.lines().rev().map(str::trim).find(|line| answers::is_id(line));
        id.map(|id| JobId(id.into()))
            .ok_or_else(|| failure::no_id(output, "`qstat -u $USER` shows whether the job exists"))
    }

    fn query_command(&self, jobs: &[JobId], user: &str) -> CommandLine {
        match self.0 {
            Dialect::Slurm => squeue::query(jobs, user),
            _ => {
                let ids = jobs.iter().map(|job| job.0.clone());
                CommandLine::new("qstat", ["-f", "-t"].map(String::from).into_iter().chain(ids))
            }
        }
    }

    fn parse_query(&self, output: &CommandOutput) -> Result<Vec<JobRow>, QueryFailure> {
        if self.0 == Dialect::Slurm {
            return squeue::parse(output);
        }
        // Of several jobs some may be gone: those are named on stderr, and the exit code is that of
        // the last job.
        let gone = |line: &str| line.contains("Unknown Job") || line.contains("Job has finished");
        let mut complaints = output.stderr.lines().map(str::trim).filter(|line| !line.is_empty());
        match output.is_success() || (!output.stderr.trim().is_empty() && complaints.all(gone)) {
            true => Ok(answers::rows(&output.stdout)),
            false => Err(failure::of_query(output, FAILURES)),
        }
    }

    fn history_command(&self, job: &JobId) -> Option<CommandLine> {
        (self.0 == Dialect::OpenPbs).then(|| CommandLine::new("qstat", ["-x", "-f", "-t", &job.0]))
    }

    fn parse_history(&self, output: &CommandOutput) -> Vec<JobRow> {
        answers::rows(&output.stdout)
    }

    fn find_command(&self, name: &str, user: &str) -> CommandLine {
        match self.0 {
            Dialect::Slurm => squeue::find(name, user),
            _ => CommandLine::new("qselect", ["-u", user, "-N", name]),
        }
    }

    fn parse_find(&self, output: &CommandOutput, name: &str) -> Result<Vec<JobId>, QueryFailure> {
        if self.0 == Dialect::Slurm {
            let mut ids: Vec<JobId> = squeue::parse(output)?
                .into_iter()
                .filter(|row| row.name.as_deref() == Some(name))
                .map(|row| row.job)
                .collect();
            ids.dedup();
            return Ok(ids);
        }
        match output.is_success() {
            true => Ok(output
                .stdout
                .lines()
                .map(str::trim)
                .filter(|line| answers::is_id(line))
                .map(|id| JobId(id.into()))
                .collect()),
            false => Err(failure::of_query(output, FAILURES)),
        }
    }

    /// pbs_queue_attributes(7B), kill_delay: 10 s by default; Torque's attribute of the same name:
    /// 2 s.
    fn kill_wait(&self) -> KillWait {
        let term_s = match self.0 {
            Dialect::OpenPbs => 10,
            Dialect::Torque => 2,
            Dialect::Slurm => squeue::KILL_WAIT_S,
        };
        KillWait {
            term_s: Some(term_s),
            user_s: None,
        }
    }

    fn kill_wait_command(&self) -> Option<CommandLine> {
        (self.0 == Dialect::Slurm).then(squeue::kill_wait)
    }

    fn parse_kill_wait(&self, output: &CommandOutput) -> Option<u32> {
        squeue::parse_kill_wait(output)
    }

    fn cancel_command(&self, targets: &[JobTarget]) -> CommandLine {
        match self.0 {
            Dialect::Slurm => squeue::cancel(targets),
            _ => CommandLine::new("qdel", targets.iter().map(answers::target)),
        }
    }

    fn parse_cancel(&self, output: &CommandOutput) -> Result<(), QueryFailure> {
        if self.0 == Dialect::Slurm {
            return squeue::cancelled(output);
        }
        let message = output.message();
        let fine = |line: &str| {
            let line = line.to_lowercase();
            ["unknown job", "job has finished", "invalid state", "state for job"]
                .iter()
                .any(|words| line.contains(words))
        };
        match output.is_success() || (!message.is_empty() && message.lines().all(fine)) {
            true => Ok(()),
            false => Err(failure::of_query(output, FAILURES)),
        }
    }
}

impl Pbs {
    /// `-J 1-15`; none for one job, since OpenPBS does not accept an array of one.
    fn array(&self, request: &JobRequest) -> Option<String> {
        let jobs = request.jobs();
        if request.kind == JobKind::Controller || request.is_one_job() || (jobs == 1 && self.0 == Dialect::OpenPbs) {
            return None;
        }
        let option = if self.0 == Dialect::OpenPbs { "-J" } else { "-t" };
        Some(format!("{option} 1-{jobs}"))
    }

    /// The value of `-l`.
    fn resources(&self, request: &JobRequest) -> Vec<String> {
        let resources = &request.resources;
        let one_job = request.is_one_job();
        // One job of all engines is distributed evenly over that number of nodes. Without a number,
        // each engine may run anywhere.
        let chunks = if one_job {
            resources.nodes.unwrap_or(request.n).clamp(1, request.n.max(1))
        } else {
            1
        };
        let here = if one_job {
            request.n.div_ceil(chunks)
        } else {
            request.engines_in_a_job()
        };
        let cpus = resources.cpus.unwrap_or(1).max(1) * here;
        let memory = resources.memory.map(|each| each.mib() * u64::from(here));
        let gpus = resources.gpus.map(|each| each * here);
        if self.0 == Dialect::OpenPbs {
            let mut select = format!("select={chunks}:ncpus={cpus}");
            if let Some(memory) = memory {
                select.push_str(&format!(":mem={memory}mb"));
            }
            if let Some(gpus) = gpus {
                select.push_str(&format!(":ngpus={gpus}"));
            }
            if one_job {
                select.push_str(&format!(":mpiprocs={here}"));
            }
            if let Some(constraint) = &resources.constraint {
                select.push_str(&format!(":{constraint}"));
            }
            return vec![select];
        }
        let mut line = format!("nodes={chunks}:ppn={cpus}");
        if let Some(gpus) = gpus {
            line.push_str(&format!(":gpus={gpus}"));
        }
        if let Some(constraint) = &resources.constraint {
            line.push_str(&format!(":{constraint}"));
        }
        let mut lines = vec![line];
        if let Some(memory) = memory {
            lines.push(format!("mem={}mb", memory * u64::from(chunks)));
        }
        lines
    }

    fn environment(&self, request: &JobRequest) -> Vec<String> {
        let (job, element) = match (self.0, self.array(request)) {
            // `19[1].pbs1` is a job of `19[].pbs1`.
            (Dialect::OpenPbs, Some(_)) => ("${PBS_JOBID%%\\[*}[]${PBS_JOBID##*\\]}", "$PBS_ARRAY_INDEX"),
            (Dialect::Torque, Some(_)) => ("${PBS_JOBID%%\\[*}[]${PBS_JOBID##*\\]}", "$PBS_ARRAYID"),
            (Dialect::Slurm, Some(_)) => ("$SLURM_ARRAY_JOB_ID", "$SLURM_ARRAY_TASK_ID"),
            (_, None) => ("$PBS_JOBID", ""),
        };
        engines::environment(request, job, element)
    }
}

#[cfg(test)]
mod tests;

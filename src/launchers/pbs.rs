//! PBS in three dialects: OpenPBS (with PBS Professional), Torque, and Slurm's commands for former
//! Torque users.
//!
//! Sources: qsub(1B), qstat(1B), qdel(1B) of OpenPBS 23.06 and of Torque 6, and the Perl scripts of
//! slurm-wlm-torque 22.05. They differ in the option for an array (`-J`, `-t`), in the variable
//! that contains the array index (`PBS_ARRAY_INDEX`, `PBS_ARRAYID`), and in the resources of `-l`.
use super::batch::failure::{ErrorPatterns, failures};
use super::batch::render::{common, invalid_value, set_variables};
use super::batch::table::template;
use super::batch::template::{Requirement, VariableValue, Variables};
use super::batch::{
    BatchSystem, CommandLine, CommandOutput, EnvironmentRules, JobId, JobRequest, JobRow, JobTarget, KillWait, QueryFailure, SubmitFailure,
    SystemTable, TemplateError, engines, failure, slurm_environment, squeue,
};
use crate::model::shell;
use crate::profile::config::resources::StartMode;
use std::path::Path;

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
const FAILURES: &ErrorPatterns = failures! {
    NoSuchQueue: "unknown queue" | "invalid partition" | "cannot locate destination"
        => "`qstat -Q` lists the queues; name one with --queue or launchers.pbs.queue";
    NoSuchAccount: "invalid account" => "choose one of your accounts with --account or launchers.pbs.account";
    NoSuchAccount: "invalid project" => "choose one of your projects in launchers.pbs.directives (-P name)";
    BadScript: "unknown resource"
        => "this PBS does not know the resource; use the site's names in your own template (pcluster template copy)";
    BadScript: "cannot be used with select" => "`-l nodes=` and `-l select=` exclude each other; check launchers.pbs.directives";
    BadScript: "illegal -" | "invalid option" | "directive error" | "invalid directive"
        => "check the script's #PBS lines and launchers.pbs.directives";
    Limit: "exceeds" | "violates queue" => "`qstat -Qf` shows the queues' limits; request less, or use another queue";
    Limit: "violates accounting/qos policy" => "reduce the number of engines (-n) or the time (--walltime), or use another --account";
    Limit: "limit" => "`qstat -Qf` shows the queues' limits; --engines-per-job reduces the number of jobs";
    NoPermission: "unauthorized" | "not authorized" | "access/permission denied" | "permission denied"
        => "you may not submit to this queue, or not from this host";
    NoPermission: "bad uid" => "the server does not know this user or host; run this on a login node of the cluster";
    SchedulerDown: "cannot connect to server" | "connection refused" | "communication failure"
        => "`qstat -B` shows whether the server is up";
    SchedulerDown: "unable to contact slurm" => "`scontrol ping` shows whether the controller is up";
    SchedulerDown: "pbs_server" => "`qstat -B` shows whether the server is up";
};

static OPENPBS_TABLE: SystemTable = SystemTable {
    name: "pbs",
    title: "OpenPBS",
    directive_prefix: "#PBS",
    controller: &[template!("pbs", "controller.sh.tera")],
    engines: &[template!("pbs", "engines.sh.tera")],
    array: (&["-J", "-t"], "#PBS {{ array }}"),
    unsupported: &["qos", "reservation", "parallel_environment"],
    one_job: &[StartMode::Mpiexec],
    log: ["", ""],
    log_separator: '.',
    log_has_element: true,
    // `19[1].pbs1` is a job of `19[].pbs1`.
    job: ["${PBS_JOBID%%\\[*}[]${PBS_JOBID##*\\]}", "$PBS_ARRAY_INDEX"],
    // pbs(7B) and qsub(1B): `PBS_DPREFIX` changes the prefix of directives. Torque's qstat hides jobs according to `PBS_QSTAT_…`.
    environment: EnvironmentRules::removing(&["PBS_DPREFIX", "PBS_QSTAT_*"]),
    failures: FAILURES,
    no_id: "`qstat -u $USER` shows whether the job exists",
    states: answers::STATES,
    cancelled: &["unknown job", "job has finished", "invalid state", "state for job"],
    // pbs_queue_attributes(7B), kill_delay.
    kill_wait: KillWait {
        term_s: Some(10),
        user_s: None,
    },
};

static TORQUE_TABLE: SystemTable = SystemTable {
    title: "Torque",
    job: [OPENPBS_TABLE.job[0], "$PBS_ARRAYID"],
    // Its attribute kill_delay.
    kill_wait: KillWait {
        term_s: Some(2),
        user_s: None,
    },
    ..OPENPBS_TABLE
};

static SLURM_TABLE: SystemTable = SystemTable {
    title: "Slurm's qsub",
    one_job: &[StartMode::Mpiexec, StartMode::Srun],
    job: ["$SLURM_ARRAY_JOB_ID", "$SLURM_ARRAY_TASK_ID"],
    // It runs sbatch, and does not print the cluster that a job was sent to.
    environment: slurm_environment::WITHOUT_CLUSTERS,
    kill_wait: squeue::KILL_WAIT,
    ..OPENPBS_TABLE
};

impl BatchSystem for Pbs {
    fn table(&self) -> &'static SystemTable {
        match self.0 {
            Dialect::OpenPbs => &OPENPBS_TABLE,
            Dialect::Torque => &TORQUE_TABLE,
            Dialect::Slurm => &SLURM_TABLE,
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
        let mut variables = common(self.table(), request)?;
        let array = self.array(request);
        if array.is_none() {
            let environment = engines::environment(request, "$PBS_JOBID", "");
            set_variables(&mut variables, [("environment", VariableValue::Lines(environment))]);
        }
        set_variables(
            &mut variables,
            [
                ("array", VariableValue::Lines(array.into_iter().collect())),
                ("resources", VariableValue::Lines(self.resources(request))),
            ],
        );
        Ok(variables)
    }

    fn requirements(&self, _template: &str, request: &JobRequest) -> Vec<Requirement> {
        let array = self.array(request).map(|_| self.table().array_requirement());
        [engines::requirement(request)].into_iter().chain(array).collect()
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
            .ok_or_else(|| failure::no_id(output, self.table().no_id))
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
        match self.0 {
            Dialect::Slurm => squeue::cancelled(output),
            _ => failure::of_cancellation(output, self.table().cancelled, self.table().failures),
        }
    }
}

impl Pbs {
    /// `-J 1-15`; none for one job, since OpenPBS does not accept an array of one.
    fn array(&self, request: &JobRequest) -> Option<String> {
        let jobs = request.jobs();
        if !request.is_array() || (jobs == 1 && self.0 == Dialect::OpenPbs) {
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
}

#[cfg(test)]
mod tests;

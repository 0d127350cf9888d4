//! Tests the launcher with a scripted scheduler. The rows' tests use the output of real ones.
use super::*;
use crate::launchers::batch::{CommandLine, CommandOutput};
use crate::launchers::command::{RunError, Runner};
use crate::launchers::{Process, Stage};
use crate::profile::config::EngineKind;
use std::collections::VecDeque;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

/// Returns answers in order and records the commands.
#[derive(Default)]
struct Scheduler {
    answers: Mutex<VecDeque<(&'static str, Result<CommandOutput, RunError>)>>,
    queried: Mutex<Vec<String>>,
}

impl Runner for Scheduler {
    fn run(&self, command: &CommandLine, _timeout: Duration) -> Result<CommandOutput, RunError> {
        if command.program == "scontrol" {
            // This scheduler does not report its kill delay.
            return Ok(CommandOutput::default());
        }
        self.queried.lock().unwrap().push(command.to_string());
        let (program, answer) = self.answers.lock().unwrap().pop_front().unwrap_or_else(|| panic!("{command}"));
        assert_eq!(program, command.program);
        answer
    }
}

impl Scheduler {
    fn will(&self, program: &'static str, code: i32, stdout: &str, stderr: &str) {
        let output = CommandOutput {
            code: Some(code),
            stdout: stdout.into(),
            stderr: stderr.into(),
        };
        self.answers.lock().unwrap().push_back((program, Ok(output)));
    }
    fn will_not_answer(&self, program: &'static str) {
        let error = RunError::TimedOut {
            program: program.into(),
            seconds: 60.0,
        };
        self.answers.lock().unwrap().push_back((program, Err(error)));
    }
    fn queried(&self) -> Vec<String> {
        std::mem::take(&mut self.queried.lock().unwrap())
    }
}

struct SlurmFixture {
    _dir: tempfile::TempDir,
    profile: ProfileDir,
    scheduler: Arc<Scheduler>,
    slurm: BatchLauncher,
}

fn fixture() -> SlurmFixture {
    let dir = tempfile::tempdir().unwrap();
    let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
    profile.create().unwrap();
    let scheduler = Arc::new(Scheduler::default());
    let row = batch::by_name("slurm").unwrap();
    let slurm = BatchLauncher::with_runner(row, &profile, &Config::default(), scheduler.clone());
    SlurmFixture {
        _dir: dir,
        profile,
        scheduler,
        slurm,
    }
}

impl SlurmFixture {
    fn launch(&self, n: u32) -> EnginesLaunch {
        EnginesLaunch {
            program: "/opt/pcluster".into(),
            profile: self.profile.clone(),
            cluster_id: String::new(),
            settings: Vec::new(),
            kind: EngineKind::Pcluster,
            n,
            first: 0,
            python: Some("/usr/bin/python3".into()),
            ipengine: None,
            cwd: "/".into(),
            log_level: None,
            tag: None,
        }
    }

    /// Submitted a while ago.
    fn submitted(&self, n: u32) -> Launched {
        self.scheduler.will("sbatch", 0, "18\n", "");
        let mut launched = self.slurm.start_engines(&self.launch(n)).unwrap();
        self.scheduler.queried();
        launched.jobs[0].submitted -= 1000.0;
        launched
    }

    /// A line of squeue in the row's format.
    fn line(&self, launched: &Launched, element: u32, state: &str, reason: &str) -> String {
        format!("18|{element}|{state}|{reason}|n1|{}\n", launched.jobs[0].name)
    }
}

#[test]
fn a_submission_keeps_its_script_private() {
    let fixture = fixture();
    fixture.scheduler.will("sbatch", 0, "welcome to the cluster\n18\n", "");
    let launched = fixture.slurm.start_engines(&fixture.launch(15)).unwrap();
    let job = &launched.jobs[0];
    assert_eq!((job.id.as_str(), job.size, job.engines, job.elements.len()), ("18", 15, 15, 15));
    let queried = fixture.scheduler.queried();
    assert_eq!(queried, [format!("sbatch --parsable {}", job.script.display())]);
    assert_eq!(std::fs::metadata(&job.script).unwrap().permissions().mode() & 0o077, 0);
    assert!(job.log.ends_with("/engines-18_{}.log"), "{}", job.log);
    // A job that was just submitted is not queried yet.
    assert!(fixture.slurm.states(&launched).iter().all(|state| state.stage == Stage::Queued));
    assert!(fixture.scheduler.queried().is_empty());
}

#[test]
fn a_rejected_submission_is_reported_with_the_message_and_the_script() {
    let fixture = fixture();
    fixture.scheduler.will(
        "sbatch",
        1,
        "",
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
    );
    let error = fixture.slurm.start_engines(&fixture.launch(1)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("Invalid partition name") && text.contains("sbatch --parsable"),
        "{text}"
    );
    assert!(error.hint().unwrap().contains("sinfo"));
    let script = text.rsplit("script: ").next().unwrap();
    assert!(std::path::Path::new(script).exists(), "{text}");
    assert_eq!(fixture.scheduler.queried().len(), 1, "it is not retried");
}

#[test]
fn an_unacknowledged_submission_is_looked_up_and_not_repeated() {
    let fixture = fixture();
    fixture.scheduler.will_not_answer("sbatch");
    // The job name is generated during the submission, so the answer is derived from the command.
    struct Finds(Arc<Scheduler>);
    impl Runner for Finds {
        fn run(&self, command: &CommandLine, timeout: Duration) -> Result<CommandOutput, RunError> {
            if command.program != "squeue" {
                return self.0.run(command, timeout);
            }
            self.0.queried.lock().unwrap().push(command.to_string());
            let named = command.arguments.iter().find_map(|a| a.strip_prefix("--name=")).unwrap();
            Ok(CommandOutput {
                code: Some(0),
                stdout: format!("77|1|PENDING|Priority||{named}\n77|2|PENDING|Priority||{named}\n"),
                stderr: String::new(),
            })
        }
    }
    let row = batch::by_name("slurm").unwrap();
    let slurm = BatchLauncher::with_runner(
        row,
        &fixture.profile,
        &Config::default(),
        Arc::new(Finds(fixture.scheduler.clone())),
    );
    let launched = slurm.start_engines(&fixture.launch(2)).unwrap();
    assert_eq!(launched.jobs[0].id, "77");
    let queried = fixture.scheduler.queried();
    let submissions = queried.iter().filter(|line| line.starts_with("sbatch")).count();
    assert_eq!((submissions, queried.len()), (1, 2), "{queried:?}");
}

#[test]
fn one_query_serves_many_callers_and_processes() {
    let fixture = fixture();
    let launched = fixture.submitted(3);
    let lines = [
        fixture.line(&launched, 1, "RUNNING", "None"),
        fixture.line(&launched, 2, "PENDING", "Resources"),
        fixture.line(&launched, 3, "GRINDING", "None"),
    ];
    fixture.scheduler.will("squeue", 0, &lines.concat(), "");
    let states = fixture.slurm.states(&launched);
    let stages: Vec<Stage> = states.iter().map(|state| state.stage).collect();
    assert_eq!(stages, [Stage::Running, Stage::Queued, Stage::Unknown]);
    assert_eq!((states[1].reason.as_str(), states[2].word()), ("Resources", "GRINDING"));
    assert_eq!(fixture.slurm.states(&launched), states);
    // Another command reads the answer from the file.
    let row = batch::by_name("slurm").unwrap();
    let other = BatchLauncher::with_runner(row, &fixture.profile, &Config::default(), fixture.scheduler.clone());
    assert_eq!(other.states(&launched), states);
    assert_eq!(fixture.scheduler.queried().len(), 1);
}

#[test]
fn after_a_failed_query_all_states_are_unknown() {
    let fixture = fixture();
    let launched = fixture.submitted(1);
    fixture.scheduler.will(
        "squeue",
        1,
        "",
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n",
    );
    let states = fixture.slurm.states(&launched);
    assert_eq!(states[0].stage, Stage::Unknown);
    assert!(states[0].reason.contains("Unable to contact"), "{states:?}");
    assert_eq!(fixture.slurm.states(&launched), states, "no further query during the backoff");
    assert_eq!(fixture.scheduler.queried().len(), 1);
    // A stop does not give up such a job either: it keeps the record and reports an error.
    let error = fixture.slurm.stop(&launched, Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("Unable to contact"), "{error}");
}

#[test]
fn jobs_missing_from_the_queue_have_ended_with_the_recorded_outcome() {
    let fixture = fixture();
    let launched = fixture.submitted(2);
    fixture.scheduler.will("squeue", 0, "", "");
    fixture.scheduler.will(
        "sacct",
        0,
        "18_1|TIMEOUT|0:0|n1|x\n18_2|FAILED|3:0|n1|x\n"
            .replace("|x", &format!("|{}", launched.jobs[0].name))
            .as_str(),
        "",
    );
    let words: Vec<String> = fixture.slurm.states(&launched).into_iter().map(|s| s.word().to_string()).collect();
    assert_eq!(words, ["timed out (TIMEOUT)", "failed, exit code 3 (FAILED)"]);
}

#[test]
fn a_stop_cancels_existing_jobs_but_none_with_another_name() {
    let fixture = fixture();
    let launched = fixture.submitted(3);
    let lines = [
        fixture.line(&launched, 1, "RUNNING", "None"),
        fixture.line(&launched, 3, "PENDING", "Resources"),
    ];
    fixture.scheduler.will("squeue", 0, &lines.concat(), "");
    fixture.scheduler.will("sacct", 1, "", "Slurm accounting storage is disabled");
    fixture.scheduler.will("scancel", 0, "", "");
    fixture
        .scheduler
        .will("squeue", 0, &fixture.line(&launched, 1, "COMPLETING", "None"), "");
    let ended = fixture.slurm.stop(&launched, Duration::ZERO).unwrap();
    assert_eq!(ended.cancelled, 2);
    assert!(fixture.scheduler.queried().contains(&"scancel 18".to_string()));

    // A partial stop.
    fixture.scheduler.will("squeue", 0, &lines.concat(), "");
    fixture.scheduler.will("scancel", 0, "", "");
    fixture
        .scheduler
        .will("squeue", 0, &fixture.line(&launched, 2, "RUNNING", "None"), "");
    fixture.slurm.stop(&launched.only(|index| index != 1), Duration::ZERO).unwrap();
    assert!(fixture.scheduler.queried().contains(&"scancel 18_1 18_3".to_string()));
}

#[test]
fn a_job_that_remains_after_a_stop_is_an_error_with_its_state() {
    let fixture = fixture();
    let launched = fixture.submitted(2);
    let lines = [
        fixture.line(&launched, 1, "PENDING", "JobHeldUser"),
        fixture.line(&launched, 2, "PENDING", "Resources"),
    ]
    .concat();
    fixture.scheduler.will("squeue", 0, &lines, "");
    fixture.scheduler.will("scancel", 0, "", "");
    // The timeout expires before the first answer.
    let slurm = BatchLauncher {
        cancel_timeout: Duration::ZERO,
        ..fixture.slurm
    };
    fixture.scheduler.will("squeue", 0, &lines, "");
    let error = slurm.stop(&launched, Duration::ZERO).unwrap_err();
    insta::assert_snapshot!(format!("{error}\nhint: {}", error.hint().unwrap()), @r"
    jobs of Slurm still exist
      job 18, element 1: held (JobHeldUser)
      job 18, element 2: queued (Resources)
    hint: try again, or remove their records with `pcluster clean --force`
    ");
}

#[test]
fn a_job_with_another_name_is_not_cancelled_but_reported() {
    let fixture = fixture();
    let launched = fixture.submitted(2);
    fixture.scheduler.will("squeue", 0, "18|1|RUNNING|None|n1|another\n", "");
    fixture.scheduler.will("sacct", 1, "", "Slurm accounting storage is disabled");
    let error = fixture.slurm.stop(&launched, Duration::ZERO).unwrap_err();
    let name = &launched.jobs[0].name;
    assert!(
        error
            .to_string()
            .contains(&format!("job 18 is named another in the batch system instead of {name}")),
        "{error}"
    );
    let queried = fixture.scheduler.queried();
    assert!(queried.iter().all(|line| !line.starts_with("scancel")), "{queried:?}");
    fixture.scheduler.will("squeue", 0, "18|1|RUNNING|None|n1|another\n", "");
    fixture.scheduler.will("sacct", 1, "", "Slurm accounting storage is disabled");
    let states = fixture.slurm.states(&launched);
    assert!(
        states
            .iter()
            .all(|state| state.stage == Stage::Unknown && state.reason.contains("another")),
        "{states:?}"
    );
    // This cluster's job has ended, and its number was reused.
    let row = format!("18_1|COMPLETED|0:0|n1|{name}\n18_2|COMPLETED|0:0|n1|{name}\n");
    fixture.slurm.queue.invalidate();
    fixture.scheduler.will("squeue", 0, "18|N/A|RUNNING|None|n1|another\n", "");
    fixture.scheduler.will("sacct", 0, &row, "");
    assert_eq!(fixture.slurm.stop(&launched, Duration::ZERO).unwrap().cancelled, 0);
}

#[test]
fn a_job_on_another_cluster_is_queried_and_cancelled_on_that_cluster() {
    let fixture = fixture();
    fixture.scheduler.will("sbatch", 0, "18;east\n", "");
    let mut launched = fixture.slurm.start_engines(&fixture.launch(2)).unwrap();
    launched.jobs[0].submitted -= 1000.0;
    assert_eq!(launched.jobs[0].id, "18;east");
    assert!(launched.jobs[0].log.ends_with("/engines-18_{}.log"), "{}", launched.jobs[0].log);
    fixture.scheduler.queried();
    let lines = [
        fixture.line(&launched, 1, "RUNNING", "None"),
        fixture.line(&launched, 2, "PENDING", "Resources"),
    ]
    .concat();
    fixture.scheduler.will("squeue", 0, &format!("CLUSTER: east\n{lines}"), "");
    assert!(fixture.slurm.states(&launched).iter().all(|state| state.is_alive()));
    fixture.scheduler.will("scancel", 0, "", "");
    fixture.scheduler.will("squeue", 0, "CLUSTER: east\n", "");
    fixture.slurm.stop(&launched, Duration::ZERO).unwrap();
    let queried = fixture.scheduler.queried();
    assert!(
        queried
            .iter()
            .filter(|line| line.starts_with("squeue"))
            .all(|line| line.ends_with("--clusters=east")),
        "{queried:?}"
    );
    assert!(queried.contains(&"scancel --clusters=east 18".to_string()), "{queried:?}");
}

#[test]
fn a_launch_without_jobs_does_not_query_the_scheduler() {
    let fixture = fixture();
    let mut launched = Launched::new("slurm", "h".into());
    assert!(fixture.slurm.states(&launched).is_empty());
    launched.processes.push(Process::default());
    assert!(fixture.slurm.stop(&launched, Duration::ZERO).unwrap().cancelled == 0);
    assert!(fixture.scheduler.queried().is_empty());
}

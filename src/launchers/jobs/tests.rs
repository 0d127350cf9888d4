//! Tests the launcher with a scripted scheduler. The rows' tests use the output of real ones.
use super::*;
use crate::launchers::Process;
use crate::profile::config::EngineKind;
use std::collections::VecDeque;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

/// Returns answers in order and records the commands.
#[derive(Default)]
struct Scheduler {
    answers: Mutex<VecDeque<(&'static str, Result<Output, RunError>)>>,
    asked: Mutex<Vec<String>>,
}

impl Runner for Scheduler {
    fn run(&self, command: &CommandLine, _timeout: Duration) -> Result<Output, RunError> {
        if command.program == "scontrol" {
            // This scheduler does not report its kill delay.
            return Ok(Output::default());
        }
        self.asked.lock().unwrap().push(command.to_string());
        let (program, answer) = self.answers.lock().unwrap().pop_front().unwrap_or_else(|| panic!("{command}"));
        assert_eq!(program, command.program);
        answer
    }
}

impl Scheduler {
    fn will(&self, program: &'static str, code: i32, stdout: &str, stderr: &str) {
        let output = Output {
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
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

struct World {
    _dir: tempfile::TempDir,
    profile: ProfileDir,
    scheduler: Arc<Scheduler>,
    slurm: Jobs,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
    profile.create().unwrap();
    let scheduler = Arc::new(Scheduler::default());
    let row = batch::by_name("slurm").unwrap();
    let slurm = Jobs::with_runner(row, &profile, &Config::default(), scheduler.clone());
    World {
        _dir: dir,
        profile,
        scheduler,
        slurm,
    }
}

impl World {
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
        }
    }

    /// Submitted a while ago.
    fn submitted(&self, n: u32) -> Launched {
        self.scheduler.will("sbatch", 0, "18\n", "");
        let mut launched = self.slurm.start_engines(&self.launch(n)).unwrap();
        self.scheduler.asked();
        launched.jobs[0].submitted -= 1000.0;
        launched
    }

    /// A line of squeue in the row's format.
    fn line(&self, launched: &Launched, element: u32, state: &str, reason: &str) -> String {
        format!("18|{element}|{state}|{reason}|n1|{}\n", launched.jobs[0].name)
    }
}

#[test]
fn one_submission_whose_script_is_kept_for_its_owner() {
    let world = world();
    world.scheduler.will("sbatch", 0, "welcome to the cluster\n18\n", "");
    let launched = world.slurm.start_engines(&world.launch(15)).unwrap();
    let job = &launched.jobs[0];
    assert_eq!((job.id.as_str(), job.size, job.engines, job.elements.len()), ("18", 15, 15, 15));
    let asked = world.scheduler.asked();
    assert_eq!(asked, [format!("sbatch --parsable {}", job.script.display())]);
    assert_eq!(std::fs::metadata(&job.script).unwrap().permissions().mode() & 0o077, 0);
    assert!(job.log.ends_with("/engines-18_{}.log"), "{}", job.log);
    // A job that was just submitted is not queried yet.
    assert!(world.slurm.states(&launched).iter().all(|state| state.stage == Stage::Queued));
    assert!(world.scheduler.asked().is_empty());
}

#[test]
fn what_the_scheduler_refuses_is_told_with_its_words_and_the_script() {
    let world = world();
    world.scheduler.will(
        "sbatch",
        1,
        "",
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
    );
    let error = world.slurm.start_engines(&world.launch(1)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("Invalid partition name") && text.contains("sbatch --parsable"),
        "{text}"
    );
    assert!(error.hint().unwrap().contains("sinfo"));
    let script = text.rsplit("the script: ").next().unwrap();
    assert!(std::path::Path::new(script).exists(), "{text}");
    assert_eq!(world.scheduler.asked().len(), 1, "it is not tried again");
}

#[test]
fn a_submission_without_an_answer_is_looked_for_and_not_repeated() {
    let world = world();
    world.scheduler.will_not_answer("sbatch");
    // The job name is generated during the submission, so the answer is derived from the command.
    struct Finds(Arc<Scheduler>);
    impl Runner for Finds {
        fn run(&self, command: &CommandLine, timeout: Duration) -> Result<Output, RunError> {
            if command.program != "squeue" {
                return self.0.run(command, timeout);
            }
            self.0.asked.lock().unwrap().push(command.to_string());
            let named = command.arguments.iter().find_map(|a| a.strip_prefix("--name=")).unwrap();
            Ok(Output {
                code: Some(0),
                stdout: format!("77|1|PENDING|Priority||{named}\n77|2|PENDING|Priority||{named}\n"),
                stderr: String::new(),
            })
        }
    }
    let row = batch::by_name("slurm").unwrap();
    let slurm = Jobs::with_runner(row, &world.profile, &Config::default(), Arc::new(Finds(world.scheduler.clone())));
    let launched = slurm.start_engines(&world.launch(2)).unwrap();
    assert_eq!(launched.jobs[0].id, "77");
    let asked = world.scheduler.asked();
    let submissions = asked.iter().filter(|line| line.starts_with("sbatch")).count();
    assert_eq!((submissions, asked.len()), (1, 2), "{asked:?}");
}

#[test]
fn one_question_for_many_looks_and_its_answer_is_shared() {
    let world = world();
    let launched = world.submitted(3);
    let lines = [
        world.line(&launched, 1, "RUNNING", "None"),
        world.line(&launched, 2, "PENDING", "Resources"),
        world.line(&launched, 3, "GRINDING", "None"),
    ];
    world.scheduler.will("squeue", 0, &lines.concat(), "");
    let states = world.slurm.states(&launched);
    let stages: Vec<Stage> = states.iter().map(|state| state.stage).collect();
    assert_eq!(stages, [Stage::Running, Stage::Queued, Stage::Unknown]);
    assert_eq!((states[1].reason.as_str(), states[2].word.as_str()), ("Resources", "GRINDING"));
    assert_eq!(world.slurm.states(&launched), states);
    // Another command reads the answer from the file.
    let row = batch::by_name("slurm").unwrap();
    let other = Jobs::with_runner(row, &world.profile, &Config::default(), world.scheduler.clone());
    assert_eq!(other.states(&launched), states);
    assert_eq!(world.scheduler.asked().len(), 1);
}

#[test]
fn without_an_answer_nothing_is_known_least_of_all_an_end() {
    let world = world();
    let launched = world.submitted(1);
    world.scheduler.will(
        "squeue",
        1,
        "",
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n",
    );
    let states = world.slurm.states(&launched);
    assert_eq!(states[0].stage, Stage::Unknown);
    assert!(states[0].reason.contains("Unable to contact"), "{states:?}");
    assert_eq!(world.slurm.states(&launched), states, "and it is left in peace for a while");
    assert_eq!(world.scheduler.asked().len(), 1);
    // A stop does not give up such a job either: it keeps the record and reports an error.
    let error = world.slurm.stop(&launched, Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("Unable to contact"), "{error}");
}

#[test]
fn what_is_not_shown_any_more_has_ended_as_the_records_say() {
    let world = world();
    let launched = world.submitted(2);
    world.scheduler.will("squeue", 0, "", "");
    world.scheduler.will(
        "sacct",
        0,
        "18_1|TIMEOUT|0:0|n1|x\n18_2|FAILED|3:0|n1|x\n"
            .replace("|x", &format!("|{}", launched.jobs[0].name))
            .as_str(),
        "",
    );
    let words: Vec<String> = world.slurm.states(&launched).into_iter().map(|s| s.word).collect();
    assert_eq!(words, ["timed out (TIMEOUT)", "failed, exit code 3 (FAILED)"]);
}

#[test]
fn a_stop_cancels_what_is_there_and_a_job_of_another_name_never() {
    let world = world();
    let launched = world.submitted(3);
    let lines = [
        world.line(&launched, 1, "RUNNING", "None"),
        world.line(&launched, 3, "PENDING", "Resources"),
    ];
    world.scheduler.will("squeue", 0, &lines.concat(), "");
    world.scheduler.will("sacct", 1, "", "Slurm accounting storage is disabled");
    world.scheduler.will("scancel", 0, "", "");
    world
        .scheduler
        .will("squeue", 0, &world.line(&launched, 1, "COMPLETING", "None"), "");
    let ended = world.slurm.stop(&launched, Duration::ZERO).unwrap();
    assert_eq!(ended.cancelled, 2);
    assert!(world.scheduler.asked().contains(&"scancel 18".to_string()));

    // A partial stop.
    world.scheduler.will("squeue", 0, &lines.concat(), "");
    world.scheduler.will("scancel", 0, "", "");
    world.scheduler.will("squeue", 0, &world.line(&launched, 2, "RUNNING", "None"), "");
    world.slurm.stop(&launched.only(|place| place != 1), Duration::ZERO).unwrap();
    assert!(world.scheduler.asked().contains(&"scancel 18_1 18_3".to_string()));
}

#[test]
fn a_job_that_is_still_there_after_a_stop_is_an_error_with_its_state() {
    let world = world();
    let launched = world.submitted(2);
    let lines = [
        world.line(&launched, 1, "PENDING", "JobHeldUser"),
        world.line(&launched, 2, "PENDING", "Resources"),
    ]
    .concat();
    world.scheduler.will("squeue", 0, &lines, "");
    world.scheduler.will("scancel", 0, "", "");
    // The timeout expires before the first answer.
    let slurm = Jobs {
        cancel_timeout: Duration::ZERO,
        ..world.slurm
    };
    world.scheduler.will("squeue", 0, &lines, "");
    let error = slurm.stop(&launched, Duration::ZERO).unwrap_err();
    insta::assert_snapshot!(format!("{error}\nhint: {}", error.hint().unwrap()), @r"
    jobs of Slurm are still there
      job 18, element 1: held (JobHeldUser)
      job 18, element 2: queued (Resources)
    hint: try again; `pcluster clean --force` forgets them
    ");
}

#[test]
fn a_job_under_another_name_is_left_alone_and_reported() {
    let world = world();
    let launched = world.submitted(2);
    world.scheduler.will("squeue", 0, "18|1|RUNNING|None|n1|another\n", "");
    world.scheduler.will("sacct", 1, "", "Slurm accounting storage is disabled");
    let error = world.slurm.stop(&launched, Duration::ZERO).unwrap_err();
    let name = &launched.jobs[0].name;
    assert!(
        error
            .to_string()
            .contains(&format!("job 18 is named another in the batch system, and not {name}")),
        "{error}"
    );
    let asked = world.scheduler.asked();
    assert!(asked.iter().all(|line| !line.starts_with("scancel")), "{asked:?}");
    world.scheduler.will("squeue", 0, "18|1|RUNNING|None|n1|another\n", "");
    world.scheduler.will("sacct", 1, "", "Slurm accounting storage is disabled");
    let states = world.slurm.states(&launched);
    assert!(
        states
            .iter()
            .all(|state| state.stage == Stage::Unknown && state.reason.contains("another")),
        "{states:?}"
    );
    // This cluster's job has ended, and its number was reused.
    let row = format!("18_1|COMPLETED|0:0|n1|{name}\n18_2|COMPLETED|0:0|n1|{name}\n");
    world.slurm.queue.forget();
    world.scheduler.will("squeue", 0, "18|N/A|RUNNING|None|n1|another\n", "");
    world.scheduler.will("sacct", 0, &row, "");
    assert_eq!(world.slurm.stop(&launched, Duration::ZERO).unwrap().cancelled, 0);
}

#[test]
fn a_job_on_another_cluster_is_asked_for_and_cancelled_there() {
    let world = world();
    world.scheduler.will("sbatch", 0, "18;east\n", "");
    let mut launched = world.slurm.start_engines(&world.launch(2)).unwrap();
    launched.jobs[0].submitted -= 1000.0;
    assert_eq!(launched.jobs[0].id, "18;east");
    assert!(launched.jobs[0].log.ends_with("/engines-18_{}.log"), "{}", launched.jobs[0].log);
    world.scheduler.asked();
    let lines = [
        world.line(&launched, 1, "RUNNING", "None"),
        world.line(&launched, 2, "PENDING", "Resources"),
    ]
    .concat();
    world.scheduler.will("squeue", 0, &format!("CLUSTER: east\n{lines}"), "");
    assert!(world.slurm.states(&launched).iter().all(|state| state.is_there()));
    world.scheduler.will("scancel", 0, "", "");
    world.scheduler.will("squeue", 0, "CLUSTER: east\n", "");
    world.slurm.stop(&launched, Duration::ZERO).unwrap();
    let asked = world.scheduler.asked();
    assert!(
        asked
            .iter()
            .filter(|line| line.starts_with("squeue"))
            .all(|line| line.ends_with("--clusters=east")),
        "{asked:?}"
    );
    assert!(asked.contains(&"scancel --clusters=east 18".to_string()), "{asked:?}");
}

#[test]
fn a_launch_of_processes_alone_asks_no_scheduler() {
    let world = world();
    let mut launched = Launched::new("slurm", "h".into());
    assert!(world.slurm.states(&launched).is_empty());
    launched.processes.push(Process::default());
    assert!(world.slurm.stop(&launched, Duration::ZERO).unwrap().cancelled == 0);
    assert!(world.scheduler.asked().is_empty());
}

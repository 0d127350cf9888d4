//! Launchers of batch systems that are not installable, with fake commands (tests/fake_bin); the jobs are real processes.
//! Slurm and Grid Engine themselves are tried by `cargo xtask test`.
use super::support::{Home, wait_until};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// A home with the commands of a batch system on the PATH, and a `pcluster` command in it.
struct Site {
    home: Home,
    path: String,
}

impl Site {
    fn new(commands: &[&str]) -> Site {
        let home = Home::new();
        let fake = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake_bin/fake_batch.py");
        for command in commands {
            let path = home.file(
                &format!("bin/{command}"),
                &format!("#!/bin/sh\nexec python3 {fake} {command} \"$@\"\n"),
            );
            let file = std::fs::File::open(&path).unwrap();
            file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::create_dir(home.path().join("jobs")).unwrap();
        let path = format!("{}:{}", home.path().join("bin").display(), std::env::var("PATH").unwrap());
        Site { home, path }
    }

    /// Code, stdout, stderr.
    fn run(&self, line: &str) -> (Option<i32>, String, String) {
        let mut command: Command = self.home.program(super::support::PCLUSTER);
        command.env("PATH", &self.path).env("FAKE_BATCH_DIR", self.home.path().join("jobs"));
        let output = command.args(line.split(' ')).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn ok(&self, line: &str) -> String {
        let (code, stdout, stderr) = self.run(line);
        assert_eq!(code, Some(0), "{line}\n{stdout}\n{stderr}");
        stdout
    }

    /// The processes that the jobs were given have ended.
    fn jobs_have_ended(&self) -> bool {
        let names = std::fs::read_dir(self.home.path().join("jobs")).unwrap();
        let names: Vec<String> = names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        let count = |begin: &str| {
            names
                .iter()
                .filter(|name| name.starts_with(begin) && !name.ends_with(".new"))
                .count()
        };
        count("end-") == 2
    }

    /// Two engines through a batch system, work on them, and nothing left after.
    fn whole_life(&self, launcher: &str) {
        self.ok(&format!("start -n 2 --launcher {launcher} --set launcher.poll_interval_ms=200"));
        assert_eq!(self.ok("map math:sqrt --range 1..4").lines().last(), Some("1.7320508075688772"));
        let list = self.ok("list --json");
        assert!(list.contains(launcher), "{list}");
        let scripts = std::fs::read_dir(self.home.profile().join("batch")).unwrap().count();
        assert!(scripts > 0, "the script is kept");
        self.ok("stop");
        wait_until("the jobs have ended", || self.jobs_have_ended().then_some(()));
    }

    /// The error for a missing queue.
    fn wrong_queue(&self, launcher: &str, message: &str) {
        let (code, _, stderr) = self.run(&format!("start -n 2 --launcher {launcher} --queue nope"));
        assert_ne!(code, Some(0));
        assert!(stderr.contains(message) && stderr.contains("--queue"), "{stderr}");
        let left = std::fs::read_dir(self.home.profile().join("pid")).unwrap().count();
        assert_eq!(left, 0, "nothing of it is left");
    }
}

#[test]
fn a_cluster_lives_on_lsf() {
    let site = Site::new(&["bsub", "bjobs", "bkill"]);
    site.wrong_queue("lsf", "nope: No such queue. Job not submitted.");
    site.whole_life("lsf");
}

#[test]
fn a_cluster_lives_on_openpbs() {
    let site = Site::new(&["qsub", "qstat", "qdel", "qselect"]);
    site.wrong_queue("pbs", "qsub: Unknown queue");
    site.whole_life("pbs");
}

#[test]
fn a_cluster_lives_on_htcondor() {
    let site = Site::new(&["condor_submit", "condor_q", "condor_history", "condor_rm"]);
    site.whole_life("htcondor");
}

#[test]
fn script_prints_and_submits_nothing() {
    let site = Site::new(&["bsub"]);
    let script = site.ok("script -n 15 --launcher lsf --queue long --walltime 90m");
    assert!(
        script.starts_with("#!/bin/bash\n#BSUB -J \"pcluster-default-preview[1-15]\"\n"),
        "{script}"
    );
    assert!(script.contains("#BSUB -W 1:30\n#BSUB -q long\n"), "{script}");
    let (code, _, stderr) = site.run("script --launcher local");
    assert_eq!((code, stderr.contains("does not submit scripts")), (Some(2), true), "{stderr}");
    let (code, _, stderr) = site.run("script --launcher slurm --template nothere.sh");
    assert_eq!((code, stderr.contains("nothere.sh")), (Some(5), true), "{stderr}");
    assert_eq!(std::fs::read_dir(site.home.path().join("jobs")).unwrap().count(), 0);
}

#[test]
fn jobs_and_the_work_that_waits_for_them_are_explained() {
    let site = Site::new(&["bsub", "bjobs", "bkill"]);
    let poll = "--set launcher.poll_interval_ms=200";
    site.ok(&format!("start -n 1 --launcher lsf {poll}"));
    site.home.file("jobs/pending", "User has reached the per-user job slot limit");
    site.ok(&format!("engines add 2 --launcher lsf --wait none {poll}"));
    site.ok("map --range 0..9 --detach -- sleep 60");
    let queued = wait_until("the queue is asked", || {
        let text = site.ok("explain 1.8");
        text.contains("per-user").then_some(text)
    });
    assert_eq!(
        queued,
        "task 1.8: waiting: 0 of 1 engine can take it now: 1 busy; 2 jobs are queued in lsf (User has reached the per-user job slot \
         limit)\n"
    );
    let json: serde_json::Value = serde_json::from_str(&site.ok("explain 1.8 --json")).unwrap();
    let absent = &json["absent"][0];
    assert_eq!((absent["jobs"].as_u64(), absent["launcher"].as_str()), (Some(2), Some("lsf")));

    // Jobs have the numbers 1 and 2 here, or more if the controller had one.
    let list: serde_json::Value = serde_json::from_str(&site.ok("list --json")).unwrap();
    let launches = list["clusters"][0]["engines"].as_array().unwrap().clone();
    let [first, second] = [0, 1].map(|at| launches[at]["jobs"][0]["id"].as_str().unwrap().to_string());
    let running = site.ok(&format!("explain --job {first}"));
    assert!(
        running.starts_with(&format!("job {first}.1: running (lsf, 1 engine)\n  engine 0 (")),
        "{running}"
    );
    assert!(running.ends_with("): busy\n"), "{running}");
    let waiting = site.ok(&format!("explain --job {second}"));
    assert!(
        waiting.contains(": queued: User has reached the per-user job slot limit (lsf, 1 engine)\n"),
        "{waiting}"
    );
    assert!(waiting.ends_with("  none of its engines has registered\n"), "{waiting}");
    let one = site.ok(&format!("explain --job {second}.2"));
    assert_eq!(one.lines().filter(|line| line.starts_with("job ")).count(), 1, "{one}");
    assert!(site.ok("explain --engine 0").contains(&format!("\n  job {first}")));
    let (code, _, stderr) = site.run("explain --job 4711");
    assert!(code == Some(3) && stderr.contains("has no job 4711"), "{stderr}");

    // Without the command, the line names that instead of guessing.
    let [command, hidden] = ["bin/bjobs", "hidden"].map(|name| site.home.path().join(name));
    std::fs::rename(&command, &hidden).unwrap();
    let unknown = wait_until("the queue cannot be asked", || {
        let text = site.ok("explain 1.8");
        text.contains("cannot be asked").then_some(text)
    });
    assert!(unknown.contains("the state of ") && unknown.contains("lsf"), "{unknown}");
    let recorded = site.ok(&format!("explain --job {first}"));
    assert!(
        recorded.contains("it cannot be asked now") && recorded.contains("engine 0 ("),
        "{recorded}"
    );
    std::fs::rename(&hidden, &command).unwrap();

    // The failed query is not repeated at once.
    wait_until("the cluster stops", || (site.run("stop").0 == Some(0)).then_some(()));
    let stopped = site.ok(&format!("explain --job {first}"));
    assert!(stopped.contains(" on record (lsf, 1 engine)\n  engine 0 ("), "{stopped}");
    assert!(stopped.contains("): left "), "{stopped}");
}

/// The walltime monitor is killed after the system has accepted a submission and before it is on record.
#[test]
fn an_elastic_submission_that_is_not_on_record_is_found_by_name() {
    let site = Site::new(&["bsub", "bjobs", "bkill"]);
    site.home.file("jobs/kill_submitter", "");
    let fast = "--set launcher.poll_interval_ms=200 --set elastic.interval=1s --set elastic.work_per_engine=1s";
    site.ok(&format!("start --launcher lsf --max 1 --idle 2s {fast}"));
    assert_eq!(site.ok("map math:sqrt --range 1..4").lines().last(), Some("1.7320508075688772"));
    assert!(!site.home.path().join("jobs/kill_submitter").exists());
    wait_until("the engine to go", || site.ok("engines").is_empty().then_some(()));
    let submitted = std::fs::read_dir(site.home.path().join("jobs")).unwrap().flatten();
    let submitted = submitted
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("job-"))
        .count();
    assert_eq!(submitted, 1, "{}", site.ok("elastic log"));
    site.ok("stop");
}

use super::*;
use crate::launchers::batch::JobKind;
use crate::launchers::batch::tests::{engines, fixture, refused, rendered, shown, target};
use crate::launchers::batch::{JobStatus, render};

#[test]
fn the_dialect_is_detected_from_qstat() {
    let dialect = |name: &str| OPENPBS.detect_dialect(&fixture(name)).map(|row| row.dialect());
    assert_eq!(dialect("pbs/openpbs-version.txt"), Some("openpbs"));
    assert_eq!(dialect("pbs/torque-version.txt"), Some("torque"));
    assert_eq!(dialect("pbs/slurm-version.txt"), Some("slurm"));
    assert_eq!(dialect("pbs/torque-down.txt"), None);
    for name in ["openpbs", "torque", "slurm"] {
        assert_eq!(OPENPBS.with_dialect(name).unwrap().dialect(), name);
    }
}

fn asked(row: &Pbs) -> String {
    let mut request = engines(15);
    request.resources.queue = Some("workq".into());
    request.resources.walltime = Some("36h".parse().unwrap());
    request.resources.memory = Some("2G".parse().unwrap());
    request.resources.cpus = Some(2);
    request.resources.gpus = Some(1);
    request.resources.constraint = Some("bigmem=True".into());
    let script = rendered(row, &request);
    let relevant = |line: &&str| line.starts_with("#PBS -") || line.starts_with("export");
    script.lines().filter(relevant).collect::<Vec<_>>().join("\n")
}

#[test]
fn each_dialect_has_its_own_directives() {
    insta::assert_snapshot!(asked(&OPENPBS), @r#"
    #PBS -S /bin/bash
    #PBS -N pcluster-mycluster-k3x9
    #PBS -J 1-15
    #PBS -l select=1:ncpus=2:mem=2048mb:ngpus=1:bigmem=True
    #PBS -l walltime=36:00:00
    #PBS -q workq
    #PBS -j oe
    #PBS -o /dev/null
    export PCLUSTER_JOB="${PBS_JOBID%%\[*}[]${PBS_JOBID##*\]}" PCLUSTER_ELEMENT="$PBS_ARRAY_INDEX" PCLUSTER_ENGINES=1
    export PCLUSTER_ENDS="$(($(date +%s) + 129600))"
    "#);
    insta::assert_snapshot!(asked(&TORQUE), @r#"
    #PBS -S /bin/bash
    #PBS -N pcluster-mycluster-k3x9
    #PBS -t 1-15
    #PBS -l nodes=1:ppn=2:gpus=1:bigmem=True
    #PBS -l mem=2048mb
    #PBS -l walltime=36:00:00
    #PBS -q workq
    #PBS -j oe
    #PBS -o /dev/null
    export PCLUSTER_JOB="${PBS_JOBID%%\[*}[]${PBS_JOBID##*\]}" PCLUSTER_ELEMENT="$PBS_ARRAYID" PCLUSTER_ENGINES=1
    export PCLUSTER_ENDS="$(($(date +%s) + 129600))"
    "#);
    insta::assert_snapshot!(asked(&SLURM), @r#"
    #PBS -S /bin/bash
    #PBS -N pcluster-mycluster-k3x9
    #PBS -t 1-15
    #PBS -l nodes=1:ppn=2:gpus=1:bigmem=True
    #PBS -l mem=2048mb
    #PBS -l walltime=36:00:00
    #PBS -q workq
    #PBS -j oe
    #PBS -o /dev/null
    export PCLUSTER_JOB="$SLURM_ARRAY_JOB_ID" PCLUSTER_ELEMENT="$SLURM_ARRAY_TASK_ID" PCLUSTER_ENGINES=1
    export PCLUSTER_ENDS="$(($(date +%s) + 129600))"
    "#);
    let mut request = engines(15);
    request.resources.walltime = Some("90".parse().unwrap());
    request.script = "/home/ada/my scripts/p.sh".into();
    let command = |row: &Pbs| row.submit_command(&request.script, "", &request).to_string();
    assert_eq!(command(&OPENPBS), "qsub '/home/ada/my scripts/p.sh'");
    // It passes its words through its own shell.
    assert_eq!(
        command(&SLURM),
        r#"qsub -j oe -o /dev/null -t 1-15 -l walltime=1:30:00 "'/home/ada/my scripts/p.sh'""#
    );
}

#[test]
fn openpbs_does_not_use_an_array_for_one_engine() {
    let script = rendered(&OPENPBS, &engines(1));
    assert!(!script.contains("#PBS -J"), "{script}");
    assert!(script.contains("PCLUSTER_JOB=\"$PBS_JOBID\" PCLUSTER_ELEMENT=\"\""), "{script}");
    assert!(rendered(&TORQUE, &engines(1)).contains("#PBS -t 1-1\n"));
}

/// Evaluates the shell expressions for a job's array with a real shell.
#[test]
fn a_job_determines_its_array() {
    let script = rendered(&OPENPBS, &engines(3));
    let line = script.lines().find(|line| line.starts_with("export PCLUSTER_JOB")).unwrap();
    let output = std::process::Command::new("/bin/sh")
        .args([
            "-c",
            &format!("{line}; echo \"$PCLUSTER_JOB $PCLUSTER_ELEMENT ${{PCLUSTER_JOB%%[!0-9]*}}\""),
        ])
        .env("PBS_JOBID", "19[1].pbs1")
        .env("PBS_ARRAY_INDEX", "1")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "19[].pbs1 1 19\n");
    let path = OPENPBS.log_path(&engines(3), &JobId("19[].pbs1".into()), Some(1));
    assert!(path.ends_with("log/engines-19.1.log"), "{path:?}");
}

#[test]
fn ids_are_distinguished_from_other_words() {
    for (row, name, id) in [
        (&OPENPBS, "openpbs-submit", "2.pbs1"),
        (&OPENPBS, "openpbs-submit-array", "1[].pbs1"),
        (&SLURM, "slurm-submit", "2"),
    ] {
        assert_eq!(row.parse_submit(&fixture(&format!("pbs/{name}.txt"))).unwrap().0, id);
    }
    for text in ["", "a", "12 jobs", "12.", ".x", "12[x].y", "12]", "[].x"] {
        assert!(!answers::is_id(text) || text == "12.", "{text}");
    }
}

#[test]
fn errors_have_a_problem_and_a_hint() {
    let all = ["no-queue", "no-resource", "bad-array", "bad-directive", "no-script", "both"].map(|name| format!("openpbs-{name}"));
    let all = all.into_iter().chain(["slurm-no-queue", "torque-down"].map(String::from));
    let all: Vec<String> = all
        .map(|name| format!("{name}: {}", refused(&OPENPBS, &format!("pbs/{name}.txt"))))
        .collect();
    insta::assert_snapshot!(all.join("\n"), @r"
    openpbs-no-queue: NoSuchQueue: `qstat -Q` lists the queues; name one with --queue or launchers.pbs.queue
    openpbs-no-resource: BadScript: this PBS does not know the resource; use the site's names in your own template (pcluster template copy)
    openpbs-bad-array: BadScript: check the script's #PBS lines and launchers.pbs.directives
    openpbs-bad-directive: BadScript: check the script's #PBS lines and launchers.pbs.directives
    openpbs-no-script: Other: -
    openpbs-both: BadScript: `-l nodes=` and `-l select=` exclude each other; check launchers.pbs.directives
    slurm-no-queue: NoSuchQueue: `qstat -Q` lists the queues; name one with --queue or launchers.pbs.queue
    torque-down: SchedulerDown: `qstat -B` shows whether the server is up
    ");
}

#[test]
fn query_output_of_each_dialect_is_parsed() {
    insta::assert_snapshot!(shown(&OPENPBS.parse_query(&fixture("pbs/openpbs-qstat.txt")).unwrap()), @r"
    1[].pbs1 1 Running [R] node17 - pcluster-x-k3x9: Job run at Sat Nov 21 at 00:20 on (node17:ncpus=2)
    1[].pbs1 2 Queued [Q] - - pcluster-x-k3x9: Not Running: Insufficient amount of resource: ncpus (R: 2 A: 0 T: 16)
    1[].pbs1 3 Completed [X] - 0 pcluster-x-k3x9: -
    2.pbs1 - Held [H] - - STDIN: -
    ");
    insta::assert_snapshot!(shown(&TORQUE.parse_query(&fixture("pbs/torque-qstat.txt")).unwrap()), @r"
    12[].server.example 1 Completed [C] node17 0 pcluster-x-k3x9: -
    12[].server.example 2 Running [R] node17 - pcluster-x-k3x9: -
    ");
    insta::assert_snapshot!(shown(&answers::rows(&fixture("pbs/slurm-qstat-f.txt").stdout)), @r"
    3 - Completed [C] n1 - s2.sh: -
    2 - Running [R] - - pcluster-x-1: -
    ");
    assert_eq!(OPENPBS.parse_query(&fixture("pbs/openpbs-qstat-gone.txt")).unwrap().len(), 1);
    assert_eq!(OPENPBS.parse_query(&fixture("pbs/openpbs-qstat-over.txt")).unwrap(), []);
    assert!(TORQUE.parse_query(&fixture("pbs/torque-down.txt")).is_err());
    insta::assert_snapshot!(shown(&OPENPBS.parse_history(&fixture("pbs/openpbs-history.txt"))), @r"
    3.pbs1 - Completed [F] - 0 STDIN: -
    4.pbs1 - Failed [F] - 3 STDIN: -
    5.pbs1 - Cancelled [F] - 271 STDIN: -
    6.pbs1 - TimedOut [F] - -29 STDIN: -
    ");
    let query = OPENPBS.query_command(&[JobId("1[].pbs1".into()), JobId("2.pbs1".into())], "ada");
    assert_eq!(query.to_string(), "qstat -f -t '1[].pbs1' 2.pbs1");
    assert_eq!(SLURM.query_command(&[], "ada").program, "squeue");
}

#[test]
fn an_unknown_state_does_not_count_as_ended() {
    let rows = answers::rows("Job Id: 3.pbs1\n    job_state = Z\n");
    assert_eq!(rows[0].status, JobStatus::Unknown("Z".into()));
    let rows = answers::rows("Job Id: 3.pbs1\n");
    assert_eq!(rows[0].status, JobStatus::Unknown(String::new()));
}

#[test]
fn jobs_and_their_elements_are_cancelled() {
    let targets = [target("11[].pbs1", Some(4)), target("2.pbs1", None)];
    assert_eq!(OPENPBS.cancel_command(&targets).to_string(), "qdel '11[4].pbs1' 2.pbs1");
    assert_eq!(SLURM.cancel_command(&[target("7", Some(2))]).to_string(), "scancel 7_2");
    assert!(OPENPBS.parse_cancel(&fixture("pbs/openpbs-qdel-unknown.txt")).is_ok());
    assert!(TORQUE.parse_cancel(&fixture("pbs/torque-down.txt")).is_err());
}

#[test]
fn values_that_cannot_be_quoted_are_rejected() {
    let mut request = engines(2);
    request.resources.queue = Some("a b".into());
    let error = render(&OPENPBS, "engines.sh.tera", OPENPBS.templates(JobKind::Engines)[0].text, &request).unwrap_err();
    insta::assert_snapshot!(error, @r#"queue "a b" cannot be written in a script for OpenPBS: it contains a blank, a quote, `\`, `#` or `$`"#);
}

#[test]
fn one_job_of_all_engines_is_distributed_over_nodes() {
    let mut request = engines(10);
    request.resources.start = StartMode::Mpiexec;
    request.resources.nodes = Some(4);
    request.resources.cpus = Some(2);
    let asked = |row: &Pbs| row.resources(&request).join(" ");
    assert_eq!(asked(&OPENPBS), "select=4:ncpus=6:mpiprocs=3");
    assert_eq!(asked(&TORQUE), "nodes=4:ppn=6");
    assert!(rendered(&OPENPBS, &request).contains("\nmpiexec -n 10 /opt/pcluster/bin/pcluster engine"));
}

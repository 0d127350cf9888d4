use super::*;
use crate::launchers::batch::tests::{engines, fixture, refused, rendered, shown, target};

#[test]
fn engines_are_one_array() {
    let mut request = engines(15);
    request.resources.queue = Some("batch".into());
    request.resources.directives = vec!["--exclusive".into(), "--comment=\"for pi\"".into()];
    insta::assert_snapshot!(rendered(&Slurm, &request), @r#"
    #!/bin/bash
    #SBATCH --job-name=pcluster-mycluster-k3x9
    #SBATCH --array=1-15
    #SBATCH --partition=batch
    #SBATCH --chdir=/home/ada/work
    #SBATCH --output=/home/ada/.ipython/profile_mycluster/log/engines-%A_%a.log
    #SBATCH --open-mode=append
    #SBATCH --exclusive
    #SBATCH --comment="for pi"
    # pcluster 0.1.0: 15 engines of profile mycluster, cluster id ""

    export PCLUSTER_JOB="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}" PCLUSTER_ELEMENT="${SLURM_ARRAY_TASK_ID:-}" PCLUSTER_ENGINES=1
    # A failing setup line ends the job and is reported.
    if [ -n "$BASH_VERSION" ]; then
        pcluster_script=${BASH_SOURCE[0]-}
        pcluster_failed() {
            trap - ERR EXIT
            echo "pcluster: a setup line failed (exit code $1), line $2: $(sed -n "$2{s/^ *//;p}" "$pcluster_script" 2> /dev/null || echo "$3")" >&2
            exit "$1"
        }
        trap 'pcluster_status=$?; [ "${BASH_SOURCE[0]-}" != "$pcluster_script" ] || pcluster_failed "$pcluster_status" "$LINENO" "$BASH_COMMAND"' ERR
        trap 'echo "pcluster: the script ended before it started anything (exit code $?), after: $BASH_COMMAND" >&2' EXIT
    fi

    [ -z "$BASH_VERSION" ] || trap - ERR EXIT
    # A batch system may signal the whole process group before it kills; only the shell handles it.
    trap '' USR1 USR2 XCPU
    started=
    /opt/pcluster/bin/pcluster engine --profile-dir /home/ada/.ipython/profile_mycluster &
    started=$!
    trap 'kill -TERM $started 2>/dev/null' TERM INT
    trap 'kill -USR2 $started 2>/dev/null' USR1 USR2 XCPU
    status=0
    for process in $started; do
        wait "$process"; code=$?
        # A signal interrupts the wait, not the process. Some shells forget a status that was already returned (127).
        while [ "$code" -gt 128 ]; do
            wait "$process" 2>/dev/null; again=$?
            [ "$again" != 127 ] || break
            [ "$again" != "$code" ] || kill -0 "$process" 2>/dev/null || break
            code=$again
        done
        [ "$code" = 0 ] || status=$code
    done
    exit "$status"
    "#);
}

#[test]
fn ids_are_found_between_banner_lines() {
    for name in ["submit", "submit-sentence", "submit-banner"] {
        assert_eq!(
            Slurm.parse_submit(&fixture(&format!("slurm/{name}.txt"))).unwrap().0,
            "18",
            "{name}"
        );
    }
    assert_eq!(Slurm.parse_submit(&fixture("slurm/submit-federation.txt")).unwrap().0, "18;cluster");
}

#[test]
fn errors_have_a_problem_and_a_hint() {
    let all = ["no-partition", "bad-array", "bad-directive", "no-script", "down"];
    let all = all.map(|name| format!("{name}: {}", refused(&Slurm, &format!("slurm/{name}.txt"))));
    insta::assert_snapshot!(all.join("\n"), @r"
    no-partition: NoSuchQueue: `sinfo -s` lists the partitions; name one with --queue or launchers.slurm.queue
    bad-array: Limit: `scontrol show config | grep MaxArraySize` shows the maximum array size; --engines-per-job reduces the number of jobs
    bad-directive: BadScript: check the script's #SBATCH lines and launchers.slurm.directives
    no-script: Other: -
    down: SchedulerDown: `scontrol ping` shows whether the controller is up
    ");
}

#[test]
fn query_output_is_parsed() {
    insta::assert_snapshot!(shown(&Slurm.parse_query(&fixture("slurm/squeue.txt")).unwrap()), @r"
    18 7 Queued [PENDING] - - pcluster-x-k3x9: JobArrayTaskLimit
    18 1 Running [RUNNING] n2 - pcluster-x-k3x9: -
    18 2 Completed [COMPLETED] n1 - pcluster-x-k3x9: -
    14 - Running [RUNNING] n2 - a name|with signs: -
    15 - Held [PENDING] - - held: JobHeldUser
    16 - Failed [FAILED] n1 - false: NonZeroExitCode
    17 - TimedOut [TIMEOUT] n1 - sleep: TimeLimit
    20 - Cancelled [CANCELLED] n1 - sleep: -
    21 - Queued [PENDING] - - big: Resources
    ");
    assert!(Slurm.parse_query(&fixture("slurm/squeue-down.txt")).is_err());
    let found = Slurm.parse_find(&fixture("slurm/squeue.txt"), "pcluster-x-k3x9").unwrap();
    assert_eq!(found, [JobId("18".into())]);
    assert_eq!(
        Slurm.find_command("pcluster-x-k3x9", "ada").to_string(),
        "squeue --noheader --array --states=all --user=ada '--format=%F|%K|%T|%r|%B|%j' --name=pcluster-x-k3x9"
    );
}

/// Every state of squeue(1), "JOB STATE CODES", and an unknown one.
#[test]
fn every_state_is_mapped_and_an_unknown_one_does_not_count_as_ended() {
    let words = "BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PENDING PREEMPTED \
                 RUNNING RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED RESIZING REVOKED SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED \
                 SUSPENDED TIMEOUT EXPEDITING";
    let all: Vec<String> = words
        .split_whitespace()
        .map(|word| format!("{word} {:?}", squeue::status(word, None)))
        .collect();
    insta::assert_snapshot!(all.join("\n"), @r#"
    BOOT_FAIL NodeFailed
    CANCELLED Cancelled
    COMPLETED Completed
    CONFIGURING Starting
    COMPLETING Completing
    DEADLINE TimedOut
    FAILED Failed
    NODE_FAIL NodeFailed
    OUT_OF_MEMORY OutOfMemory
    PENDING Queued
    PREEMPTED Preempted
    RUNNING Running
    RESV_DEL_HOLD Held
    REQUEUE_FED Requeued
    REQUEUE_HOLD Held
    REQUEUED Requeued
    RESIZING Running
    REVOKED Cancelled
    SIGNALING Running
    SPECIAL_EXIT Held
    STAGE_OUT Completing
    STOPPED Suspended
    SUSPENDED Suspended
    TIMEOUT TimedOut
    EXPEDITING Unknown("EXPEDITING")
    "#);
}

#[test]
fn the_outcome_of_a_job_is_parsed_from_accounting() {
    insta::assert_snapshot!(shown(&Slurm.parse_history(&fixture("slurm/sacct.txt"))), @r"
    18 1 Cancelled [CANCELLED by 0] n2 0 pcluster-x-k3x9: -
    18 2 Completed [COMPLETED] n1 0 pcluster-x-k3x9: -
    18 3 Failed [FAILED] n1 3 pcluster-x-k3x9: -
    18 4 TimedOut [TIMEOUT] n1 0 pcluster-x-k3x9: -
    ");
    assert_eq!(Slurm.parse_history(&fixture("slurm/sacct-off.txt")), []);
}

#[test]
fn jobs_and_their_elements_are_cancelled_and_signalled() {
    let targets = [target("18", Some(3)), target("14", None)];
    assert_eq!(Slurm.cancel_command(&targets).to_string(), "scancel 18_3 14");
    assert!(Slurm.parse_cancel(&fixture("slurm/scancel-unknown.txt")).is_ok());
    assert!(Slurm.parse_cancel(&fixture("slurm/squeue-down.txt")).is_err());
}

#[test]
fn srun_starts_one_job_of_all_engines() {
    let mut request = engines(16);
    let resources = &mut request.resources;
    resources.start = crate::profile::config::resources::StartMode::Srun;
    (resources.nodes, resources.cpus, resources.gpus) = (Some(4), Some(2), Some(1));
    resources.memory = Some("4G".parse().unwrap());
    let script = rendered(&Slurm, &request);
    let relevant = |line: &&str| line.starts_with("#SBATCH") || line.starts_with("srun");
    insta::assert_snapshot!(script.lines().filter(relevant).collect::<Vec<_>>().join("\n"), @r"
    #SBATCH --job-name=pcluster-mycluster-k3x9
    #SBATCH --ntasks=16
    #SBATCH --nodes=4
    #SBATCH --cpus-per-task=2
    #SBATCH --mem-per-cpu=2048M
    #SBATCH --gpus-per-task=1
    #SBATCH --chdir=/home/ada/work
    #SBATCH --output=/home/ada/.ipython/profile_mycluster/log/engines-%j.log
    #SBATCH --open-mode=append
    srun --ntasks=16 --export=ALL --kill-on-bad-exit=0 --wait=0 /opt/pcluster/bin/pcluster engine --profile-dir /home/ada/.ipython/profile_mycluster &
    ");
    request.resources.start = Default::default();
    let error = Slurm.variables(&request).unwrap_err();
    insta::assert_snapshot!(format!("{error}\nhint: {}", error.hint().unwrap()), @r"
    Slurm does not support a number of nodes for jobs on a single node
    hint: set launchers.slurm.start to srun for one job of all engines, or remove launchers.slurm.nodes
    ");
}

#[test]
fn the_job_gets_the_delay_between_warning_and_kill() {
    let lines = |request: JobRequest| -> Vec<String> {
        let script = rendered(&Slurm, &request);
        let relevant = script.lines().filter(|line| line.contains("AFTER_") || line.contains("trap 'kill"));
        relevant.map(str::to_string).collect()
    };
    let output = fixture("slurm/config.txt");
    assert_eq!(
        lines(engines(1).with_kill_wait(&Slurm, Some(&output))),
        [
            "export PCLUSTER_AFTER_TERM=2",
            "trap 'kill -TERM $started 2>/dev/null' TERM INT",
            "trap 'kill -USR2 $started 2>/dev/null' USR1 USR2 XCPU",
        ]
    );
    assert_eq!(lines(engines(1).with_kill_wait(&Slurm, None))[0], "export PCLUSTER_AFTER_TERM=30");
    let mut request = engines(1);
    (request.resources.kill_wait_s, request.handles_sigusr2) = (Some(7), false);
    assert!(request.kill_wait_query(&Slurm).is_none(), "the setting takes precedence");
    assert_eq!(
        lines(request.with_kill_wait(&Slurm, None)),
        [
            "export PCLUSTER_AFTER_TERM=7",
            "trap 'kill -TERM $started 2>/dev/null' TERM INT USR1 USR2 XCPU",
        ]
    );
}

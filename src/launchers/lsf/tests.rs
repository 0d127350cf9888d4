use super::*;
use crate::launchers::batch::tests::{engines, fixture, refused, rendered, shown, target};

#[test]
fn engines_are_one_array() {
    let mut request = engines(15);
    let resources = &mut request.resources;
    (resources.queue, resources.account) = (Some("normal".into()), Some("pi".into()));
    resources.walltime = Some("2d".parse().unwrap());
    (resources.memory, resources.gpus) = (Some("2G".parse().unwrap()), Some(1));
    resources.constraint = Some("type==any".into());
    (resources.mail_user, resources.mail_type) = (Some("ada@site".into()), Some("-B -N".into()));
    request.engines_per_job = 4;
    let script = rendered(&Lsf, &request);
    insta::assert_snapshot!(script.split("# A batch system").next().unwrap(), @r#"
    #!/bin/bash
    #BSUB -J "pcluster-mycluster-k3x9[1-4]"
    #BSUB -n 4
    #BSUB -R "span[hosts=1]"
    #BSUB -R "rusage[mem=8192]"
    #BSUB -R "select[type==any]"
    #BSUB -gpu num=4
    #BSUB -W 48:00
    #BSUB -q normal
    #BSUB -P pi
    #BSUB -u ada@site
    #BSUB -B -N
    #BSUB -cwd /home/ada/work
    #BSUB -o /home/ada/.ipython/profile_mycluster/log/engines-%J.%I.log
    # pcluster 0.1.0: 15 engines of profile mycluster, cluster id ""

    export PCLUSTER_JOB="$LSB_JOBID" PCLUSTER_ELEMENT="${LSB_JOBINDEX#0}" PCLUSTER_ENGINES=4
    export PCLUSTER_ENDS="$(($(date +%s) + 172800))"
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
    "#);
    let command = Lsf.submit_command(&request.script, &script, &request);
    assert_eq!((command.to_string().as_str(), command.stdin), ("bsub", Some(script)));
}

#[test]
fn ids_are_found() {
    for (name, id) in [("submit", "607844"), ("submit-default", "16633929"), ("submit-short", "984097")] {
        assert_eq!(Lsf.parse_submit(&fixture(&format!("lsf/{name}.txt"))).unwrap().0, id);
    }
}

#[test]
fn errors_have_a_problem_and_a_hint() {
    let all = ["no-queue", "too-many", "bad-select", "not-a-host", "bjobs-down"];
    let all = all.map(|name| format!("{name}: {}", refused(&Lsf, &format!("lsf/{name}.txt"))));
    insta::assert_snapshot!(all.join("\n"), @r"
    no-queue: NoSuchQueue: `bqueues` lists the queues; name one with --queue or launchers.lsf.queue
    too-many: Limit: `bhosts` shows the hosts' processors, `bqueues -l` the queues' limits
    bad-select: BadScript: check the script's -R lines, launchers.lsf.constraint and launchers.lsf.directives
    not-a-host: NoPermission: this host may not submit jobs; run this on a login node of the cluster
    bjobs-down: SchedulerDown: `lsid` shows whether LSF is up
    ");
}

#[test]
fn query_output_is_parsed() {
    insta::assert_snapshot!(shown(&Lsf.parse_query(&fixture("lsf/bjobs.txt")).unwrap()), @r#"
    261871 1 Completed [DONE] node17 - pcluster-x-k3x9: -
    261871 2 Running [RUN] node18 - pcluster-x-k3x9: -
    261871 3 Queued [PEND] - - pcluster-x-k3x9: Job slot limit reached: 2 hosts;
    261871 4 TimedOut [EXIT] node17 140 pcluster-x-k3x9: TERM_RUNLIMIT: job killed after reaching LSF run time limit
    261871 5 Cancelled [EXIT] node17 130 pcluster-x-k3x9: TERM_OWNER: job killed by owner
    261871 6 OutOfMemory [EXIT] node17 137 pcluster-x-k3x9: TERM_MEMLIMIT: job killed after reaching LSF memory usage limit
    261871 7 Unknown("UNKWN") [UNKWN] node19 - pcluster-x-k3x9: -
    261880 - Held [PSUSP] - - a|name: Job was suspended by LSF admin or root while pending;
    "#);
    assert_eq!(Lsf.parse_query(&fixture("lsf/bjobs-none.txt")).unwrap(), []);
    assert!(Lsf.parse_query(&fixture("lsf/bjobs-down.txt")).is_err());
    let found = Lsf.parse_find(&fixture("lsf/bjobs.txt"), "pcluster-x-k3x9").unwrap();
    assert_eq!(found, [JobId("261871".into())]);
}

#[test]
fn jobs_and_their_elements_are_cancelled() {
    let targets = [target("261871", Some(2)), target("7", None)];
    assert_eq!(Lsf.cancel_command(&targets).to_string(), "bkill '261871[2]' 7");
    assert!(Lsf.parse_cancel(&fixture("lsf/bkill.txt")).is_ok());
    assert!(Lsf.parse_cancel(&fixture("lsf/bkill-over.txt")).is_ok());
    assert!(Lsf.parse_cancel(&fixture("lsf/bjobs-down.txt")).is_err());
}

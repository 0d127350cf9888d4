use super::*;
use crate::launchers::batch::JobKind;
use crate::launchers::batch::render;
use crate::launchers::batch::tests::{engines, fixture, refused, rendered, shown, target};

#[test]
fn engines_are_a_submit_description_and_its_script() {
    let mut request = engines(15);
    let resources = &mut request.resources;
    resources.walltime = Some("2h".parse().unwrap());
    (resources.memory, resources.cpus) = (Some("2G".parse().unwrap()), Some(2));
    resources.constraint = Some("(OpSysAndVer == \"Debian12\")".into());
    resources.directives = vec!["+WantPool = true".into()];
    request.cwd = "/home/ada/cost in $".into();
    insta::assert_snapshot!(rendered(&HtCondor, &request), @r#"
    # pcluster 0.1.0: 15 engines of profile mycluster, cluster id ""
    universe = vanilla
    batch_name = pcluster-mycluster-k3x9
    executable = /home/ada/.ipython/profile_mycluster/batch/pcluster-mycluster-k3x9.sh
    arguments = $(Cluster) $(Process)
    initialdir = /home/ada/cost in $(DOLLAR)
    should_transfer_files = no
    request_cpus = 2
    request_memory = 2048MB
    requirements = (OpSysAndVer == "Debian12")
    periodic_remove = (JobStatus == 2) && (time() - EnteredCurrentStatus > 7200)
    +WantPool = true
    queue 15
    "#);
    let template = HtCondor.templates(JobKind::Engines)[1];
    let script = render(&HtCondor, template.name, template.text, &request).unwrap();
    insta::assert_snapshot!(script.split("# A batch system").next().unwrap(), @r#"
    #!/bin/bash
    # pcluster 0.1.0: the script of each job of pcluster-mycluster-k3x9; its arguments are the cluster and the process number.

    export PCLUSTER_JOB="$1" PCLUSTER_ELEMENT="$(($2 + 1))" PCLUSTER_ENGINES=1
    export PCLUSTER_ENDS="$(($(date +%s) + 7200))"
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
    exec >> /home/ada/.ipython/profile_mycluster/log/engines-"$PCLUSTER_JOB.$PCLUSTER_ELEMENT.log" 2>&1

    [ -z "$BASH_VERSION" ] || trap - ERR EXIT
    "#);
}

#[test]
fn submit_output_is_parsed() {
    assert_eq!(HtCondor.parse_submit(&fixture("htcondor/submit.txt")).unwrap().0, "837");
    let all = ["down", "no-queue-line"].map(|name| format!("{name}: {}", refused(&HtCondor, &format!("htcondor/{name}.txt"))));
    insta::assert_snapshot!(all.join("\n"), @r"
    down: SchedulerDown: `condor_status -schedd` shows whether the schedd is up
    no-queue-line: BadScript: the description needs a line `queue {{ jobs }}`
    ");
}

#[test]
fn query_output_is_parsed() {
    insta::assert_snapshot!(shown(&HtCondor.parse_query(&fixture("htcondor/condor_q.txt")).unwrap()), @r#"
    837 1 Running [Running] node17.example - pcluster-x-k3x9: -
    837 2 Queued [Idle] - - pcluster-x-k3x9: -
    837 3 Held [Held] - - pcluster-x-k3x9: Error from slot1@node18: Failed to execute '/x.sh': Permission denied
    837 4 Unknown("JobStatus 9") [?] - - -: -
    "#);
    assert_eq!(HtCondor.parse_query(&fixture("htcondor/condor_q-none.txt")).unwrap(), []);
    assert!(HtCondor.parse_query(&fixture("htcondor/down.txt")).is_err());
    insta::assert_snapshot!(shown(&HtCondor.parse_history(&fixture("htcondor/condor_history.txt"))), @r"
    837 1 Failed [Completed] node17.example 3 -: -
    837 2 Cancelled [Removed] - - -: via condor_rm (by user ada)
    837 3 TimedOut [Removed] - - -: The job attribute PeriodicRemove expression '(JobStatus == 2) && (time() - EnteredCurrentStatus > 60)' evaluated to TRUE
    ");
    let find = HtCondor.find_command("pcluster-x-k3x9", "ada");
    assert!(
        find.to_string().ends_with(r#"-constraint 'JobBatchName == "pcluster-x-k3x9"'"#),
        "{find}"
    );
}

#[test]
fn jobs_and_their_elements_are_cancelled() {
    let targets = [target("837", Some(1)), target("838", None)];
    assert_eq!(HtCondor.cancel_command(&targets).to_string(), "condor_rm 837.0 838");
    assert!(HtCondor.parse_cancel(&fixture("htcondor/condor_rm.txt")).is_ok());
    assert!(HtCondor.parse_cancel(&fixture("htcondor/condor_rm-unknown.txt")).is_ok());
    assert!(HtCondor.parse_cancel(&fixture("htcondor/down.txt")).is_err());
}

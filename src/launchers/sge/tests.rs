use super::*;
use crate::launchers::batch::tests::{engines, fixture, refused, rendered, shown, target};

#[test]
fn an_engine_set_is_one_array() {
    let mut request = engines(15);
    let resources = &mut request.resources;
    (resources.queue, resources.account) = (Some("all.q,short.q".into()), Some("pi".into()));
    resources.walltime = Some("2d".parse().unwrap());
    (resources.memory, resources.cpus) = (Some("2G".parse().unwrap()), Some(2));
    resources.modules = vec!["python/3.12".into()];
    request.cwd = "/home/ada/my work".into();
    let script = rendered(&Sge, &request);
    insta::assert_snapshot!(script.split("# A batch system").next().unwrap(), @r#"
    #!/bin/bash
    #$ -S /bin/bash
    #$ -N pcluster-mycluster-k3x9
    #$ -t 1-15
    #$ -pe smp 2
    #$ -q all.q,short.q
    #$ -P pi
    #$ -l h_rt=48:00:00
    #$ -l mem_free=2048M
    #$ -wd "/home/ada/my work"
    #$ -j y
    #$ -o /home/ada/.ipython/profile_mycluster/log/engines-$JOB_ID.$TASK_ID.log
    #$ -notify
    # pcluster 0.1.0: 15 engines of profile mycluster, cluster id ""

    export PCLUSTER_JOB="$JOB_ID" PCLUSTER_ELEMENT="${SGE_TASK_ID#undefined}"
    export PCLUSTER_ENDS="$(($(date +%s) + 172800))"
    # A shell that is no login shell may not know `module`.
    if ! type module > /dev/null 2>&1; then
        for file in /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh \
            "${MODULESHOME:-/usr/share/modules}/init/bash" "${LMOD_PKG:-/usr/share/lmod/lmod}/init/bash"; do
            if [ -r "$file" ]; then . "$file"; break; fi
        done
    fi
    # A setup line that fails ends the job, and is shown.
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
    module load python/3.12

    [ -z "$BASH_VERSION" ] || trap - ERR EXIT
    "#);
    request.cwd = "/home/ada/it's".into();
    let error = super::super::batch::render(&Sge, "engines.sh.tera", Sge.templates(JobKind::Engines)[0].text, &request).unwrap_err();
    insta::assert_snapshot!(error, @r#"cwd is "/home/ada/it's", which a line of the script for Grid Engine cannot hold: it has a quote, `#`, or in a path `$`, `:` or a comma"#);
}

#[test]
fn ids_are_found() {
    for (name, id) in [
        ("submit.txt", "5"),
        ("submit-array.txt", "1"),
        ("submit-sentence.txt", "3"),
        ("submit-array-sentence.txt", "1"),
        ("submit-jsv.txt", "260032"),
    ] {
        assert_eq!(Sge.parse_submit(&fixture(&format!("sge/{name}"))).unwrap().0, id, "{name}");
    }
}

#[test]
fn refusals_have_a_kind_and_a_hint() {
    let all = ["no-queue", "no-project", "no-pe", "no-resource", "bad-directive", "down"];
    let all = all.map(|name| format!("{name}: {}", refused(&Sge, &format!("sge/{name}.txt"))));
    insta::assert_snapshot!(all.join("\n"), @r"
    no-queue: NoSuchQueue: `qconf -sql` lists the queues; name one with --queue or launchers.sge.queue
    no-project: NoSuchAccount: `qconf -sprjl` lists the projects; name one with --account or launchers.sge.account
    no-pe: NoSuchQueue: `qconf -spl` lists the parallel environments; name one with launchers.sge.parallel_environment
    no-resource: BadScript: `qconf -sc` lists what can be asked for with -l; a template of your own names the site's (pcluster template copy)
    bad-directive: BadScript: look at the script's #$ lines and launchers.sge.directives
    down: SchedulerDown: the master does not answer; `qstat` shows whether it is back
    ");
}

#[test]
fn a_query_is_understood() {
    assert_eq!(Sge.query_command(&[], "ada").to_string(), "qstat -u ada -s prs -q '*' -xml");
    insta::assert_snapshot!(shown(&Sge.parse_query(&fixture("sge/qstat.txt")).unwrap()), @r"
    1 1 Running [r] sge1 - pcluster-x-g1: -
    1 2 Completing [dr] sge1 - pcluster-x-g1: -
    1 17 Queued [qw] - - pcluster-x-g1: -
    1 18 Queued [qw] - - pcluster-x-g1: -
    1 19 Queued [qw] - - pcluster-x-g1: -
    2 - Stuck [Eqw] - - pcluster-x-g2: -
    3 13 Held [hqw] - - other: -
    3 14 Held [hqw] - - other: -
    4 - Requeued [Rq] - - again: -
    ");
    assert_eq!(Sge.parse_query(&fixture("sge/qstat-none.txt")).unwrap(), []);
    assert!(Sge.parse_query(&fixture("sge/down.txt")).is_err());
    let found = Sge.parse_find(&fixture("sge/qstat.txt"), "pcluster-x-g1").unwrap();
    assert_eq!(found, [JobId("1".into())]);
}

#[test]
fn an_unknown_state_is_neither_an_end_nor_a_failure() {
    for word in ["", "X", "qwx", "?"] {
        assert_eq!(status(word), JobStatus::Unknown(word.into()));
    }
    assert_eq!(status("Rr"), JobStatus::Running);
    assert_eq!(status("T"), JobStatus::Suspended);
    assert_eq!(status("t"), JobStatus::Starting);
}

#[test]
fn why_a_job_waits_is_said_in_one_line() {
    let reason = |name: &str| Sge.parse_reason(&fixture(name));
    assert_eq!(
        reason("sge/qstat-j-error.txt").as_deref(),
        Some("11/21/2026 00:21:00 [0:26371]: error: can't open output file \"/nonexistent/dir/x\": No such file or directory")
    );
    assert_eq!(
        reason("sge/qstat-j-pe.txt").as_deref(),
        Some("cannot run in PE \"smp\" because it only offers 0 slots")
    );
    assert_eq!(reason("sge/qstat-j-none.txt"), None);
}

#[test]
fn what_became_of_a_job_is_known() {
    insta::assert_snapshot!(shown(&Sge.parse_history(&fixture("sge/qacct.txt"))), @r"
    1 1 Completed [failed 0] sge1 0 pcluster-x-g1: exit_status 0
    1 2 Failed [failed 0] sge1 3 pcluster-x-g1: exit_status 3
    1 3 Failed [failed 100 : assumedly after job] sge1 140 pcluster-x-g1: exit_status 140 (User defined signal 2)
    1 4 TimedOut [failed 37  : qmaster enforced h_rt, h_cpu, or h_vmem limit] sge1 137 pcluster-x-g1: exit_status 137 (Killed)
    ");
    insta::assert_snapshot!(shown(&Sge.parse_history(&fixture("sge/qacct-single.txt"))), @r"1 - Completed [failed 0] sge1 0 pcluster-x-g1: exit_status 0");
    assert_eq!(Sge.parse_history(&Output::default()), []);
}

#[test]
fn jobs_and_their_elements_are_cancelled() {
    let command = Sge.cancel_command(&[target("1", Some(3)), target("2", None)]);
    assert_eq!(command.to_string(), "qdel 1.3 2");
    assert!(Sge.parse_cancel(&fixture("sge/qdel.txt")).is_ok());
    assert!(Sge.parse_cancel(&fixture("sge/qdel-unknown.txt")).is_ok());
    assert!(Sge.parse_cancel(&fixture("sge/down.txt")).is_err());
}

#[test]
fn a_template_may_ask_for_memory_per_slot() {
    let mut request = engines(2);
    request.resources.cpus = Some(4);
    request.resources.memory = Some("3G".parse().unwrap());
    let text = "#$ -t {{ array }}\n#$ -pe {{ parallel_environment }}\n#$ -l mem_free={{ memory_per_slot }}\n{{ engines }}\n";
    let script = super::super::batch::render(&Sge, "engines.sh.tera", text, &request).unwrap();
    assert!(script.starts_with("#$ -t 1-2\n#$ -pe smp 4\n#$ -l mem_free=768M\n"), "{script}");
}

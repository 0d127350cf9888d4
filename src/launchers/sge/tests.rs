use super::*;
use crate::launchers::batch::JobKind;
use crate::launchers::batch::tests::{engines, fixture, refused, rendered, shown, target};

#[test]
fn engines_are_one_array() {
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
    #$ -l mem_free=1024M
    #$ -wd "/home/ada/my work"
    #$ -j y
    #$ -o /home/ada/.ipython/profile_mycluster/log/engines-$JOB_ID.$TASK_ID.log
    #$ -notify
    # pcluster 0.1.0: 15 engines of profile mycluster, cluster id ""

    export PCLUSTER_JOB="$JOB_ID" PCLUSTER_ELEMENT="${SGE_TASK_ID#undefined}" PCLUSTER_ENGINES=1
    export PCLUSTER_ENDS="$(($(date +%s) + 172800))"
    # A non-login shell may not define `module`.
    if ! type module > /dev/null 2>&1; then
        for file in /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh \
            "${MODULESHOME:-/usr/share/modules}/init/bash" "${LMOD_PKG:-/usr/share/lmod/lmod}/init/bash"; do
            if [ -r "$file" ]; then . "$file"; break; fi
        done
    fi
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
    module load python/3.12

    [ -z "$BASH_VERSION" ] || trap - ERR EXIT
    "#);
    request.cwd = "/home/ada/it's".into();
    let error = super::super::batch::render(&Sge, "engines.sh.tera", Sge.templates(JobKind::Engines)[0].text, &request).unwrap_err();
    insta::assert_snapshot!(error, @r#"cwd "/home/ada/it's" cannot be written in a script for Grid Engine: it contains a quote, `#`, or in a path `$`, `:` or a comma"#);
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
fn errors_have_a_problem_and_a_hint() {
    let all = ["no-queue", "no-project", "no-pe", "no-resource", "bad-directive", "down"];
    let all = all.map(|name| format!("{name}: {}", refused(&Sge, &format!("sge/{name}.txt"))));
    insta::assert_snapshot!(all.join("\n"), @r"
    no-queue: NoSuchQueue: `qconf -sql` lists the queues; name one with --queue or launchers.sge.queue
    no-project: NoSuchAccount: `qconf -sprjl` lists the projects; name one with --account or launchers.sge.account
    no-pe: NoSuchQueue: `qconf -spl` lists the parallel environments; name one with launchers.sge.parallel_environment
    no-resource: BadScript: `qconf -sc` lists the resources for -l; use the site's names in your own template (pcluster template copy)
    bad-directive: BadScript: check the script's #$ lines and launchers.sge.directives
    down: SchedulerDown: the master does not answer; `qstat` shows whether it is back
    ");
}

#[test]
fn query_output_is_parsed() {
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
fn an_unknown_state_is_neither_ended_nor_failed() {
    for word in ["", "X", "qwx", "?"] {
        assert_eq!(status(word), JobStatus::Unknown(word.into()));
    }
    assert_eq!(status("Rr"), JobStatus::Running);
    assert_eq!(status("T"), JobStatus::Suspended);
    assert_eq!(status("t"), JobStatus::Starting);
}

#[test]
fn the_reason_of_a_waiting_job_is_one_line() {
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
fn the_outcome_of_a_job_is_parsed() {
    insta::assert_snapshot!(shown(&Sge.parse_history(&fixture("sge/qacct.txt"))), @r"
    1 1 Completed [failed 0] sge1 0 pcluster-x-g1: exit_status 0
    1 2 Failed [failed 0] sge1 3 pcluster-x-g1: exit_status 3
    1 3 Failed [failed 100 : assumedly after job] sge1 140 pcluster-x-g1: exit_status 140 (User defined signal 2)
    1 4 TimedOut [failed 37  : qmaster enforced h_rt, h_cpu, or h_vmem limit] sge1 137 pcluster-x-g1: exit_status 137 (Killed)
    ");
    insta::assert_snapshot!(shown(&Sge.parse_history(&fixture("sge/qacct-single.txt"))), @r"1 - Completed [failed 0] sge1 0 pcluster-x-g1: exit_status 0");
    assert_eq!(Sge.parse_history(&CommandOutput::default()), []);
}

#[test]
fn jobs_and_their_elements_are_cancelled() {
    let command = Sge.cancel_command(&[target("1", Some(3)), target("2", None)]);
    assert_eq!(command.to_string(), "qdel 1.3 2");
    assert!(Sge.parse_cancel(&fixture("sge/qdel.txt")).is_ok());
    assert!(Sge.parse_cancel(&fixture("sge/qdel-unknown.txt")).is_ok());
    assert!(Sge.parse_cancel(&fixture("sge/down.txt")).is_err());
}

/// The amounts passed to qsub for one engine with 4 processors, 3 GiB and 2 GPUs, at a site with
/// this output of `qconf -sc`.
fn amounts_at(site: Option<CommandOutput>) -> Vec<String> {
    let mut request = engines(2);
    request.resources.cpus = Some(4);
    request.resources.memory = Some("3001M".parse().unwrap());
    request.resources.gpus = Some(2);
    let request = request.with_site_settings(&Sge, |question| {
        assert_eq!(question.to_string(), "qconf -sc");
        site.clone()
    });
    let script = rendered(&Sge, &request);
    let amounts = script.lines().filter_map(|line| line.strip_prefix("#$ -l "));
    amounts.map(String::from).collect()
}

#[test]
fn amounts_are_per_engine_for_every_way_of_counting() {
    // At this site mem_free is not consumable, and gpu is not defined.
    let plain = fixture("sge/qconf-sc.txt");
    assert_eq!(amounts_at(Some(plain.clone())), ["mem_free=3001M", "gpu=1"]);
    let is_mem_free = |line: &&str| line.starts_with("mem_free ");
    let line = plain.stdout.lines().find(is_mem_free).unwrap();
    let counted = |how: &str| {
        let gpu = "gpu gpu INT <= YES JOB 0 0";
        let changed = format!("mem_free mf MEMORY <= YES {how} 0 0\n{gpu}");
        Some(CommandOutput {
            stdout: plain.stdout.replace(line, &changed),
            ..plain.clone()
        })
    };
    // Rounded up: 4 × 751 MiB.
    assert_eq!(amounts_at(counted("YES")), ["mem_free=751M", "gpu=2"]);
    assert_eq!(amounts_at(counted("JOB")), ["mem_free=3001M", "gpu=2"]);
    // Without an answer: per slot, as at most sites.
    assert_eq!(amounts_at(None), ["mem_free=751M", "gpu=1"]);
    let down = fixture("sge/down.txt");
    assert_eq!(amounts_at(Some(down)), ["mem_free=751M", "gpu=1"]);
}

#[test]
fn several_engines_in_a_job_share_its_slots_without_unnecessary_queries() {
    let mut request = engines(6);
    request.engines_per_job = 3;
    request.resources.cpus = Some(2);
    request.clone().with_site_settings(&Sge, |question| panic!("{question}"));
    request.resources.memory = Some("2G".parse().unwrap());
    let script = rendered(&Sge, &request);
    assert!(script.contains("\n#$ -pe smp 6\n#$ -l mem_free=1024M\n"), "{script}");
    request.resources.start = StartMode::Mpiexec;
    let script = rendered(&Sge, &request);
    assert!(script.contains("\n#$ -pe mpi 12\n#$ -l mem_free=1024M\n"), "{script}");
}

#[test]
fn a_template_may_request_memory_per_job_or_per_slot() {
    let mut request = engines(2);
    request.resources.cpus = Some(4);
    request.resources.memory = Some("3G".parse().unwrap());
    for (variable, expected) in [("memory", "3072M"), ("memory_per_slot", "768M"), ("mem_free", "768M")] {
        let text =
            format!("#$ -t {{{{ array }}}}\n#$ -pe {{{{ parallel_environment }}}}\n#$ -l h_vmem={{{{ {variable} }}}}\n{{{{ engines }}}}\n");
        let script = super::super::batch::render(&Sge, "engines.sh.tera", &text, &request).unwrap();
        assert!(
            script.starts_with(&format!("#$ -t 1-2\n#$ -pe smp 4\n#$ -l h_vmem={expected}\n")),
            "{script}"
        );
    }
    let error = super::super::batch::render(&Sge, "engines.sh.tera", "#$ -t {{ array }}\n{{ engines }}\n", &request).unwrap_err();
    assert!(error.to_string().contains("memory") || error.to_string().contains("smp"), "{error}");
}

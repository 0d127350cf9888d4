//! The tests over ssh: real sshd on four hosts that are network namespaces of this machine (`ci/ssh/`).
use crate::Places;
use crate::run::{captured, echo, program};
use std::path::Path;
use std::process::Command;

const TESTS: &str = "tests/remote";

/// Whether the hosts can be created; installs OpenSSH if missing.
pub fn ready(places: &Places) -> Result<(), String> {
    let run = |words: &[&str]| captured(&mut program(&places.root, words));
    if run(&["id", "-u"])?.trim() != "0" {
        return Err("only root can make network namespaces".into());
    }
    if run(&["sh", "-c", "command -v /usr/sbin/sshd && command -v ssh && command -v ip"]).is_err() {
        echo("ci/ssh/install.sh");
        run(&["ci/ssh/install.sh"])
            .map_err(|why| format!("OpenSSH's server and iproute2 are not there, and cannot be installed: {why}"))?;
    }
    run(&["sh", "-c", "ip netns add pcl-try && ip netns del pcl-try"])
        .map_err(|why| format!("this machine does not let network namespaces be made: {}", why.trim()))?;
    Ok(())
}

/// The command that runs them, or why they cannot run here.
pub fn tests(places: &Places, python: &Path) -> Result<Command, String> {
    ready(places)?;
    let python = python.to_string_lossy();
    let words = [
        &*python,
        "-m",
        "pytest",
        "-v",
        "-rsfE",
        "--durations=10",
        // Above all the waiting of the tests themselves.
        "--timeout=240",
        "-p",
        "no:cacheprovider",
        TESTS,
    ];
    let mut command = program(&places.root, &words);
    command.env("PCLUSTER_BIN", &places.pcluster).env("PCLUSTER_TEST_PYTHON", &*python);
    Ok(command)
}

/// How many there are.
pub fn count(places: &Places) -> u64 {
    crate::test::functions_in(&places.root.join(TESTS))
}

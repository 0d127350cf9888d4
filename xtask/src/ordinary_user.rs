//! Runs the integration tests as an ordinary user: as root, permissions and limits are not enforced.
//!
//! When this runs as root it makes a user, and removes it afterwards. The user gets the limits of an ordinary login and the system's
//! own Python; it sees the repository where root sees it, also below directories that are root's alone (in a mount namespace of its own).
use crate::Places;
use crate::run::{captured, echo, program};
use std::path::PathBuf;
use std::process::Command;

const USER: &str = "pcluster-test";
/// Where the system's own Python is, which every user can run.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// $1 the repository, $2 the user, $3 the file for skipped tests, then the command.
const SCRIPT: &str = r#"
set -e
root=$1 user=$2 skipped=$3
shift 3
as_user() { setpriv --reuid="$user" --regid="$user" --init-groups --reset-env "$@"; }
if ! as_user test -x "$1"; then
    first=/$(echo "$root" | cut -d/ -f2)
    seen=$(mktemp -d)
    mount --bind "$root" "$seen"
    mount -t tmpfs -o mode=1777 tmpfs "$first"
    mkdir -p "$root"
    mount --bind "$seen" "$root"
fi
as_user test -x "$1"
cd /
as_user env PATH="$PATH" PCLUSTER_TEST_ORDINARY_USER=1 PCLUSTER_TEST_SKIPPED="$skipped" \
    sh -c 'ulimit -S -n 1024; ulimit -S -c 0; exec "$@"' sh "$@"
"#;

/// What is about the repository rather than about running clusters.
const LEFT_OUT: [&str; 4] = ["docs::", "architecture::", "readme::", "printed::"];

pub struct OrdinaryUser {
    made: bool,
    places_root: PathBuf,
    pub skipped: PathBuf,
}

impl OrdinaryUser {
    /// Why not, where that cannot be done here.
    pub fn make(places: &Places) -> Result<OrdinaryUser, String> {
        let run = |words: &[&str]| captured(&mut program(&places.root, words));
        if run(&["id", "-u"])?.trim() != "0" {
            return Err("it runs as an ordinary user already".into());
        }
        if run(&["sh", "-c", &format!("PATH={PATH} command -v python3")]).is_err() {
            echo("apt-get install -y python3");
            run(&[
                "sh",
                "-c",
                "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3",
            ])
            .map_err(|why| format!("there is no Python that an ordinary user could run ({PATH}): {why}"))?;
        }
        let made = run(&["id", USER]).is_err();
        if made {
            run(&["useradd", "--create-home", "--shell", "/bin/bash", USER]).map_err(|why| format!("cannot make a user: {why}"))?;
        }
        let skipped = std::env::temp_dir().join(format!("pcluster-skipped-{}", std::process::id()));
        run(&["install", "-o", USER, "-m", "0600", "/dev/null", &skipped.to_string_lossy()])?;
        Ok(OrdinaryUser {
            made,
            places_root: places.root.clone(),
            skipped,
        })
    }

    /// The tests in `binary` as this user.
    pub fn tests(&self, binary: &str) -> Command {
        let script = SCRIPT.replace("\"$PATH\"", PATH);
        let mut command = program(
            &self.places_root,
            &["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"],
        );
        command.arg(&self.places_root).args([USER, &self.skipped.to_string_lossy(), binary]);
        // Those that wait must not hold up the others.
        command.args(["--test-threads", "2"]);
        LEFT_OUT.iter().for_each(|module| {
            command.args(["--skip", module]);
        });
        command
    }
}

impl Drop for OrdinaryUser {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.skipped);
        if self.made {
            let removed = captured(&mut program(&self.places_root, &["userdel", "--remove", USER]));
            if let Err(why) = removed {
                println!("the user {USER} could not be removed: {why}");
            }
        }
    }
}

/// The binary of the integration tests, built where it is missing.
pub fn integration_tests(places: &Places) -> Result<String, String> {
    // As they were built for `cargo test`.
    let words = ["cargo", "test", "--quiet", "--workspace", "--no-run", "--message-format=json"];
    let messages = captured(&mut program(&places.root, &words))?;
    executable(&messages).ok_or_else(|| "cargo does not name the binary of the integration tests".to_string())
}

/// The path in cargo's message about the artifact `it`.
fn executable(messages: &str) -> Option<String> {
    let line = messages
        .lines()
        .rfind(|line| line.contains("\"compiler-artifact\"") && line.contains("\"name\":\"it\""))?;
    let (_, path) = line.split_once("\"executable\":\"")?;
    Some(path.split('"').next()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn the_binary_is_in_cargos_messages() {
        let messages = concat!(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"kind\":[\"lib\"],\"name\":\"pcluster\"},\"executable\":null}\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"kind\":[\"test\"],\"name\":\"it\"},\"executable\":\"/t/debug/deps/it-1\",\"fresh\":true}\n",
        );
        assert_eq!(executable(messages).as_deref(), Some("/t/debug/deps/it-1"));
        assert_eq!(executable(""), None);
    }
}

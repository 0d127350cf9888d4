//! The private directory of one connection's sockets, on a file system of this host (a home directory may be on the network,
//! where sockets do not work, and its path too long for one), and the ssh processes that name it.
use super::SshError;
use crate::connection::process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The path of a socket in it must be shorter than 108 bytes, and OpenSSH puts its own names at the end.
const MOST_BYTES: usize = 50;
/// How long ssh may take to end when it is told to.
const ENDS: Duration = Duration::from_secs(2);

/// Ends its processes and goes when it is dropped.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
}

impl Place {
    pub fn make() -> Result<Place, SshError> {
        let parent = parent();
        let failed = |path: &Path, why: String| SshError::Place { path: path.into(), why };
        sweep(&parent);
        make_private(&parent).map_err(|e| failed(&parent, e.to_string()))?;
        let name = uuid::Uuid::new_v4().simple().to_string();
        let path = parent.join(&name[..12]);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| failed(&path, e.to_string()))?;
        let place = Place { path };
        fs::write(place.path.join(OWNER), owner()).map_err(|e| failed(&place.path, e.to_string()))?;
        Ok(place)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes what the connection goes through (ProxyJump, ProxyCommand), to be ended with it: it may outlive an ssh that ends by
    /// itself, for as long as it has something to wait for (and under nohup(1) it does not hear ssh's SIGHUP).
    pub fn note_ways(&self) {
        self.note(ways_of(&processes(&self.path)));
    }

    /// The same as long as ssh is this process's child: quick, to be done often.
    pub fn note_ways_of_child(&self) {
        let own = process::children_of(std::process::id());
        let mut last: Vec<u32> = own.into_iter().filter(|pid| names(*pid, &self.path)).collect();
        let mut ways = Vec::new();
        while !last.is_empty() {
            last = last.into_iter().flat_map(process::children_of).collect();
            ways.extend(&last);
        }
        self.note(ways);
    }

    fn note(&self, pids: Vec<u32>) {
        let mut ways = noted(&self.path);
        let is_noted = |pid: u32| {
            ways.iter()
                .any(|(noted, started)| *noted == pid && process::is_same_process(pid, *started))
        };
        let new = of(pids.into_iter().filter(|pid| !is_noted(*pid)).collect());
        if !new.is_empty() {
            ways.extend(new);
            note(&self.path, &ways);
        }
    }
}

/// Processes with when they started.
fn of(pids: Vec<u32>) -> Vec<(u32, f64)> {
    pids.into_iter().filter_map(|pid| Some((pid, process::started_of(pid)?))).collect()
}

fn note(path: &Path, ways: &[(u32, f64)]) {
    let lines: String = ways.iter().map(|(pid, started)| format!("{pid} {started}\n")).collect();
    if let Err(error) = fs::write(path.join(WAYS), lines) {
        tracing::debug!(%error, "what an ssh goes through could not be noted");
    }
}

fn noted(path: &Path) -> Vec<(u32, f64)> {
    let pair = |line: &str| {
        let (pid, started) = line.split_once(' ')?;
        Some((pid.parse().ok()?, started.parse().ok()?))
    };
    let text = fs::read_to_string(path.join(WAYS)).unwrap_or_default();
    text.lines().filter_map(pair).collect()
}

fn ways_of(named: &[u32]) -> Vec<u32> {
    let mut behind = process::behind_pipes_of(named);
    behind.extend(process::descendants_of(&[named, &behind[..]].concat()));
    behind
}

impl Drop for Place {
    fn drop(&mut self) {
        clear(&self.path);
    }
}

/// The file that says whose a directory is.
const OWNER: &str = "owner";
/// ... and the one with the processes that the connection goes through: each a line, with its id and when it started.
const WAYS: &str = "ways";

/// This process, and which process ids it means: those of another container are others.
fn owner() -> String {
    let pid = std::process::id();
    let started = process::started_of(pid).unwrap_or_default();
    format!("{pid} {started} {}", namespace())
}

fn namespace() -> String {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy().into_owned()
}

/// Clears away the directories of processes that were killed.
fn sweep(parent: &Path) {
    let Ok(all) = fs::read_dir(parent) else { return };
    for path in all.flatten().map(|entry| entry.path()) {
        let text = fs::read_to_string(path.join(OWNER)).unwrap_or_default();
        let mut words = text.splitn(3, ' ');
        let mut next = || words.next().unwrap_or_default();
        let (Ok(pid), Ok(started)) = (next().parse(), next().parse()) else {
            continue;
        };
        if next() == namespace() && !process::is_same_process(pid, started) {
            clear(&path);
        }
    }
}

/// Ends the ssh processes of a connection's directory and removes it: also of a process that was killed and could not.
pub fn clear(path: &Path) {
    if path.parent() != Some(&parent()) {
        return;
    }
    let tell = |(pid, _): &(u32, f64), signal| {
        let _ = kill(Pid::from_raw(*pid as i32), signal);
    };
    let until = |is: &dyn Fn() -> bool| {
        let deadline = Instant::now() + ENDS;
        while !is() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let mut ways = noted(path);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let named = of(processes(path));
        // An ssh that is ended leaves what it goes through to itself. It is not to start that between the look and the end.
        named.iter().for_each(|ssh| tell(ssh, Signal::SIGSTOP));
        until(&|| named.iter().all(|(pid, _)| !runs(*pid) || process::is_stopped(*pid)));
        ways.extend(of(ways_of(&named.iter().map(|(pid, _)| *pid).collect::<Vec<_>>())));
        ways.retain(|(pid, started)| process::is_same_process(*pid, *started));
        // For who comes next, if this process is killed meanwhile.
        note(path, &ways);
        named.iter().chain(&ways).for_each(|process| tell(process, signal));
        named.iter().for_each(|ssh| tell(ssh, Signal::SIGCONT));
        until(&|| !named.iter().chain(&ways).any(|(pid, _)| runs(*pid)));
    }
    let _ = fs::remove_dir_all(path);
    // Gone when it was the last one.
    let _ = fs::remove_dir(parent());
}

fn runs(pid: u32) -> bool {
    process::started_of(pid).is_some()
}

/// The user's processes whose command line names the directory: ssh, before and after it has gone into the background.
pub fn processes(path: &Path) -> Vec<u32> {
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| names(*pid, path)).collect()
}

fn names(pid: u32, path: &Path) -> bool {
    let mut needle = path.as_os_str().as_encoded_bytes().to_vec();
    needle.push(b'/');
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let names = command.windows(needle.len()).any(|part| part == needle);
    let owner = || fs::metadata(format!("/proc/{pid}")).map(|it| it.uid());
    names && command.starts_with(b"ssh") && owner().is_ok_and(|owner| owner == getuid().as_raw()) && runs(pid)
}

/// `$XDG_RUNTIME_DIR/pcluster` where there is one and it is not too long, else `/tmp/pcluster-<user id>`.
fn parent() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime
        .filter(|dir| dir.is_absolute() && dir.is_dir())
        .map(|dir| dir.join("pcluster"));
    runtime
        .filter(|dir| dir.as_os_str().len() <= MOST_BYTES)
        .unwrap_or_else(|| PathBuf::from(format!("/tmp/pcluster-{}", getuid())))
}

/// `/tmp` is everybody's: a directory that is there already must be ours, ours alone, and no link.
fn make_private(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() || found.uid() != getuid().as_raw() || found.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::other("something of this name is there, and it is not yours alone"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::os::unix::process::CommandExt;

    #[test]
    fn a_place_is_private_and_goes() {
        let place = Place::make().unwrap();
        let path = place.path().to_path_buf();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::write(path.join("x"), "").unwrap();
        drop(place);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_process_left_is_cleared_away() {
        let mine = Place::make().unwrap();
        let left = Place::make().unwrap();
        let path = left.path().to_path_buf();
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        fs::write(path.join(OWNER), format!("{} 1 {}", gone.id(), namespace())).unwrap();
        let strange = Place::make().unwrap();
        assert!(!path.exists(), "its process is gone");
        fs::write(strange.path().join(OWNER), format!("{} 1 pid:[1]", gone.id())).unwrap();
        drop(Place::make().unwrap());
        assert!(
            mine.path().exists() && strange.path().exists(),
            "of another container nothing is known"
        );
    }

    #[test]
    fn what_an_ssh_connects_through_ends_with_it() {
        let place = Place::make().unwrap();
        // As a process that names the place, and has started one that does not and outlives it.
        let name = format!("ssh -S {}/master", place.path().display());
        let mut ssh = std::process::Command::new("bash")
            .args(["-c", "sleep 600 & echo $!; wait"])
            .arg0(name)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(ssh.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let through: u32 = line.trim().parse().unwrap();
        assert!(runs(through));
        assert_eq!(process::descendants_of(&[ssh.id()]), [through]);
        assert_eq!(process::children_of(ssh.id()), [through]);
        place.note_ways_of_child();
        place.note_ways_of_child();
        assert_eq!(noted(place.path()).iter().map(|(pid, _)| *pid).collect::<Vec<_>>(), [through]);
        drop(place);
        assert!(!runs(through) && !runs(ssh.id()));
        ssh.wait().unwrap();
    }

    #[test]
    fn what_an_ssh_goes_through_ends_with_it_though_it_has_ended_by_itself() {
        let place = Place::make().unwrap();
        // As a process that names the place, and is connected by pipes with one that is not its child and hears nothing of its end.
        let name = format!("ssh -S {}/master", place.path().display());
        let script = "trap '' PIPE HUP; exec sleep 600";
        let mut way = std::process::Command::new("bash")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ssh = std::process::Command::new("bash")
            .args(["-c", "read line"])
            .arg0(name)
            .stdin(way.stdout.take().unwrap())
            .stdout(way.stdin.take().unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while processes(place.path()).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(process::behind_pipes_of(&[ssh.id()]), [way.id()]);
        place.note_ways();
        ssh.kill().unwrap();
        ssh.wait().unwrap();
        assert!(runs(way.id()));
        drop(place);
        assert!(!runs(way.id()));
        way.wait().unwrap();
    }

    #[test]
    fn anothers_directory_is_refused_and_a_strange_path_not_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(make_private(&link).is_err());
        assert!(make_private(Path::new("/tmp")).is_err());
        clear(dir.path());
        assert!(dir.path().exists());
    }
}

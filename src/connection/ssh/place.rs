//! The private directory of one connection's sockets, on a file system of this host (a home directory may be on the network,
//! where sockets do not work, and its path too long for one), and the ssh processes that name it.
use super::SshError;
use crate::connection::private_dir::PrivateDir;
use crate::connection::process::{self, ProcessId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The path of a socket in it must be shorter than 108 bytes, and OpenSSH puts its own names at the end.
const MOST_BYTES: usize = 50;
/// Of a connection's directory: so many hexadecimal digits.
const NAME: usize = 12;
/// How long ssh may take to end when it is told to.
const ENDS: Duration = Duration::from_secs(2);

/// Ends its processes and goes when it is dropped.
#[derive(Debug)]
pub struct Place {
    dir: PrivateDir,
}

impl Place {
    pub fn make() -> Result<Place, SshError> {
        let parent = make_parent()?;
        sweep(&parent);
        let name = uuid::Uuid::new_v4().simple().to_string();
        let path = parent.path().join(&name[..NAME]);
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        let dir = made.and_then(|()| PrivateDir::open(&path)).map_err(|e| failed(&path, &e))?;
        let place = Place { dir };
        let owner = serde_json::to_vec(&ProcessId::own()).unwrap_or_default();
        place.dir.write(OWNER, &owner).map_err(|e| failed(&path, &e))?;
        Ok(place)
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Notes what the connection goes through (ProxyJump, ProxyCommand), to be ended with it: it may outlive an ssh that ends by
    /// itself, for as long as it has something to wait for (and under nohup(1) it does not hear ssh's SIGHUP).
    pub fn note_ways(&self) {
        self.note(ways_of(&processes(self.path())));
    }

    /// The same as long as ssh is this process's child: quick, to be done often.
    pub fn note_ways_of_child(&self) {
        let own = process::children_of(std::process::id());
        let mut last: Vec<u32> = own.into_iter().filter(|pid| names(*pid, self.path())).collect();
        let mut ways = Vec::new();
        while !last.is_empty() {
            last = last.into_iter().flat_map(process::children_of).collect();
            ways.extend(&last);
        }
        self.note(ways);
    }

    fn note(&self, pids: Vec<u32>) {
        let mut ways = noted(&self.dir);
        let is_noted = |pid: u32| ways.iter().any(|noted| noted.pid == pid && noted.runs());
        let new = of(pids.into_iter().filter(|pid| !is_noted(*pid)).collect());
        if !new.is_empty() {
            ways.extend(new);
            note(&self.dir, &ways);
        }
    }
}

fn failed(path: &Path, why: &io::Error) -> SshError {
    SshError::Place {
        path: path.into(),
        why: why.to_string(),
    }
}

/// Those of these processes that run.
fn of(pids: Vec<u32>) -> Vec<ProcessId> {
    pids.into_iter()
        .map(ProcessId::of)
        .filter(|process| process.ticks.is_some())
        .collect()
}

fn note(dir: &PrivateDir, ways: &[ProcessId]) {
    let written = serde_json::to_vec(ways)
        .map_err(io::Error::from)
        .and_then(|text| dir.write(WAYS, &text));
    if let Err(error) = written {
        tracing::debug!(%error, "what an ssh goes through could not be noted");
    }
}

fn noted(dir: &PrivateDir) -> Vec<ProcessId> {
    let text = dir.read(WAYS).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn ways_of(named: &[u32]) -> Vec<u32> {
    let mut behind = process::behind_pipes_of(named);
    behind.extend(process::descendants_of(&[named, &behind[..]].concat()));
    behind
}

impl Drop for Place {
    fn drop(&mut self) {
        clear(self.path());
    }
}

/// The file that says whose a directory is.
const OWNER: &str = "owner";
/// ... and the one with the processes that the connection goes through.
const WAYS: &str = "ways";

/// Clears away the directories of processes that were killed.
fn sweep(parent: &PrivateDir) {
    let Ok(all) = fs::read_dir(parent.path()) else { return };
    for path in all.flatten().map(|entry| entry.path()) {
        let owner = PrivateDir::open(&path).and_then(|dir| dir.read(OWNER)).unwrap_or_default();
        let is_dead = |owner: &ProcessId| owner.ticks.is_some() && owner.is_on_this_host() && owner.is_gone();
        if serde_json::from_str(&owner).is_ok_and(|owner: ProcessId| is_dead(&owner)) {
            clear(&path);
        }
    }
}

/// Ends the ssh processes of a connection's directory and removes it: also of a process that was killed and could not. What is no such
/// directory, and ours alone, is left alone.
pub fn clear(path: &Path) {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_string();
    let Some(parent) = path.parent().filter(|parent| name(parent).starts_with("pcluster")) else {
        return;
    };
    let is_ours = name(path).len() == NAME && name(path).bytes().all(|byte| byte.is_ascii_hexdigit());
    let (Ok(_parent), Ok(dir), true) = (PrivateDir::open(parent), PrivateDir::open(path), is_ours) else {
        return;
    };
    let tell = |process: &ProcessId, signal| {
        let _ = kill(Pid::from_raw(process.pid as i32), signal);
    };
    let until = |is: &dyn Fn() -> bool| {
        let deadline = Instant::now() + ENDS;
        while !is() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let mut ways = noted(&dir);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let named = of(processes(path));
        // An ssh that is ended leaves what it goes through to itself. It is not to start that between the look and the end.
        named.iter().for_each(|ssh| tell(ssh, Signal::SIGSTOP));
        until(&|| named.iter().all(|ssh| !ssh.runs() || process::is_stopped(ssh.pid)));
        ways.extend(of(ways_of(&named.iter().map(|ssh| ssh.pid).collect::<Vec<_>>())));
        ways.retain(ProcessId::runs);
        // For who comes next, if this process is killed meanwhile.
        note(&dir, &ways);
        named.iter().chain(&ways).for_each(|process| tell(process, signal));
        named.iter().for_each(|ssh| tell(ssh, Signal::SIGCONT));
        until(&|| !named.iter().chain(&ways).any(ProcessId::runs));
    }
    let _ = fs::remove_dir_all(path);
    // Gone when it was the last one.
    let _ = fs::remove_dir(parent);
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
    names && command.starts_with(b"ssh") && owner().is_ok_and(|owner| owner == getuid().as_raw()) && process::exists(pid)
}

/// `$XDG_RUNTIME_DIR/pcluster` where there is one and it is not too long, else `/tmp/pcluster-<user id>`. Where somebody else has taken
/// that, or it is not this user's alone, one with a name that nobody knows before.
fn make_parent() -> Result<PrivateDir, SshError> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime
        .filter(|dir| dir.is_absolute() && dir.is_dir())
        .map(|dir| dir.join("pcluster"));
    let usual = runtime
        .filter(|dir| dir.as_os_str().len() <= MOST_BYTES)
        .unwrap_or_else(|| PathBuf::from(format!("/tmp/pcluster-{}", getuid())));
    make_usual_or_other(&usual, &[&std::env::temp_dir(), Path::new("/tmp")])
}

fn make_usual_or_other(usual: &Path, temporary: &[&Path]) -> Result<PrivateDir, SshError> {
    let mut error = match PrivateDir::make(usual) {
        Ok(dir) => return Ok(dir),
        Err(error) => failed(usual, &error),
    };
    tracing::warn!("{error}; another one is made");
    let name = format!("pcluster-{}", &uuid::Uuid::new_v4().simple().to_string()[..NAME]);
    let others = temporary.iter().map(|dir| dir.join(&name));
    for other in others.filter(|dir| dir.as_os_str().len() <= MOST_BYTES) {
        match PrivateDir::make(&other) {
            Ok(dir) => return Ok(dir),
            Err(why) => error = failed(&other, &why),
        }
    }
    Err(error)
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
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
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
        let owner = ProcessId {
            ticks: Some(1),
            ..ProcessId::of(gone.id())
        };
        left.dir.write(OWNER, &serde_json::to_vec(&owner).unwrap()).unwrap();
        let strange = Place::make().unwrap();
        assert!(!path.exists(), "its process is gone");
        let in_a_container = ProcessId {
            pid_namespace: "pid:[1]".into(),
            host: "elsewhere.invalid".into(),
            ..owner
        };
        strange.dir.write(OWNER, &serde_json::to_vec(&in_a_container).unwrap()).unwrap();
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
        assert!(process::exists(through));
        assert_eq!(process::descendants_of(&[ssh.id()]), [through]);
        assert_eq!(process::children_of(ssh.id()), [through]);
        place.note_ways_of_child();
        place.note_ways_of_child();
        assert_eq!(noted(&place.dir).iter().map(|way| way.pid).collect::<Vec<_>>(), [through]);
        drop(place);
        assert!(!process::exists(through) && !process::exists(ssh.id()));
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
        assert!(process::exists(way.id()));
        drop(place);
        assert!(!process::exists(way.id()));
        way.wait().unwrap();
    }

    #[test]
    fn where_the_usual_name_is_taken_another_one_is_made_and_a_strange_path_is_not_cleared() {
        let temporary = tempfile::Builder::new().prefix("t").rand_bytes(4).tempdir_in("/tmp").unwrap();
        let usual = temporary.path().join("pcluster-0");
        std::os::unix::fs::symlink("/tmp", &usual).unwrap();
        let made = make_usual_or_other(&usual, &[temporary.path()]).unwrap();
        assert_ne!(made.path(), usual);
        assert!(made.path().starts_with(temporary.path()) && PrivateDir::open(made.path()).is_ok());
        assert!(make_usual_or_other(&usual, &[&temporary.path().join("none")]).is_err());

        let strange = made.path().join("not-a-connection");
        fs::create_dir(&strange).unwrap();
        clear(&strange);
        clear(temporary.path());
        assert!(strange.exists());
        let connection = made.path().join("0123456789ab");
        fs::DirBuilder::new().mode(0o755).create(&connection).unwrap();
        clear(&connection);
        assert!(connection.exists(), "others may read it");
        fs::remove_dir(&connection).unwrap();
        fs::DirBuilder::new().mode(0o700).create(&connection).unwrap();
        clear(&connection);
        assert!(!connection.exists());
    }

    /// Another user has made the directory, with a note of a process of ours and a link to a file of ours.
    #[test]
    fn what_another_user_has_put_there_is_not_believed() {
        let temporary = tempfile::Builder::new().prefix("t").rand_bytes(4).tempdir_in("/tmp").unwrap();
        let parent = temporary.path().join("pcluster-0");
        let connection = parent.join("0123456789ab");
        fs::create_dir_all(&connection).unwrap();
        let precious = temporary.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        let mut ours = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let dead = r#"{"pid": 999999, "ticks": 1, "boot_id": "x"}"#;
        fs::write(connection.join(OWNER), dead).unwrap();
        fs::write(connection.join(WAYS), serde_json::to_vec(&[ProcessId::of(ours.id())]).unwrap()).unwrap();
        std::os::unix::fs::symlink(&precious, connection.join("link")).unwrap();
        let made = make_usual_or_other(&parent, &[temporary.path()]).unwrap();
        sweep(&made);
        clear(&connection);
        assert_ne!(made.path(), parent, "its mode is 0755");
        assert!(connection.exists() && ours.try_wait().unwrap().is_none());
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        ours.kill().unwrap();
        ours.wait().unwrap();
    }
}

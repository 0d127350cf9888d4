//! The private directory of one connection's sockets, on a file system of this host (a home directory may be on the network,
//! where sockets do not work, and its path too long for one), and the ssh processes that name it.
use super::error::SshError;
use crate::sys::private_dir::PrivateDir;
use crate::sys::process::{self, ProcessId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The path of a socket in it must be shorter than 108 bytes, and OpenSSH appends its own names.
const MAX_PATH: usize = 50;
/// The length of the name of a connection's directory, in hexadecimal digits.
const NAME_LENGTH: usize = 12;
/// The timeout for ssh to exit after a signal.
const ENDS: Duration = Duration::from_secs(2);

/// When it is dropped, its processes are ended and the directory is removed.
#[derive(Debug)]
pub(crate) struct ControlDir {
    dir: PrivateDir,
}

impl ControlDir {
    pub(crate) fn create() -> Result<ControlDir, SshError> {
        let parent = create_parent()?;
        sweep(&parent);
        let name = uuid::Uuid::new_v4().simple().to_string();
        let path = parent.path().join(&name[..NAME_LENGTH]);
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        let dir = made.and_then(|()| PrivateDir::open(&path)).map_err(|e| failed(&path, &e))?;
        let control_dir = ControlDir { dir };
        let owner = serde_json::to_vec(&ProcessId::own()).unwrap_or_default();
        control_dir.dir.write(OWNER, &owner).map_err(|e| failed(&path, &e))?;
        Ok(control_dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Records the processes that the connection goes through (ProxyJump, ProxyCommand), to end them with it: they may outlive an ssh that exits by
    /// itself, while they have something to wait for (and under nohup(1) they ignore ssh's SIGHUP).
    pub(crate) fn record_proxies(&self) {
        self.note(proxies_of(&processes(self.path())));
    }

    /// The same while ssh is this process's child: cheap enough to be called often.
    pub(crate) fn record_child_proxies(&self) {
        let own = process::children_of(std::process::id());
        let mut last: Vec<u32> = own.into_iter().filter(|pid| names(*pid, self.path())).collect();
        let mut proxies = Vec::new();
        while !last.is_empty() {
            last = last.into_iter().flat_map(process::children_of).collect();
            proxies.extend(&last);
        }
        self.note(proxies);
    }

    fn note(&self, pids: Vec<u32>) {
        let mut proxies = noted(&self.dir);
        let is_noted = |pid: u32| proxies.iter().any(|noted| noted.pid == pid && noted.runs());
        let new = of(pids.into_iter().filter(|pid| !is_noted(*pid)).collect());
        if !new.is_empty() {
            proxies.extend(new);
            note(&self.dir, &proxies);
        }
    }
}

fn failed(path: &Path, why: &io::Error) -> SshError {
    SshError::ControlDir {
        path: path.into(),
        why: why.to_string(),
    }
}

/// Returns those of these processes that are running.
fn of(pids: Vec<u32>) -> Vec<ProcessId> {
    pids.into_iter()
        .map(ProcessId::of)
        .filter(|process| process.ticks.is_some())
        .collect()
}

fn note(dir: &PrivateDir, proxies: &[ProcessId]) {
    let written = serde_json::to_vec(proxies)
        .map_err(io::Error::from)
        .and_then(|text| dir.write(PROXIES, &text));
    if let Err(error) = written {
        tracing::debug!(%error, "cannot record the processes that ssh goes through");
    }
}

fn noted(dir: &PrivateDir) -> Vec<ProcessId> {
    let text = dir.read(PROXIES).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn proxies_of(named: &[u32]) -> Vec<u32> {
    let mut behind = process::processes_at_pipes_of(named);
    behind.extend(process::descendants_of(&[named, &behind[..]].concat()));
    behind
}

impl Drop for ControlDir {
    fn drop(&mut self) {
        clear(self.path());
    }
}

/// The file that names the owner process of a directory.
const OWNER: &str = "owner";
/// ... and the one with the processes that the connection goes through.
const PROXIES: &str = "proxies";

/// Removes the directories of processes that were killed.
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

/// Ends the ssh processes of a connection's directory and removes it, also for a process that was killed before it could. A path that is not such a
/// directory, or not private to this user, is left alone.
pub(crate) fn clear(path: &Path) {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_string();
    let Some(parent) = path.parent().filter(|parent| name(parent).starts_with("pcluster")) else {
        return;
    };
    let is_ours = name(path).len() == NAME_LENGTH && name(path).bytes().all(|byte| byte.is_ascii_hexdigit());
    let (Ok(_parent), Ok(dir), true) = (PrivateDir::open(parent), PrivateDir::open(path), is_ours) else {
        return;
    };
    let send = |process: &ProcessId, signal| {
        let _ = kill(Pid::from_raw(process.pid as i32), signal);
    };
    let until = |is: &dyn Fn() -> bool| {
        let deadline = Instant::now() + ENDS;
        while !is() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let mut proxies = noted(&dir);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let named = of(processes(path));
        // An ssh that exits leaves its proxy processes running. Stop it, so that it starts none between the listing and its end.
        named.iter().for_each(|ssh| send(ssh, Signal::SIGSTOP));
        until(&|| named.iter().all(|ssh| !ssh.runs() || process::is_stopped(ssh.pid)));
        proxies.extend(of(proxies_of(&named.iter().map(|ssh| ssh.pid).collect::<Vec<_>>())));
        proxies.retain(ProcessId::runs);
        // For the next cleanup, if this process is killed meanwhile.
        note(&dir, &proxies);
        named.iter().chain(&proxies).for_each(|process| send(process, signal));
        named.iter().for_each(|ssh| send(ssh, Signal::SIGCONT));
        until(&|| !named.iter().chain(&proxies).any(ProcessId::runs));
    }
    let _ = fs::remove_dir_all(path);
    // Succeeds only if that was the last one.
    let _ = fs::remove_dir(parent);
}

/// The user's processes whose command line names the directory: ssh, before and after it moves to the background.
pub(crate) fn processes(path: &Path) -> Vec<u32> {
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

/// `$XDG_RUNTIME_DIR/pcluster` if it is set and not too long, else `/tmp/pcluster-<user id>`. If another user has taken
/// that, or it is not private to this user, a directory with an unpredictable name.
fn create_parent() -> Result<PrivateDir, SshError> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime
        .filter(|dir| dir.is_absolute() && dir.is_dir())
        .map(|dir| dir.join("pcluster"));
    let usual = runtime
        .filter(|dir| dir.as_os_str().len() <= MAX_PATH)
        .unwrap_or_else(|| PathBuf::from(format!("/tmp/pcluster-{}", getuid())));
    create_usual_or_other(&usual, &[&std::env::temp_dir(), Path::new("/tmp")])
}

fn create_usual_or_other(usual: &Path, temporary: &[&Path]) -> Result<PrivateDir, SshError> {
    let mut error = match PrivateDir::make(usual) {
        Ok(dir) => return Ok(dir),
        Err(error) => failed(usual, &error),
    };
    tracing::warn!("{error}; using a new one");
    let name = format!("pcluster-{}", &uuid::Uuid::new_v4().simple().to_string()[..NAME_LENGTH]);
    let others = temporary.iter().map(|dir| dir.join(&name));
    for other in others.filter(|dir| dir.as_os_str().len() <= MAX_PATH) {
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
    fn a_control_directory_is_private_and_removed_on_drop() {
        let control_dir = ControlDir::create().unwrap();
        let path = control_dir.path().to_path_buf();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        fs::write(path.join("x"), "").unwrap();
        drop(control_dir);
        assert!(!path.exists());
    }

    #[test]
    fn directories_of_killed_processes_are_removed() {
        let mine = ControlDir::create().unwrap();
        let left = ControlDir::create().unwrap();
        let path = left.path().to_path_buf();
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let owner = ProcessId {
            ticks: Some(1),
            ..ProcessId::of(gone.id())
        };
        left.dir.write(OWNER, &serde_json::to_vec(&owner).unwrap()).unwrap();
        let strange = ControlDir::create().unwrap();
        assert!(!path.exists(), "its process is gone");
        let in_a_container = ProcessId {
            pid_namespace: "pid:[1]".into(),
            host: "elsewhere.invalid".into(),
            ..owner
        };
        strange.dir.write(OWNER, &serde_json::to_vec(&in_a_container).unwrap()).unwrap();
        drop(ControlDir::create().unwrap());
        assert!(
            mine.path().exists() && strange.path().exists(),
            "the state of processes in another container is unknown"
        );
    }

    #[test]
    fn proxy_processes_end_with_their_ssh() {
        let control_dir = ControlDir::create().unwrap();
        // Like a process that names the control_dir, and has started one that does not and outlives it.
        let name = format!("ssh -S {}/master", control_dir.path().display());
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
        control_dir.record_child_proxies();
        control_dir.record_child_proxies();
        assert_eq!(noted(&control_dir.dir).iter().map(|proxy| proxy.pid).collect::<Vec<_>>(), [through]);
        drop(control_dir);
        assert!(!process::exists(through) && !process::exists(ssh.id()));
        ssh.wait().unwrap();
    }

    #[test]
    fn proxy_processes_end_even_if_their_ssh_has_exited() {
        let control_dir = ControlDir::create().unwrap();
        // Like a process that names the control_dir, connected by pipes with one that is not its child and does not notice its end.
        let name = format!("ssh -S {}/master", control_dir.path().display());
        let script = "trap '' PIPE HUP; exec sleep 600";
        let mut proxy = std::process::Command::new("bash")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ssh = std::process::Command::new("bash")
            .args(["-c", "read line"])
            .arg0(name)
            .stdin(proxy.stdout.take().unwrap())
            .stdout(proxy.stdin.take().unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while processes(control_dir.path()).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(process::processes_at_pipes_of(&[ssh.id()]), [proxy.id()]);
        control_dir.record_proxies();
        ssh.kill().unwrap();
        ssh.wait().unwrap();
        assert!(process::exists(proxy.id()));
        drop(control_dir);
        assert!(!process::exists(proxy.id()));
        proxy.wait().unwrap();
    }

    #[test]
    fn a_taken_name_gets_an_alternative_and_foreign_paths_are_kept() {
        let temporary = tempfile::Builder::new().prefix("t").rand_bytes(4).tempdir_in("/tmp").unwrap();
        let usual = temporary.path().join("pcluster-0");
        std::os::unix::fs::symlink("/tmp", &usual).unwrap();
        let made = create_usual_or_other(&usual, &[temporary.path()]).unwrap();
        assert_ne!(made.path(), usual);
        assert!(made.path().starts_with(temporary.path()) && PrivateDir::open(made.path()).is_ok());
        assert!(create_usual_or_other(&usual, &[&temporary.path().join("none")]).is_err());

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

    /// Another user has created the directory, with a record of a process of ours and a link to a file of ours.
    #[test]
    fn files_of_other_users_are_not_trusted() {
        let temporary = tempfile::Builder::new().prefix("t").rand_bytes(4).tempdir_in("/tmp").unwrap();
        let parent = temporary.path().join("pcluster-0");
        let connection = parent.join("0123456789ab");
        fs::create_dir_all(&connection).unwrap();
        let precious = temporary.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        let mut ours = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let dead = r#"{"pid": 999999, "ticks": 1, "boot_id": "x"}"#;
        fs::write(connection.join(OWNER), dead).unwrap();
        fs::write(connection.join(PROXIES), serde_json::to_vec(&[ProcessId::of(ours.id())]).unwrap()).unwrap();
        std::os::unix::fs::symlink(&precious, connection.join("link")).unwrap();
        let made = create_usual_or_other(&parent, &[temporary.path()]).unwrap();
        sweep(&made);
        clear(&connection);
        assert_ne!(made.path(), parent, "its mode is 0755");
        assert!(connection.exists() && ours.try_wait().unwrap().is_none());
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        ours.kill().unwrap();
        ours.wait().unwrap();
    }
}

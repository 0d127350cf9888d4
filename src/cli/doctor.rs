//! The checks of `pcluster doctor`. Each checks one thing and reports what it found and, if there is a problem, what to do.
use super::context::Context;
use super::output::times;
use crate::cluster::{self, Condition};
use crate::launchers::{capacity, python};
use crate::model::shell;
use crate::profile::{Config, ProfileDir};
use serde::Serialize;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// Works with limits, or is needed only for some features.
    Warn,
    /// Clusters cannot start or work.
    Fail,
}

#[derive(Debug, Serialize)]
pub(crate) struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            advice: None,
        }
    }
    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
        Check {
            name,
            verdict: Verdict::Warn,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }
    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
        Check {
            verdict: Verdict::Fail,
            ..Check::warn(name, found, advice)
        }
    }
}

/// All checks, in the order shown.
pub(crate) fn examine(context: &Context, profile: &ProfileDir, python_given: Option<&str>) -> Vec<Check> {
    let (settings, config) = settings(profile);
    let python_set = python_given.or(config.engine.python.as_deref());
    vec![
        settings,
        interpreter(&python::resolve(python_set)),
        directory(profile),
        file_system(profile),
        loopback(),
        host_name(),
        open_files(),
        room(),
        program(
            "ssh",
            "ssh",
            &["-V"],
            "needed only for clusters and tunnels over ssh: install the OpenSSH client",
        ),
        schedulers(),
        controller(context),
        leftovers(context),
    ]
}

fn settings(profile: &ProfileDir) -> (Check, Config) {
    let path = profile.config_file();
    match Config::load(profile) {
        Ok(config) if path.exists() => (Check::ok("settings", path.display().to_string()), config),
        Ok(config) => (Check::ok("settings", "defaults (the profile has no pcluster.yaml)"), config),
        Err(error) => {
            let advice = error.hint().map_or_else(|| format!("correct {}", path.display()), str::to_string);
            (Check::fail("settings", error.to_string(), advice), Config::default())
        }
    }
}

/// The interpreter prints its version, its path, and the version of each package or an empty line.
const PACKAGES: [&str; 2] = ["IPython", "ipyparallel"];
const ASK: &str = "
import sys
print('%d.%d.%d' % sys.version_info[:3])
print(sys.executable)
for name in sys.argv[1:]:
    try:
        print(getattr(__import__(name), '__version__', '?'))
    except Exception:
        print('')
";

fn interpreter(python: &str) -> Check {
    if let Err(error) = python::check(python) {
        let advice = error.hint().unwrap_or_else(|| "choose another one with --python".into());
        return Check::fail("python", error.to_string(), advice);
    }
    let output = Command::new(python).args(["-c", ASK]).args(PACKAGES).stdin(Stdio::null()).output();
    let text = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => {
            return Check::fail(
                "python",
                format!("cannot run {python}: {error}"),
                "choose another one with --python",
            );
        }
    };
    let mut lines = text.lines();
    let (version, path) = (lines.next().unwrap_or("?"), lines.next().unwrap_or(python));
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for package in PACKAGES {
        match lines.next() {
            Some(version) if !version.is_empty() => there.push(format!("{package} {version}")),
            _ => missing.push(package),
        }
    }
    let found = format!("{version} at {path}");
    if missing.is_empty() {
        return Check::ok("python", format!("{found}, with {}", there.join(" and ")));
    }
    Check::warn(
        "python",
        format!("{found}, without {}", missing.join(" and ")),
        format!(
            "only ipyparallel's clients (notebooks, ipp.Client) need it: {} -m pip install ipyparallel",
            shell::quoted(path)
        ),
    )
}

fn directory(profile: &ProfileDir) -> Check {
    let name = "profile";
    let path = profile.path();
    if !path.exists() {
        let Some(parent) = existing_parent(path) else {
            return Check::fail(
                name,
                format!("{} has no parent directory", path.display()),
                "choose another with --ipython-dir",
            );
        };
        return match nix::unistd::access(parent, nix::unistd::AccessFlags::W_OK) {
            Ok(()) => Check::ok(name, format!("{} (will be created)", path.display())),
            Err(e) => Check::fail(
                name,
                format!("cannot create {}: {}: {}", path.display(), parent.display(), e.desc()),
                "choose another directory with --ipython-dir or IPYTHONDIR",
            ),
        };
    }
    if let Err(e) = write_probe(path) {
        return Check::fail(
            name,
            format!("cannot write in {}: {e}", path.display()),
            format!("check its permissions (ls -ld {}) and your quota", shell::quoted(path.display())),
        );
    }
    let security = profile.security_dir();
    match std::fs::metadata(&security).map(|m| m.permissions().mode() & 0o777) {
        Ok(mode) if mode & 0o077 != 0 => Check::warn(
            name,
            format!("{} is readable by other users (mode {mode:03o})", security.display()),
            format!(
                "it holds the keys of your clusters: chmod 700 {}",
                shell::quoted(security.display())
            ),
        ),
        _ => Check::ok(name, path.display().to_string()),
    }
}

fn existing_parent(path: &Path) -> Option<&Path> {
    path.ancestors().skip(1).find(|p| p.exists())
}

fn write_probe(dir: &Path) -> std::io::Result<()> {
    let path = dir.join(format!(".pcluster-doctor-{}", std::process::id()));
    let written = std::fs::write(&path, b"probe");
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

fn file_system(profile: &ProfileDir) -> Check {
    let name = "file system";
    let path = profile.path();
    let Some(place) = path.ancestors().find(|p| p.exists()) else {
        return Check::fail(
            name,
            format!("{} has no existing parent directory", path.display()),
            "choose another directory with --ipython-dir",
        );
    };
    let (kind, free) = match nix::sys::statfs::statfs(place) {
        #[allow(clippy::unnecessary_cast, reason = "the widths of these fields differ between architectures")]
        Ok(s) => (
            kind_of(s.filesystem_type().0 as u64),
            s.blocks_available() as u64 * s.block_size() as u64,
        ),
        Err(e) => {
            return Check::warn(name, format!("cannot query {}: {}", place.display(), e.desc()), "check it with df");
        }
    };
    let finding = format!("{} at {}, {} free", kind.map_or("local", |k| k), place.display(), size(free));
    if free < 20 << 20 {
        return Check::fail(name, finding, "free some space: every task is recorded on it");
    }
    if free < 1 << 30 {
        return Check::warn(name, finding, "free some space: every task is recorded on it");
    }
    match kind {
        Some(_) => Check::warn(
            name,
            finding,
            "network file system: tasks are recorded more slowly; if this matters, put profiles on a local disk with IPYTHONDIR",
        ),
        None => Check::ok(name, finding),
    }
}

/// Network file systems by the magic number of statfs(2).
fn kind_of(magic: u64) -> Option<&'static str> {
    Some(match magic & 0xffff_ffff {
        0x6969 => "NFS",
        0x0BD0_0BD0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x1983_0326 => "BeeGFS",
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => "SMB",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x00c3_6400 => "Ceph",
        0x0102_1997 => "9P",
        0x6573_5546 => "FUSE",
        0xaad7_aaea => "PanFS",
        _ => return None,
    })
}

fn size(bytes: u64) -> String {
    match bytes {
        b if b < 1 << 30 => format!("{} MB", b >> 20),
        b => format!("{:.1} GB", b as f64 / (1u64 << 30) as f64),
    }
}

/// Listens, connects, and sends a byte through.
fn loopback() -> Check {
    let name = "network";
    let through = || -> std::io::Result<u16> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let mut client = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        let (mut server, _) = listener.accept()?;
        client.write_all(b"x")?;
        server.set_read_timeout(Some(Duration::from_secs(5)))?;
        server.read_exact(&mut [0])?;
        Ok(address.port())
    };
    match through() {
        Ok(port) => Check::ok(name, format!("can listen on and connect to 127.0.0.1 (tested on port {port})")),
        Err(e) => Check::fail(
            name,
            format!("cannot send data over 127.0.0.1: {e}"),
            "a firewall or sandbox blocks it; ask the administrator of this host",
        ),
    }
}

fn host_name() -> Check {
    let host = crate::sys::process::host();
    match (host.as_str(), 0)
        .to_socket_addrs()
        .map(|addresses| addresses.map(|a| a.ip().to_string()).collect::<Vec<_>>())
    {
        Ok(addresses) if !addresses.is_empty() => Check::ok("host name", format!("{host} is {}", addresses.join(" "))),
        _ => Check::warn(
            "host name",
            format!("{host} has no address"),
            "needed only for engines on other hosts: set controller.location in pcluster.yaml to an address of this host",
        ),
    }
}

fn open_files() -> Check {
    let name = "open files";
    // An ipengine needs eight connections, our engine one.
    const COMFORTABLE: u64 = 4096;
    const LITTLE: u64 = 256;
    match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if hard < LITTLE => Check::fail(
            name,
            format!("at most {hard} (now {soft})"),
            "a controller needs more: raise the hard limit (ulimit -Hn)",
        ),
        Ok((soft, hard)) if hard < COMFORTABLE => Check::warn(
            name,
            format!("at most {hard} (now {soft})"),
            "enough for small clusters; for several hundred engines raise the hard limit (ulimit -Hn)",
        ),
        Ok((soft, hard)) => Check::ok(name, format!("{soft}, raised up to {hard} when needed")),
        Err(e) => Check::warn(name, format!("cannot read the limit: {}", e.desc()), "check it with ulimit -n"),
    }
}

/// How many engines this host has room for, as `start` counts it.
fn room() -> Check {
    let name = "engines";
    let limits = capacity::HostLimits::this().limits();
    let Some(first) = limits.first() else {
        return Check::warn(name, "cannot read any limit of this host", "is /proc mounted?");
    };
    let found = format!("room for {} more engines; {}", first.fits, first.words);
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    match first.fits {
        0 => Check::fail(name, found, "stop other programs, or raise this limit"),
        fits if fits < processors => Check::warn(name, found, "fewer than processors: stop other programs, or raise this limit"),
        _ => Check::ok(name, found),
    }
}

/// A program on the PATH, with its version.
fn program(name: &'static str, program: &str, version: &[&str], missing: &str) -> Check {
    let Some(path) = find(program) else {
        return Check::warn(name, "not found", missing);
    };
    let output = Command::new(&path).args(version).stdin(Stdio::null()).output();
    let printed = output.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
    let first = String::from_utf8_lossy(&printed)
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_string();
    match first.is_empty() {
        true => Check::ok(name, path.display().to_string()),
        false => Check::ok(name, format!("{} ({first})", path.display())),
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file() && nix::unistd::access(candidate, nix::unistd::AccessFlags::X_OK).is_ok())
}

fn schedulers() -> Check {
    const COMMANDS: [(&str, &str); 4] = [
        ("sbatch", "Slurm"),
        ("qsub", "PBS or SGE"),
        ("bsub", "LSF"),
        ("condor_submit", "HTCondor"),
    ];
    let found: Vec<String> = COMMANDS
        .iter()
        .filter_map(|(command, system)| Some(format!("{system}: {}", find(command)?.display())))
        .collect();
    match found.is_empty() {
        true => Check::ok("schedulers", "none found (sbatch, qsub, bsub, condor_submit)"),
        false => Check::ok("schedulers", found.join(", ")),
    }
}

/// Whether the selected cluster responds, if it is running.
fn controller(context: &Context) -> Check {
    let name = "cluster";
    let running = || -> Result<crate::client::StatusReply, super::CommandError> {
        let client = context.client()?;
        Ok(context.block_on(client.status())??)
    };
    match running() {
        Ok(status) => Check::ok(
            name,
            format!(
                "{} is running: pcluster {}, up {}, {} engines",
                context.describe_cluster(),
                status.version,
                times::duration(times::now().since(status.started)),
                status.engines.len()
            ),
        ),
        Err(error) if error.kind == super::ErrorKind::NotFound => Check::ok(name, format!("{} is not running", context.describe_cluster())),
        Err(error) => {
            let advice = error.hints.first().cloned().unwrap_or_else(|| "pcluster logs".into());
            Check::fail(name, error.error, advice)
        }
    }
}

fn leftovers(context: &Context) -> Check {
    let name = "leftovers";
    let clusters = match cluster::list(context.ipython_dir.as_deref()) {
        Ok(clusters) => clusters,
        Err(error) => return Check::warn(name, error.to_string(), "check the directories of the profiles"),
    };
    let stale: Vec<String> = clusters
        .iter()
        .filter(|c| c.state == Condition::Stale)
        .map(|c| match c.cluster_id.as_str() {
            "" => c.profile.clone(),
            id => format!("{} ({id})", c.profile),
        })
        .collect();
    match stale.is_empty() {
        true => Check::ok(name, "no files of dead clusters"),
        false => Check::warn(name, format!("files of dead clusters: {}", stale.join(", ")), "pcluster clean"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_healthy_host_passes_all_checks() {
        assert_eq!(loopback().verdict, Verdict::Ok);
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        let check = directory(&profile);
        assert_eq!(check.verdict, Verdict::Ok);
        assert!(check.found.ends_with("(will be created)"), "{}", check.found);
        profile.create().unwrap();
        assert_eq!(directory(&profile).verdict, Verdict::Ok);
        assert!(
            std::fs::read_dir(profile.path())
                .unwrap()
                .flatten()
                .all(|e| !e.file_name().to_string_lossy().contains("doctor"))
        );
    }

    #[test]
    fn keys_that_others_can_read_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        profile.create().unwrap();
        let security = std::fs::File::open(profile.security_dir()).unwrap();
        security.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
        let check = directory(&profile);
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.advice.unwrap().contains("chmod 700"));
    }

    #[test]
    fn a_missing_python_and_a_bad_file_are_failures() {
        let check = interpreter("/nonexistent/python");
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.found.contains("/nonexistent/python") && check.advice.unwrap().contains("--python"));
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        profile.create().unwrap();
        std::fs::write(profile.config_file(), "controller:\n  hwmm: 3\n").unwrap();
        let (check, _) = settings(&profile);
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.found.contains(":2:"), "{}", check.found);
        assert_eq!(check.advice.as_deref(), Some("did you mean `hwm`?"));
    }

    #[test]
    fn network_file_systems_are_recognized_by_magic_number() {
        assert_eq!(kind_of(0x6969), Some("NFS"));
        // As a 32-bit kernel gives SMB's number, which is negative there.
        assert_eq!(kind_of(0xffff_ffff_ff53_4d42), Some("SMB"));
        assert_eq!(kind_of(0xef53), None);
        assert_eq!((size(3 << 20), size(5 << 29)), ("3 MB".into(), "2.5 GB".into()));
    }
}

//! The layout of a profile directory: IPython's (`profile_<name>/{security,log,pid}`), and pcluster's own files.
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A profile directory, which may not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileDir {
    name: String,
    path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("{name:?} is not a valid {what} name: {why}")]
    BadName {
        what: &'static str,
        name: String,
        why: &'static str,
    },
    #[error("neither IPYTHONDIR nor HOME is set; set IPYTHONDIR to a directory for profiles")]
    NoHome,
    #[error("cannot create {}: {source}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot make {} private (mode 0700): {source}", path.display())]
    Private { path: PathBuf, source: io::Error },
    #[error("cannot list {}: {source}", path.display())]
    List { path: PathBuf, source: io::Error },
}

/// Rejects names that are invalid or misleading as part of a file name.
fn check_name(what: &'static str, name: &str) -> Result<(), ProfileError> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.contains(['/', '\\']) {
        "it has a slash; use a name, not a path"
    } else if name == "." || name == ".." {
        "it is a relative path"
    } else if name.starts_with('-') {
        "it starts with a dash, like an option"
    } else if name.chars().any(char::is_control) {
        "it has a control character"
    } else if name.len() > 200 {
        "it has more than 200 bytes"
    } else {
        return Ok(());
    };
    Err(ProfileError::BadName {
        what,
        name: name.to_string(),
        why,
    })
}

/// Validates a cluster id. The empty id is the default cluster.
pub(crate) fn check_cluster_id(cluster_id: &str) -> Result<(), ProfileError> {
    if cluster_id.is_empty() {
        Ok(())
    } else {
        check_name("cluster id", cluster_id)
    }
}

/// The directory that holds the profiles, as IPython finds it: `$IPYTHONDIR`, else `~/.ipython`
/// (or an old `~/.config/ipython` where only that exists).
pub(crate) fn ipython_dir() -> Result<PathBuf, ProfileError> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = variable("HOME");
    if let Some(dir) = variable("IPYTHONDIR") {
        let dir = match (dir.strip_prefix("~"), &home) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => dir,
        };
        return Ok(std::path::absolute(&dir).unwrap_or(dir));
    }
    let home = home.ok_or(ProfileError::NoHome)?;
    let usual = home.join(".ipython");
    let old = variable("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")).join("ipython");
    Ok(if !usual.exists() && old.is_dir() { old } else { usual })
}

impl ProfileDir {
    /// The profile with this name, in `ipython_dir` or IPython's default directory.
    pub fn named(name: &str, ipython_dir: Option<&Path>) -> Result<ProfileDir, ProfileError> {
        check_name("profile", name)?;
        let parent = match ipython_dir {
            Some(dir) => std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf()),
            None => self::ipython_dir()?,
        };
        Ok(ProfileDir {
            name: name.to_string(),
            path: parent.join(format!("profile_{name}")),
        })
    }

    /// The profile in this directory (`--profile-dir`).
    pub fn at(path: &Path) -> ProfileDir {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let last = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let name = last.strip_prefix("profile_").map(str::to_string).unwrap_or(last);
        ProfileDir { name, path }
    }

    /// All profiles in `ipython_dir` or IPython's default directory, by name.
    pub fn all(ipython_dir: Option<&Path>) -> Result<Vec<ProfileDir>, ProfileError> {
        let parent = match ipython_dir {
            Some(dir) => dir.to_path_buf(),
            None => self::ipython_dir()?,
        };
        let failed = |source| ProfileError::List {
            path: parent.clone(),
            source,
        };
        let entries = match fs::read_dir(&parent) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut profiles = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str().and_then(|n| n.strip_prefix("profile_")) else {
                continue;
            };
            if entry.path().is_dir()
                && let Ok(profile) = ProfileDir::named(name, Some(&parent))
            {
                profiles.push(profile);
            }
        }
        profiles.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(profiles)
    }

    /// Creates missing directories, accessible by their owner only. Makes an existing directory of connection files private.
    pub fn create(&self) -> Result<(), ProfileError> {
        for path in [self.path.clone(), self.security_dir(), self.log_dir(), self.pid_dir()] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|source| ProfileError::Create { path, source })?;
        }
        let path = self.security_dir();
        #[allow(clippy::disallowed_methods, reason = "the directory may exist already")]
        let private = |path: &Path| -> io::Result<()> {
            if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
                fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
            }
            Ok(())
        };
        private(&path).map_err(|source| ProfileError::Private { path, source })
    }

    /// Writes the commented example as this profile's configuration; returns false if there is one already.
    pub fn create_config(&self) -> Result<bool, ProfileError> {
        let path = self.config_file();
        let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        match written.and_then(|mut file| file.write_all(super::EXAMPLE_CONFIG.as_bytes())) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(ProfileError::Create { path, source }),
        }
    }

    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }
    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Connection files; mode 0700.
    pub fn security_dir(&self) -> PathBuf {
        self.path.join("security")
    }
    pub fn log_dir(&self) -> PathBuf {
        self.path.join("log")
    }
    /// State of running processes.
    pub fn pid_dir(&self) -> PathBuf {
        self.path.join("pid")
    }
    /// Scripts of batch jobs.
    pub fn batch_dir(&self) -> PathBuf {
        self.path.join("batch")
    }
    pub fn config_file(&self) -> PathBuf {
        self.path.join("pcluster.yaml")
    }
    pub fn client_file(&self, cluster_id: &str) -> PathBuf {
        self.security_dir()
            .join(format!("{}-client.json", with_id("ipcontroller", cluster_id)))
    }
    pub fn engine_file(&self, cluster_id: &str) -> PathBuf {
        self.security_dir()
            .join(format!("{}-engine.json", with_id("ipcontroller", cluster_id)))
    }
    /// ipyparallel's own file of the cluster: `cluster-.json` without an id.
    pub fn ipyparallel_file(&self, cluster_id: &str) -> PathBuf {
        self.security_dir().join(format!("cluster-{cluster_id}.json"))
    }
    /// The controller's own keys and ports, kept while it runs: they survive a crash.
    pub fn controller_file(&self, cluster_id: &str) -> PathBuf {
        self.security_dir()
            .join(format!("{}.json", with_id("pcluster-controller", cluster_id)))
    }
    /// Every task of the cluster, in SQLite.
    pub fn database_file(&self, cluster_id: &str) -> PathBuf {
        self.path.join(format!("{}.db", with_id("pcluster", cluster_id)))
    }
    /// The processes of the cluster, in JSON.
    pub fn state_file(&self, cluster_id: &str) -> PathBuf {
        self.pid_dir().join(format!("{}.json", with_id("pcluster", cluster_id)))
    }
    /// What the walltime monitor has decided about its number of engines.
    pub fn elastic_file(&self, cluster_id: &str) -> PathBuf {
        self.pid_dir().join(format!("{}.json", with_id("elastic", cluster_id)))
    }
    /// State of the tunnel to a remote cluster.
    pub fn tunnel_file(&self, cluster_id: &str) -> PathBuf {
        self.pid_dir().join(format!("{}.json", with_id("tunnel", cluster_id)))
    }
    pub fn tunnel_log(&self, cluster_id: &str) -> PathBuf {
        self.log_dir().join(format!("{}.log", with_id("tunnel", cluster_id)))
    }
    pub fn walltime_monitor_log(&self, cluster_id: &str) -> PathBuf {
        self.log_dir().join(format!("{}.log", with_id("walltime-monitor", cluster_id)))
    }
    /// Prevents two concurrent starts of one cluster.
    pub fn lock_file(&self, cluster_id: &str) -> PathBuf {
        self.pid_dir().join(format!("{}.lock", with_id("pcluster", cluster_id)))
    }
    /// State of one reverse tunnel, with a unique `id`.
    pub fn reverse_file(&self, id: &str) -> PathBuf {
        self.pid_dir().join(format!("reverse-{id}.json"))
    }
    /// Of all reverse tunnels of all clusters.
    pub fn reverse_files(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir(self.pid_dir()).into_iter().flatten().flatten();
        let is_one = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("reverse-") && name.ends_with(".json")
        };
        all.map(|entry| entry.path()).filter(is_one).collect()
    }
    /// The log of the reverse tunnel to a host.
    pub fn reverse_log(&self, cluster_id: &str, host: &str) -> PathBuf {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        let host: String = host.chars().map(plain).collect();
        self.log_dir().join(format!("{}-to-{host}.log", with_id("tunnel", cluster_id)))
    }
    /// Held by the controller while it runs: each cluster has one controller.
    pub fn controller_lock(&self, cluster_id: &str) -> PathBuf {
        self.pid_dir().join(format!("{}.lock", with_id("controller", cluster_id)))
    }
    /// Why the controller does not run at present ([`crate::sys::problem`]).
    pub fn problem_file(&self, cluster_id: &str) -> PathBuf {
        self.pid_dir().join(format!("{}.problem", with_id("controller", cluster_id)))
    }
    pub fn controller_log(&self, cluster_id: &str) -> PathBuf {
        self.log_dir().join(format!("{}.log", with_id("controller", cluster_id)))
    }
    /// `number` counts the engine processes of a cluster; it is not the engine's id.
    pub fn engine_log(&self, cluster_id: &str, number: u32) -> PathBuf {
        self.log_dir().join(format!("{}-{number}.log", with_id("engine", cluster_id)))
    }
}

fn with_id(stem: &str, cluster_id: &str) -> String {
    if cluster_id.is_empty() {
        stem.to_string()
    } else {
        format!("{stem}-{cluster_id}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn names_that_are_paths_are_rejected() {
        for name in ["", ".", "..", "a/b", "/tmp/x", "a\\b", "-n", "a\nb"] {
            assert!(ProfileDir::named(name, Some(Path::new("/i"))).is_err(), "{name:?}");
        }
        assert!(ProfileDir::named(&"x".repeat(201), Some(Path::new("/i"))).is_err());
        let error = ProfileDir::named("a/b", None).unwrap_err();
        insta::assert_snapshot!(error, @r#""a/b" is not a valid profile name: it has a slash; use a name, not a path"#);
        assert!(check_cluster_id("").is_ok());
        let error = check_cluster_id("../x").unwrap_err();
        insta::assert_snapshot!(error, @r#""../x" is not a valid cluster id name: it has a slash; use a name, not a path"#);
    }

    #[test]
    fn files_are_where_ipyparallel_expects_them() {
        let profile = ProfileDir::named("x", Some(Path::new("/i"))).unwrap();
        assert_eq!(profile.client_file(""), Path::new("/i/profile_x/security/ipcontroller-client.json"));
        assert_eq!(
            profile.client_file("7"),
            Path::new("/i/profile_x/security/ipcontroller-7-client.json")
        );
        assert_eq!(
            profile.engine_file("7"),
            Path::new("/i/profile_x/security/ipcontroller-7-engine.json")
        );
        assert_eq!(profile.database_file(""), Path::new("/i/profile_x/pcluster.db"));
        assert_eq!(profile.database_file("7"), Path::new("/i/profile_x/pcluster-7.db"));
        assert_eq!(ProfileDir::at(Path::new("/i/profile_x")), profile);
        assert_eq!(ProfileDir::at(Path::new("/elsewhere/y")).name(), "y");
    }

    #[test]
    fn a_new_profile_is_private_and_existing_keys_become_private() {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        assert!(!profile.exists());
        profile.create().unwrap();
        profile.create().unwrap();
        for path in [profile.path(), &profile.security_dir(), &profile.log_dir(), &profile.pid_dir()] {
            assert_eq!(mode(path), 0o700, "{}", path.display());
        }
        fs::File::open(profile.security_dir())
            .unwrap()
            .set_permissions(fs::Permissions::from_mode(0o755))
            .unwrap();
        profile.create().unwrap();
        assert_eq!(mode(&profile.security_dir()), 0o700);
    }

    #[test]
    fn a_configuration_is_written_once_and_loads() {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        profile.create().unwrap();
        assert!(profile.create_config().unwrap());
        assert_eq!(mode(&profile.config_file()), 0o600);
        assert_eq!(crate::profile::Config::load(&profile).unwrap(), crate::profile::Config::default());
        fs::write(profile.config_file(), "controller: {hwm: 7}").unwrap();
        assert!(!profile.create_config().unwrap());
        assert_eq!(crate::profile::Config::load(&profile).unwrap().controller.hwm, 7);
    }

    #[test]
    fn all_profiles_are_listed_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a"] {
            ProfileDir::named(name, Some(dir.path())).unwrap().create().unwrap();
        }
        fs::create_dir(dir.path().join("extensions")).unwrap();
        fs::write(dir.path().join("profile_file"), "").unwrap();
        let all = ProfileDir::all(Some(dir.path())).unwrap();
        let names: Vec<&str> = all.iter().map(ProfileDir::name).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(ProfileDir::all(Some(&dir.path().join("nothing"))).unwrap().is_empty());
    }

    #[test]
    fn ipython_accepts_our_profile() {
        let Some(python) = std::env::var_os("PCLUSTER_TEST_PYTHON") else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("ours", Some(dir.path())).unwrap();
        profile.create().unwrap();
        let code = "import sys; from IPython.core.profiledir import ProfileDir as P; \
                    print(P.find_profile_dir_by_name(sys.argv[1], 'ours').security_dir)";
        let output = std::process::Command::new(python)
            .args(["-c", code])
            .arg(dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            profile.security_dir().to_string_lossy()
        );
    }
}

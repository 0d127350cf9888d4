//! The context of every command: the selected cluster, the terminal, and connections to the controller and the database.
use super::error::{CommandError, ErrorKind};
use super::global::{Color, Global};
use super::output::counted;
use super::output::visible::visible;
use crate::client::Client;
use crate::cluster::{self, ClusterSummary, Condition, remote};
use crate::connection::{ConnectionError, ConnectionFile, discover};
use crate::model::shell;
use crate::profile::ProfileDir;
use crate::profile::dir::check_cluster_id;
use crate::ssh::tunnel::Phase;
use crate::sys::lock::{self, LockState};
use std::cell::{Cell, OnceCell};
use std::future::Future;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

/// How long a command tries to reach the controller.
const CONNECT: Duration = Duration::from_secs(15);

pub(crate) struct Context {
    /// The profile's name as given; not yet checked.
    pub profile: String,
    /// The profile was given explicitly.
    pub profile_named: bool,
    pub ipython_dir: Option<PathBuf>,
    /// Empty for the profile's default cluster.
    pub cluster_id: String,
    pub json: bool,
    /// How many `-v`.
    pub verbose: u8,
    pub quiet: bool,
    pub terminal: Terminal,
    runtime: OnceCell<tokio::runtime::Runtime>,
    threads: Cell<bool>,
}

/// Properties of stdout and stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terminal {
    pub stdout: bool,
    pub stderr: bool,
    /// Columns of the terminal that stdout (else stderr) is; 80 where there is none.
    pub width: u16,
    /// Whether stdout may be coloured.
    pub color: bool,
    /// Whether stderr may be coloured.
    pub color_stderr: bool,
}

impl Terminal {
    /// Neither is a terminal.
    pub(crate) const NONE: Terminal = Terminal {
        stdout: false,
        stderr: false,
        width: 80,
        color: false,
        color_stderr: false,
    };

    fn of_this_process(color: Color) -> Terminal {
        let (stdout, stderr) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let may = |terminal: bool| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !plain,
        };
        Terminal {
            stdout,
            stderr,
            width: super::output::terminal_width().unwrap_or(80),
            color: may(stdout),
            color_stderr: may(stderr),
        }
    }
}

/// What runs of a cluster whose connection file does not lead to it.
enum LiveProcesses {
    Controller(String),
    Engines(String),
    Nothing,
}

impl Context {
    pub(crate) fn new(global: &Global) -> Context {
        Context {
            profile: global.profile.clone().unwrap_or_else(|| "default".into()),
            profile_named: global.profile.is_some(),
            ipython_dir: global.ipython_dir.clone(),
            cluster_id: global.cluster_id.clone(),
            json: global.json,
            verbose: global.verbose,
            quiet: global.quiet,
            terminal: Terminal::of_this_process(global.color),
            runtime: OnceCell::new(),
            threads: Cell::new(false),
        }
    }

    /// Uses a multi-threaded runtime: for a process that may block its main thread while its connections stay active (a
    /// controller, or output to a full pipe). Must be called before the runtime is first used.
    pub(crate) fn use_threads(&self) {
        self.threads.set(true);
    }

    /// The runtime of this process, created on first use. Usually single-threaded, so that a message is handled by the thread
    /// that read it, without waking another.
    pub(crate) fn runtime(&self) -> Result<&tokio::runtime::Runtime, CommandError> {
        if self.runtime.get().is_none() {
            let mut builder = match self.threads.get() {
                true => tokio::runtime::Builder::new_multi_thread(),
                false => tokio::runtime::Builder::new_current_thread(),
            };
            let runtime = builder
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(|e| CommandError::new(ErrorKind::Environment, format!("cannot start the threads of this process: {e}")))?;
            let _ = self.runtime.set(runtime);
        }
        self.runtime
            .get()
            .ok_or_else(|| CommandError::internal("the runtime was not created"))
    }

    /// Runs a future to completion.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> Result<F::Output, CommandError> {
        Ok(self.runtime()?.block_on(future))
    }

    /// Runs a future and everything that it spawns on this thread: for a process that handles one message after another,
    /// where passing them between threads costs more than handling them.
    pub(crate) fn block_on_one_thread<F: Future>(&self, future: F) -> Result<F::Output, CommandError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| CommandError::new(ErrorKind::Environment, format!("cannot initialize the runtime: {e}")))?;
        Ok(runtime.block_on(future))
    }

    /// The profile's directory, which may not exist. Validates the profile's name and the cluster id.
    pub(crate) fn profile_dir(&self) -> Result<ProfileDir, CommandError> {
        check_cluster_id(&self.cluster_id)?;
        Ok(ProfileDir::named(&self.profile, self.ipython_dir.as_deref())?)
    }

    /// The clusters selected for a command on several: all, those of the given profile, or the one with the given cluster id.
    pub(crate) fn clusters(&self) -> Result<Vec<ClusterSummary>, CommandError> {
        let mut clusters = match self.profile_named {
            false if self.cluster_id.is_empty() => cluster::list(self.ipython_dir.as_deref())?,
            _ => cluster::list_profile(&self.profile_dir()?),
        };
        if !self.cluster_id.is_empty() {
            clusters.retain(|cluster| cluster.cluster_id == self.cluster_id);
        }
        Ok(clusters)
    }

    /// The client connection file of the running controller.
    pub(crate) fn connection(&self) -> Result<ConnectionFile, CommandError> {
        let profile = self.profile_dir()?;
        let path = profile.client_file(&self.cluster_id);
        match discover::find(&path) {
            Err(error @ ConnectionError::Stale { .. }) if cluster::is_supervised(&profile, &self.cluster_id) => {
                // It was just killed; its supervisor is restarting it.
                let go_on = || match cluster::is_supervised(&profile, &self.cluster_id) {
                    true => Ok(()),
                    false => Err(CommandError::from(ConnectionError::Missing { path: path.clone() })),
                };
                discover::wait(&path, CONNECT, go_on).map_err(|_| self.not_back(&profile, error))
            }
            Err(ConnectionError::Missing { path }) => Err(match self.known_to_run(&profile) {
                LiveProcesses::Controller(known) => {
                    CommandError::refused(format!("{known}, but its connection file is missing: {}", path.display())).hint(format!(
                        "it may be starting; otherwise run pcluster stop{0}, then pcluster start{0}",
                        self.options()
                    ))
                }
                LiveProcesses::Engines(known) => self.no_cluster(&path).hint(known),
                LiveProcesses::Nothing => self.no_cluster(&path),
            }),
            Err(error @ ConnectionError::Stale { .. }) => Err(CommandError::not_found(error)
                .hint(format!("start it again, with all its tasks: pcluster start{}", self.options()))
                .hint("or remove its files: pcluster clean")),
            Err(error) if error.is_damaged() => {
                let write = format!("pcluster start{} writes a new file", self.options());
                Err(match self.known_to_run(&profile) {
                    LiveProcesses::Controller(known) => CommandError::refused(error)
                        .hint(known)
                        .hint(format!("after pcluster stop{}, {write}", self.options())),
                    LiveProcesses::Engines(known) => CommandError::not_found(error).hint(known).hint(write),
                    LiveProcesses::Nothing => CommandError::not_found(error).hint(format!("no process of the cluster is running; {write}")),
                })
            }
            other => Ok(other?),
        }
    }

    /// A controller whose supervisor lives has not come back.
    fn not_back(&self, profile: &ProfileDir, error: ConnectionError) -> CommandError {
        match cluster::controller_problem(profile, &self.cluster_id) {
            Some(problem) => CommandError::refused(format!("{}: {problem}", self.describe_cluster())).hint(format!(
                "fix the cause, and it restarts with its tasks; or stop it: pcluster stop{}",
                self.options()
            )),
            None => CommandError::refused(error),
        }
    }

    /// What of the cluster runs, by its lock and its record.
    fn known_to_run(&self, profile: &ProfileDir) -> LiveProcesses {
        let Some(cluster) = cluster::status(profile, &self.cluster_id) else {
            return LiveProcesses::Nothing;
        };
        let holder = match lock::ask(&profile.controller_lock(&self.cluster_id)) {
            LockState::Held(holder) => holder.map(|holder| holder.process),
            LockState::Free | LockState::Unknown(_) => None,
        };
        let process = match holder.or(cluster.controller).filter(|process| process.pid != 0) {
            Some(process) => format!("process {} on {}", process.pid, process.host),
            None => "unknown process".into(),
        };
        let engines = cluster.engines_alive.unwrap_or_default() as u64;
        match cluster.state {
            Condition::Running => {
                LiveProcesses::Controller(format!("a controller is running ({process}), with {}", counted(engines, "engine")))
            }
            Condition::Remote | Condition::Foreign | Condition::Connected => {
                let why = cluster.unseen.map(|why| format!(": {why}")).unwrap_or_default();
                LiveProcesses::Controller(format!("a controller may be running ({process}){why}"))
            }
            _ if engines > 0 => LiveProcesses::Engines(format!("no controller is running; engines still running: {engines}")),
            _ => LiveProcesses::Nothing,
        }
    }

    /// Connected to the running controller, versions compared.
    pub(crate) fn client(&self) -> Result<Client, CommandError> {
        let file = self.connection().map_err(|e| self.because_of_tunnel(e))?;
        let path = self.profile_dir()?.client_file(&self.cluster_id);
        let connected = self.block_on(Client::connect_and_follow(&file, &path, CONNECT))?;
        connected.map_err(|e| {
            let error = self.because_of_tunnel(e.into());
            match file.ssh.as_str() {
                "" => error,
                ssh => error.hint(format!(
                    "its file names the ssh server {ssh}: pcluster connect {ssh}{}",
                    self.options()
                )),
            }
        })
    }

    /// The state of the cluster's tunnel as an error, if it has one that is not established.
    fn because_of_tunnel(&self, error: CommandError) -> CommandError {
        let tunnel = self.profile_dir().ok().and_then(|p| remote::running(&p, &self.cluster_id));
        match tunnel.filter(|tunnel| tunnel.phase != Phase::Up) {
            Some(tunnel) => CommandError::refused(tunnel.describe())
                .hints(tunnel.hints.clone())
                .hint(format!("pcluster keeps retrying; pcluster disconnect{} stops it", self.options())),
            None => error,
        }
    }

    fn no_cluster(&self, path: &std::path::Path) -> CommandError {
        CommandError::not_found(format!(
            "no cluster is running in {}: no file {}",
            self.describe_cluster(),
            path.display()
        ))
        .hint(format!("start one: pcluster start{} -n 4", self.options()))
        .hint("or choose another with --profile and --cluster-id; `pcluster list` shows running clusters")
    }

    pub(crate) fn describe_cluster(&self) -> String {
        describe_cluster(&self.profile, &self.cluster_id)
    }

    /// Prints a status message to stderr, unless `--quiet` is set.
    pub(crate) fn note(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            super::output::stderr_line(visible(&text.to_string()));
        }
    }

    /// Prints a status message with `-v`.
    pub(crate) fn note_verbose(&self, text: impl std::fmt::Display) {
        if self.verbose > 0 {
            super::output::stderr_line(visible(&text.to_string()));
        }
    }

    /// The log level of a daemon: as configured, higher with `-v`.
    pub(crate) fn log_level<'a>(&self, configured: &'a str) -> &'a str {
        match self.verbose {
            0 => configured,
            1 => "debug",
            _ => "trace",
        }
    }

    /// How to draw tables: for a file as for a pipe.
    pub(crate) fn terminal_for(&self, file: bool) -> Terminal {
        if file { Terminal::NONE } else { self.terminal }
    }

    /// ` --profile p --cluster-id c`, without those at their defaults: for hints that show a command.
    pub(crate) fn options(&self) -> String {
        shell::cluster_options(&self.profile, &self.cluster_id)
    }
}

/// "profile `p`", or "profile `p` under cluster id `c`".
pub(crate) fn describe_cluster(profile: &str, cluster_id: &str) -> String {
    match cluster_id {
        "" => format!("profile `{profile}`"),
        id => format!("profile `{profile}` under cluster id `{id}`"),
    }
}

#[cfg(test)]
impl Context {
    /// A context for tests: this IPython directory, no terminal.
    pub(crate) fn for_tests(ipython_dir: &std::path::Path) -> Context {
        Context {
            profile: "default".into(),
            profile_named: false,
            ipython_dir: Some(ipython_dir.to_path_buf()),
            cluster_id: String::new(),
            json: false,
            verbose: 0,
            quiet: false,
            terminal: Terminal::NONE,
            runtime: OnceCell::new(),
            threads: Cell::new(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_cluster_the_error_names_the_file_and_suggests_start() {
        let mut context = Context::for_tests(std::path::Path::new("/nowhere"));
        context.profile = "mine".into();
        context.cluster_id = "night".into();
        let error = context.client().err().unwrap();
        assert_eq!(error.kind, ErrorKind::NotFound);
        insta::assert_snapshot!(error.render(false), @r"
        error: no cluster is running in profile `mine` under cluster id `night`: no file /nowhere/profile_mine/security/ipcontroller-night-client.json
        hint: start one: pcluster start --profile mine --cluster-id night -n 4
        hint: or choose another with --profile and --cluster-id; `pcluster list` shows running clusters
        ");
    }

    #[test]
    fn a_stale_connection_file_is_reported_as_stale() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context::for_tests(dir.path());
        let path = context.profile_dir().unwrap().client_file("");
        let mut keys = crate::connection::file::PclusterKeys::of_this_process("", "127.0.0.1", None);
        // This pid, with another start time.
        keys.process.ticks = Some(1);
        let file: ConnectionFile = serde_json::from_value(serde_json::json!({
            "ssh": "", "interface": "tcp://127.0.0.1", "registration": 1, "control": 2, "mux": 3, "task": 4, "iopub": 5, "broadcast": 6,
            "key": "k", "curve_serverkey": null, "location": "here", "pack": "json", "unpack": "json",
            "signature_scheme": "hmac-sha256", "pcluster": keys,
        }))
        .unwrap();
        file.write(&path).unwrap();
        let error = context.client().err().unwrap();
        assert_eq!(error.kind, ErrorKind::NotFound);
        let text = error.render(false);
        let text = text
            .replace(&dir.path().display().to_string(), "DIR")
            .replace(&keys.process.pid.to_string(), "PID");
        insta::assert_snapshot!(text.replace(&keys.process.host, "HOST"), @r#"
        error: the cluster in profile "default" is gone: DIR/profile_default/security/ipcontroller-client.json was written by process PID on HOST, which no longer runs
        hint: start it again, with all its tasks: pcluster start
        hint: or remove its files: pcluster clean
        "#);
    }

    #[test]
    fn invalid_names_are_rejected_before_anything_is_read() {
        let mut context = Context::for_tests(std::path::Path::new("/nowhere"));
        context.profile = "a/b".into();
        let error = context.client().err().unwrap();
        assert_eq!(error.kind, ErrorKind::Usage);
        insta::assert_snapshot!(error.render(false), @r#"error: "a/b" is not a valid profile name: it has a slash; use a name, not a path"#);
        context.profile = "fine".into();
        context.cluster_id = "../x".into();
        assert_eq!(context.client().err().unwrap().kind, ErrorKind::Usage);
    }
}

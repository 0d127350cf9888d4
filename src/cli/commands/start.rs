//! `pcluster start`
mod bar;
mod on;

pub(crate) use bar::StartProgressBar;

use super::setting;
use crate::cli::interruptible::interruptible;
use crate::cli::output::counted;
use crate::cli::output::json;
use crate::cli::resources::{NodeArgs, ResourceArgs};
use crate::cli::tables::unavailable_engines;
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::remote::run::ProgressLine;
use crate::cluster::{self, StartOptions, StartProgress, StartReport, Wait};
use crate::launchers::{self, batch};
use crate::profile::Config;
use crate::profile::config::EngineKind;
use crate::profile::config::elastic::{CoreHours, Span};
use crate::profile::config::resources::SshHost;
use std::time::Duration;

/// Start a controller and engines
///
/// Returns when the engines have registered. `pcluster logs` shows their logs.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  pcluster start -n 4\n  pcluster start --launcher slurm --max 64 --walltime 2h --mem 4G\n  pcluster start --on login.example.org --launcher sge -n 15"
)]
pub(crate) struct Args {
    /// Start N engines [default: launcher.n of the profile, else one per processor]
    #[arg(short, value_name = "N", conflicts_with = "elastic")]
    n: Option<u32>,
    #[command(flatten)]
    elastic: ElasticArgs,
    #[command(flatten)]
    how: EngineArgs,
    /// Listen on this address or network interface; 0.0.0.0 for all [default: 127.0.0.1, or 0.0.0.0 if engines may run on other
    /// hosts]
    #[arg(long, value_name = "ADDRESS", help_heading = None::<&str>)]
    ip: Option<String>,
    /// Disable encryption, for ipyparallel 6 or older or a ZeroMQ without CURVE; messages are still signed
    #[arg(long, help_heading = None::<&str>)]
    no_curve: bool,
    /// Start the controller with this launcher: local, or a batch system, as a separate job [default: local]
    #[arg(long, value_name = "NAME", help_heading = None::<&str>)]
    controller_launcher: Option<String>,
    /// Start the cluster on a remote host over ssh and connect to it: [user@]host, or a Host of ~/.ssh/config
    #[arg(long, value_name = "DESTINATION", help_heading = None::<&str>)]
    on: Option<String>,
    /// With --on: do not copy this pcluster to the host if it is missing or a different version
    #[arg(long, requires = "on", help_heading = None::<&str>)]
    no_install: bool,
    /// Print progress as JSON lines on stderr, for a pcluster that runs this one over ssh
    #[arg(long, hide = true)]
    json_progress: bool,
}

/// The limits between which the work decides how many engines there are.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(id = "elastic", multiple = true)]
#[command(next_help_heading = "Elastic engines")]
pub(crate) struct ElasticArgs {
    /// Keep at least N engines [default: 0]
    #[arg(long, value_name = "N")]
    pub min: Option<u32>,
    /// Start engines when tasks wait, at most N, and retire idle ones; required with the other options of this group
    #[arg(long, value_name = "N")]
    pub max: Option<u32>,
    /// Retire engines that have been idle for DURATION (`90s`, `5m`) [default: 5m]
    #[arg(long, value_name = "DURATION")]
    pub idle: Option<Span>,
    /// Grant all jobs together at most this many core-hours (`500ch`); the jobs need a walltime
    #[arg(long, value_name = "CORE-HOURS")]
    pub budget: Option<CoreHours>,
    /// Let at most N jobs wait in the queue [default: 4]
    #[arg(long, value_name = "N")]
    pub max_queued: Option<u32>,
}

impl ElasticArgs {
    /// Those that are given, as settings.
    fn settings(&self) -> Vec<(String, String)> {
        let quoted = |text: String| format!("{text:?}");
        let given = [
            ("max", self.max.map(|n| n.to_string())),
            ("min", self.min.map(|n| n.to_string())),
            ("idle", self.idle.map(|idle| quoted(idle.to_string()))),
            ("budget", self.budget.map(|budget| quoted(budget.to_string()))),
            ("max_queued", self.max_queued.map(|n| n.to_string())),
        ];
        let setting = |(key, value): (&str, Option<String>)| Some((format!("elastic.{key}"), value?));
        given.into_iter().filter_map(setting).collect()
    }

    /// The same; fails if there is no maximum, neither here nor in the profile.
    fn checked_settings(&self, before: &[(String, String)], context: &Context) -> Result<Vec<(String, String)>, CommandError> {
        let settings = self.settings();
        if !settings.is_empty() && self.max.is_none() {
            let config = Config::load_with(&context.profile_dir()?, before)?;
            if config.elastic.max.is_none() {
                let why = "--min, --idle, --budget and --max-queued need --max, the maximum number of engines";
                return Err(CommandError::usage(why));
            }
        }
        Ok(settings)
    }
}

/// Options for starting engines, shared with `engines add` and `scale`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct EngineArgs {
    /// Start the engines with this launcher: local, mpi, ssh, slurm, sge, pbs, lsf, htcondor
    #[arg(long, value_name = "NAME")]
    pub launcher: Option<String>,
    /// Start this kind of engine: pcluster's own, or ipyparallel's
    #[arg(long, value_name = "KIND")]
    pub engine: Option<EngineArg>,
    /// Run this Python interpreter on the engines [default: the active environment's, else python3]
    #[arg(long, value_name = "PYTHON")]
    pub python: Option<String>,
    /// Wait for N engines: a number, all or none [default: all]
    #[arg(long, value_name = "N", default_value = "all", hide_default_value = true, value_parser = wait_for)]
    pub wait: Wait,
    /// Time out after DURATION (`90s`, `5m`) [default: launcher.engines_timeout_ms, excluding time in a batch queue]
    #[arg(long, value_name = "DURATION", value_parser = super::wait::duration)]
    pub timeout: Option<Duration>,
    /// Restart engines up to N times each after walltime, node failure or preemption [default: launcher.max_walltime_restarts, 0]
    #[arg(long, value_name = "N", help_heading = "Batch systems")]
    pub max_walltime_restarts: Option<u32>,
    /// With --launcher ssh: start N engines on this host; repeatable [default: launchers.ssh.hosts of the profile]
    #[arg(long = "host", value_name = "[USER@]HOST[:N]", value_parser = host)]
    pub hosts: Vec<String>,
    /// With --launcher ssh: succeed if at least N engines start [default: all]
    #[arg(long, value_name = "N")]
    pub min_engines: Option<u32>,
    /// With --launcher ssh: use a reverse tunnel to the controller if needed (auto), always or never [default: launchers.ssh.tunnel
    /// of the profile]
    #[arg(long, value_name = "WHEN")]
    pub tunnel: Option<Tunnel>,
    #[command(flatten)]
    pub nodes: NodeArgs,
    #[command(flatten)]
    pub resources: ResourceArgs,
    /// Override a setting of pcluster.yaml, for example engine.interrupt_timeout_ms=1000
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting, help_heading = None::<&str>)]
    pub settings: Vec<(String, String)>,
    /// Set the log level of controller and engines: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", help_heading = None::<&str>)]
    pub log_level: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineArg {
    Pcluster,
    Ipengine,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tunnel {
    Auto,
    Always,
    Never,
}

impl Tunnel {
    fn word(self) -> &'static str {
        match self {
            Tunnel::Auto => "auto",
            Tunnel::Always => "always",
            Tunnel::Never => "never",
        }
    }
}

impl From<EngineArg> for EngineKind {
    fn from(kind: EngineArg) -> Self {
        match kind {
            EngineArg::Pcluster => EngineKind::Pcluster,
            EngineArg::Ipengine => EngineKind::Ipengine,
        }
    }
}

fn host(text: &str) -> Result<String, String> {
    SshHost::parse(text).map(|_| text.to_string())
}

/// `12`, `all`, `none`
fn wait_for(text: &str) -> Result<Wait, String> {
    match text {
        "all" => Ok(Wait::All),
        "none" => Ok(Wait::None),
        number => number.parse().map(Wait::Some).map_err(|_| "a number, all or none".into()),
    }
}

impl EngineArgs {
    fn is_ipengine(&self, context: &Context, settings: &[(String, String)]) -> Result<bool, CommandError> {
        let kind = match self.engine {
            Some(kind) => kind.into(),
            None => Config::load_with(&context.profile_dir()?, settings)?.engine.kind,
        };
        Ok(kind == EngineKind::Ipengine)
    }

    /// `--set`, and the options that stand for settings.
    pub(crate) fn settings(&self, context: &Context) -> Result<Vec<(String, String)>, CommandError> {
        let mut settings = self.settings.clone();
        settings.extend_from_slice(self.nodes.settings()?);
        if !self.nodes.is_empty() && self.is_ipengine(context, &settings)? {
            let why = "--resource is for pcluster's own engines: an ipengine reports no resources";
            return Err(CommandError::usage(why));
        }
        if let Some(timeout) = self.timeout {
            settings.push(("launcher.engines_timeout_ms".into(), timeout.as_millis().to_string()));
        }
        let for_hosts = !self.hosts.is_empty() || self.min_engines.is_some() || self.tunnel.is_some();
        let restarts = self.max_walltime_restarts;
        if for_hosts || restarts.is_some() || !self.resources.given().is_empty() {
            let profile = context.profile_dir()?;
            let config = Config::load_with(&profile, &settings)?;
            let launcher = self.launcher.clone().unwrap_or_else(|| config.launcher.engines.clone());
            let takes_hosts = || launchers::by_name(&launcher, &profile, &config).is_ok_and(|launcher| launcher.remote_hosts().is_some());
            if for_hosts && !takes_hosts() {
                let why = format!("--host, --min-engines and --tunnel are for --launcher ssh; the engines' launcher is {launcher}");
                return Err(CommandError::usage(why));
            }
            if let Some(restarts) = restarts {
                if !batch::SYSTEMS.contains(&launcher.as_str()) {
                    let systems = batch::SYSTEMS.join(", ");
                    let why = format!("--max-walltime-restarts is for batch systems ({systems}); the engines' launcher is {launcher}");
                    return Err(CommandError::usage(why));
                }
                settings.push(("launcher.max_walltime_restarts".into(), restarts.to_string()));
            }
            if !self.hosts.is_empty() {
                settings.push(("launchers.ssh.hosts".into(), format!("{:?}", self.hosts)));
            }
            if let Some(least) = self.min_engines {
                settings.push(("launchers.ssh.min_engines".into(), least.to_string()));
            }
            if let Some(tunnel) = self.tunnel {
                settings.push(("launchers.ssh.tunnel".into(), tunnel.word().into()));
            }
            settings.extend(self.resources.settings(&launcher)?);
        }
        Ok(settings)
    }
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    if let Some(destination) = &args.on {
        on::start(destination, !args.no_install, context)?;
        return Ok(Exit::Fine);
    }
    let settings = settings(&args, context)?;
    let options = StartOptions {
        profile: context.profile_dir()?,
        cluster_id: context.cluster_id.clone(),
        n: args.n,
        settings,
        launcher: args.how.launcher,
        controller_launcher: args.controller_launcher,
        wait: args.how.wait,
        timeout: args.how.timeout,
        engine_kind: args.how.engine.map(EngineKind::from),
        python: args.how.python,
        cwd: None,
        log_level: args.how.log_level,
        program: None,
    };
    let mut bar = StartProgressBar::new(context);
    let mut show = |progress: StartProgress| match args.json_progress {
        true => print_progress(&progress, context),
        false => bar.show(progress),
    };
    let started = interruptible(context, cluster::start(options, &mut show))?;
    bar.clear();
    report(&started, context)?;
    Ok(Exit::Fine)
}

fn settings(args: &Args, context: &Context) -> Result<Vec<(String, String)>, CommandError> {
    let mut settings = args.how.settings(context)?;
    settings.extend(args.elastic.checked_settings(&settings, context)?);
    if let Some(ip) = &args.ip {
        // Quoted as YAML text: an address of digits and dots must stay a string.
        settings.push(("controller.ip".into(), format!("{ip:?}")));
    }
    if args.no_curve {
        settings.push(("controller.curve".into(), "false".into()));
    }
    Ok(settings)
}

fn print_progress(progress: &StartProgress, context: &Context) {
    if let Ok(text) = serde_json::to_string(&ProgressLine {
        progress: progress.clone(),
    }) {
        context.note(text);
    }
}

fn report(started: &StartReport, context: &Context) -> Result<(), CommandError> {
    if context.json {
        return json::print(&serde_json::json!({
            "profile": started.profile.name(),
            "cluster_id": started.cluster_id,
            "directory": started.profile.path(),
            "controller_pid": started.controller_pid,
            "controller_job": started.controller_job,
            "engines": started.engines,
            "engines_wanted": started.n,
            "engines_unavailable": started.unavailable.len(),
            "engines_max": started.elastic.as_ref().map(|settings| settings.shapes.iter().map(|shape| shape.max).sum::<u32>()),
            "job": started.job,
            "client_file": started.client_file,
            "controller_log": started.controller_log,
            "took": started.took.as_secs_f64(),
        }));
    }
    let options = context.options();
    context.note(format!(
        "{}: a controller ({}) and {}, in {:.1} s",
        context.describe_cluster(),
        started
            .controller_job
            .clone()
            .unwrap_or_else(|| format!("process {}", started.controller_pid)),
        describe_engines(started),
        started.took.as_secs_f64(),
    ));
    for line in unavailable_engines(&started.unavailable) {
        context.note(format!("warning: {line}"));
    }
    context.note(format!(
        "next: pcluster map{options} FILE.py:FUNCTION INPUTS.txt  (pcluster status{options}, pcluster stop{options})"
    ));
    Ok(())
}

/// `15 engines (slurm job 4711)`, `12 of 15 engines`, `0–64 engines, as the work needs`
fn describe_engines(started: &StartReport) -> String {
    if let Some(settings) = &started.elastic {
        let ranges: Vec<String> = settings.shapes.iter().map(|shape| format!("{}–{}", shape.min, shape.max)).collect();
        return format!("{} engines, as the work needs", ranges.join(" and "));
    }
    let mut text = match started.engines < started.n {
        true => format!("{} of {}", started.engines, counted(u64::from(started.n), "engine")),
        false => counted(u64::from(started.engines), "engine"),
    };
    if let Some(job) = &started.job {
        text.push_str(&format!(" ({job})"));
    }
    text
}

#[cfg(test)]
mod tests {
    use crate::cli::commands::{Command, dispatch};
    use crate::cli::{CommandError, Context, Exit, args};

    fn run(line: &str, context: &Context) -> Result<Exit, CommandError> {
        let cli = args::parse(line.split(' ').map(Into::into)).unwrap();
        dispatch(cli.command, context)
    }

    #[test]
    fn invalid_commands_fail_before_anything_is_created() {
        let dir = tempfile::tempdir().unwrap();
        let mut context = Context::for_tests(dir.path());
        context.quiet = true;
        for (line, code, says) in [
            ("pcluster start --set controller.hwmm=2", 2, "unknown key `hwmm`"),
            ("pcluster start --set controller.hwm=many", 2, "--set controller.hwm=many"),
            ("pcluster start -n 1 --python /nonexistent/python", 5, "/nonexistent/python"),
            ("pcluster start --launcher cloud", 2, "unknown launcher \"cloud\""),
            ("pcluster start --max-walltime-restarts 2", 2, "for batch systems"),
            ("pcluster engines add 2", 3, "no cluster is running"),
            ("pcluster stop", 3, "no cluster is running"),
            ("pcluster status", 3, "no cluster is running"),
            ("pcluster resubmit 1 --failed", 3, "no cluster is running"),
            ("pcluster cancel --all", 3, "no cluster is running"),
            ("pcluster wait 1", 3, "no cluster is running"),
            ("pcluster purge 1", 3, "no cluster is running"),
            ("pcluster logs", 3, "no such logs"),
            ("pcluster logs all 3", 2, "only engines have numbers"),
            ("pcluster profile show", 3, "no profile `default`"),
            ("pcluster profile create a/b", 2, "slash"),
        ] {
            let error = run(line, &context).unwrap_err();
            assert_eq!(error.kind.code(), code, "{line}: {}", error.error);
            assert!(error.error.contains(says), "{line}: {}", error.error);
        }
        assert!(!dir.path().join("profile_default").join("security").exists(), "nothing was made");
        for line in ["pcluster stop --all", "pcluster clean", "pcluster list", "pcluster profile list"] {
            assert_eq!(run(line, &context), Ok(Exit::Fine), "{line}");
        }
    }

    #[test]
    fn options_become_settings_and_an_address_stays_a_string() {
        let line = "pcluster start --ip 0.0.0.0 --no-curve --timeout 2m --set controller.hwm=2";
        let Command::Start(args) = args::parse(line.split(' ').map(Into::into)).unwrap().command else {
            panic!()
        };
        let settings = super::settings(&args, &Context::for_tests(std::path::Path::new("/nonexistent"))).unwrap();
        let config = crate::profile::Config::parse("", &settings).unwrap();
        assert_eq!(
            (
                config.controller.ip.as_str(),
                config.controller.hwm,
                config.controller.curve,
                config.launcher.engines_timeout_ms
            ),
            ("0.0.0.0", 2, false, 120_000)
        );
    }
}

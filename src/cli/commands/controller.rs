//! `pcluster controller`: started by launchers, pcluster's and ipyparallel's.
use super::{SupervisionPolicy, setting, supervise, watch_supervisor};
use crate::cli::ipyparallel::Trait;
use crate::cli::ipyparallel::common::{ClusterSelection, CommonOptions, LauncherEnvironment};
use crate::cli::ipyparallel::controller::ControllerTraits;
use crate::cli::{CommandError, Context, Exit, logging};
use crate::connection::addresses;
use crate::controller::{self, ControllerSettings};
use crate::engine::settings::interpreter;
use crate::profile::Config;
use crate::profile::dir::check_cluster_id;
use std::path::PathBuf;

/// Run a controller in the foreground
///
/// Launchers start this; use `pcluster start` to start a cluster. Logs to stderr, and serves until `pcluster stop`, SIGTERM or
/// SIGINT.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster controller --ip 0.0.0.0\n  pcluster controller --profile gpu --log-level debug")]
pub(crate) struct Args {
    /// Use this profile directory, instead of --profile
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,
    /// Override a setting of pcluster.yaml, for example controller.heartbeat_interval_ms=500
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Run the controller as a child process, and restart it when it is killed or crashes
    #[arg(long)]
    supervise: bool,
    /// Set the log level: error, warn, info, debug, trace, or Python's level names and numbers
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Run Dask's scheduler with this Python interpreter [default: engine.python of the profile, else the active environment's]
    #[arg(long, value_name = "PYTHON")]
    python: Option<String>,
    /// Disable encryption, for ipyparallel 6 or older or a ZeroMQ without CURVE; messages are still signed
    #[arg(long)]
    no_curve: bool,
    #[command(flatten)]
    ipcontroller: Ipcontroller,
}

/// The options of ipcontroller.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Compatible with ipcontroller")]
struct Ipcontroller {
    /// Listen on this address; 0.0.0.0 for all [default: controller.ip of the profile]
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// Advertise this name or address to clients and engines
    #[arg(long, value_name = "HOST")]
    location: Option<String>,
    /// Send heartbeats every MS milliseconds
    #[arg(long, value_name = "MS")]
    ping: Option<String>,
    /// Listen on these 16 ports: 10101-10116
    #[arg(long, value_name = "LIST")]
    ports: Option<String>,
    /// Assign load-balanced tasks by this scheme: leastload, lru, plainrandom, twobin, weighted
    #[arg(long, value_name = "NAME")]
    scheme: Option<String>,
    /// Limit the load-balanced tasks that one engine holds; 0 for no limit
    #[arg(long, value_name = "N")]
    hwm: Option<String>,
    /// Let clients connect through this ssh server
    #[arg(long, value_name = "[USER@]HOST[:PORT]")]
    ssh: Option<String>,
    /// Let engines connect through this ssh server
    #[arg(long, value_name = "[USER@]HOST[:PORT]")]
    enginessh: Option<String>,
    /// Keep keys, ports and connection files on exit, and reuse existing ones
    #[arg(long)]
    reuse: bool,
    /// Same as --reuse; a restarted controller always finds its engines again
    #[arg(long)]
    restore: bool,
    /// Ignored: every task is recorded in the cluster's own database
    #[arg(long)]
    dictdb: bool,
    /// Ignored: every task is recorded in the cluster's own database
    #[arg(long)]
    sqlitedb: bool,
    /// Ignored: every task is recorded in the cluster's own database
    #[arg(long)]
    mongodb: bool,
    /// Ignored: every task is recorded in the cluster's own database
    #[arg(long)]
    nodb: bool,
    /// Ignored: the controller is a single process
    #[arg(long)]
    usethreads: bool,
    #[arg(long, hide = true)]
    port: Option<String>,
    #[arg(long, hide = true)]
    transport: Option<String>,
    #[command(flatten)]
    common: CommonOptions,
}

impl Ipcontroller {
    /// The traits of the options.
    fn traits(&self) -> Vec<Trait> {
        let valued = [
            ("IPController", "ip", &self.ip),
            ("IPController", "location", &self.location),
            ("HeartMonitor", "period", &self.ping),
            ("IPController", "ports", &self.ports),
            ("TaskScheduler", "scheme_name", &self.scheme),
            ("TaskScheduler", "hwm", &self.hwm),
            ("IPController", "ssh_server", &self.ssh),
            ("IPController", "engine_ssh_server", &self.enginessh),
            ("IPController", "regport", &self.port),
            ("IPController", "transport", &self.transport),
        ];
        let flags = [
            ("IPController", "reuse_files", "True", self.reuse),
            ("IPController", "restore_engines", "True", self.restore),
            ("IPController", "db_class", "DictDB", self.dictdb),
            ("IPController", "db_class", "SQLiteDB", self.sqlitedb),
            ("IPController", "db_class", "MongoDB", self.mongodb),
            ("IPController", "db_class", "NoDB", self.nodb),
            ("IPController", "use_threads", "True", self.usethreads),
        ];
        self.common.after(&valued, &flags)
    }
}

const POLICY: SupervisionPolicy = SupervisionPolicy {
    again: &[],
    retries: true,
    watches: true,
};

/// None where the options are wrong, which the process that is supervised reports.
fn problem_file(args: &Args, context: &Context) -> Option<PathBuf> {
    let words = ControllerTraits::of(&args.ipcontroller.traits()).ok()?;
    let place = ClusterSelection::find(
        &words.common,
        args.profile_dir.clone(),
        LauncherEnvironment::of_this_process(),
        context,
    )
    .ok()?;
    Some(place.profile.problem_file(&place.cluster_id))
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    if args.supervise {
        logging::start(context.log_level(args.log_level.as_deref().unwrap_or("info")));
        return supervise(&POLICY, problem_file(&args, context));
    }
    watch_supervisor(&POLICY)?;
    let mut words = ControllerTraits::of(&args.ipcontroller.traits()).map_err(CommandError::usage)?;
    words.common.log_level = args.log_level.or(words.common.log_level);
    let place = ClusterSelection::find(&words.common, args.profile_dir, LauncherEnvironment::of_this_process(), context)?;
    check_cluster_id(&place.cluster_id)?;
    place.profile.create()?;
    words.common.begin("ipcontroller", &place, context)?;
    let profile = place.profile;
    for file in profile.ignored_settings() {
        tracing::warn!(
            "{} is ignored: pcluster's controller reads {} (see docs/reference/configuration.md)",
            file.display(),
            profile.config_file().display()
        );
    }

    let mut settings = words.settings.clone();
    if args.no_curve {
        settings.push(("controller.curve".into(), "false".into()));
    }
    settings.extend(args.settings);
    let mut config = Config::load_with(&profile, &settings)?;
    if let Some(lease) = words.lease(config.controller.heartbeat_interval_ms) {
        settings.push(lease);
        config = Config::load_with(&profile, &settings)?;
    }
    config.controller.ip = addresses::of_interface(&config.controller.ip);
    let engine_ssh = words.engine_ssh.or(config.controller.engine_ssh.clone());
    let settings = ControllerSettings {
        profile,
        cluster_id: place.cluster_id,
        config: config.controller,
        python: interpreter(args.python.or(config.engine.python).as_deref()),
        ssh: words.ssh.unwrap_or_default(),
        engine_ssh: engine_ssh.unwrap_or_default(),
        reuse: words.reuse,
    };
    context.use_threads();
    context.block_on(controller::run(settings))??;
    Ok(Exit::Fine)
}

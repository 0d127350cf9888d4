//! `pcluster controller`: what launchers start, pcluster's and ipyparallel's.
use super::{Care, setting, supervise, watch_supervisor};
use crate::cli::ipyparallel::Trait;
use crate::cli::ipyparallel::common::{CommonOptions, LauncherEnvironment, Place};
use crate::cli::ipyparallel::controller::ControllerWords;
use crate::cli::{CommandError, Context, Exit, logging};
use crate::connection::addresses;
use crate::controller::{self, ControllerSettings};
use crate::engine::settings::interpreter;
use crate::profile::Config;
use crate::profile::dir::check_cluster_id;
use std::path::PathBuf;

/// Run a controller in the foreground
///
/// Launchers start this; `pcluster start` is what one usually wants. It logs to stderr, and serves until `pcluster stop`,
/// SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The profile's directory, instead of --profile
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,
    /// A setting over those of the profile's pcluster.yaml, for example controller.heartbeat_ms=500
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Start the controller as a process of its own, and again whenever it was killed or has crashed
    #[arg(long)]
    supervise: bool,
    /// How much to log: error, warn, info, debug, trace, or Python's numbers and names of levels
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// The Python interpreter for Dask's scheduler [default: engine.python of the profile, else the active environment's]
    #[arg(long, value_name = "PYTHON")]
    python: Option<String>,
    /// Do not encrypt: for clients and engines of ipyparallel 6 or older, or whose ZeroMQ has no CURVE. Messages are still signed
    #[arg(long)]
    no_curve: bool,
    #[command(flatten)]
    ipcontroller: Ipcontroller,
}

/// The same words as ipcontroller's.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "As ipcontroller has them")]
struct Ipcontroller {
    /// Where to listen: an address of this host, or 0.0.0.0 for all [default: controller.ip of the profile]
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// The name or address at which others are to look for the controller
    #[arg(long, value_name = "HOST")]
    location: Option<String>,
    /// Milliseconds between heartbeats
    #[arg(long, value_name = "MS")]
    ping: Option<String>,
    /// The ports to listen on, 16 of them: 10101-10116
    #[arg(long, value_name = "LIST")]
    ports: Option<String>,
    /// How load-balanced tasks find an engine: leastload, lru, plainrandom, twobin, weighted
    #[arg(long, value_name = "NAME")]
    scheme: Option<String>,
    /// How many load-balanced tasks an engine may hold at a time; 0 means no bound
    #[arg(long, value_name = "N")]
    hwm: Option<String>,
    /// The ssh server through which clients reach the controller
    #[arg(long, value_name = "[USER@]HOST[:PORT]")]
    ssh: Option<String>,
    /// The ssh server through which engines reach the controller
    #[arg(long, value_name = "[USER@]HOST[:PORT]")]
    enginessh: Option<String>,
    /// Keep keys, ports and connection files after the end, and take them up again
    #[arg(long)]
    reuse: bool,
    /// The same as --reuse: a controller that was killed finds its engines again in any case
    #[arg(long)]
    restore: bool,
    /// Has no effect: every task is recorded in the cluster's own database
    #[arg(long)]
    dictdb: bool,
    /// Has no effect: every task is recorded in the cluster's own database
    #[arg(long)]
    sqlitedb: bool,
    /// Has no effect: every task is recorded in the cluster's own database
    #[arg(long)]
    mongodb: bool,
    /// Has no effect: every task is recorded in the cluster's own database
    #[arg(long)]
    nodb: bool,
    /// Has no effect: the controller is one process
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
    /// Each option is a name for a trait.
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

const CARE: Care = Care {
    restart_arguments: &[],
    retries_refusals: true,
    watches_supervisor: true,
};

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    if args.supervise {
        logging::start(context.log_level(args.log_level.as_deref().unwrap_or("info")));
        return supervise(&CARE);
    }
    watch_supervisor(&CARE)?;
    let mut words = ControllerWords::of(&args.ipcontroller.traits()).map_err(CommandError::usage)?;
    words.common.log_level = args.log_level.or(words.common.log_level);
    let place = Place::find(&words.common, args.profile_dir, LauncherEnvironment::of_this_process(), context)?;
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
    if let Some(lease) = words.lease(config.controller.heartbeat_ms) {
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

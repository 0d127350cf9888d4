//! `pcluster controller`: what launchers start.
use super::{setting, supervise};
use crate::cli::{CommandError, Context, Exit, logging};
use crate::connection::addresses;
use crate::controller::{self, ControllerSettings};
use crate::profile::dir::check_cluster_id;
use crate::profile::{Config, ProfileDir};
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
    /// How much to log: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    logging::start(context.log_level(&args.log_level));
    if args.supervise {
        return supervise(&[], true);
    }
    check_cluster_id(&context.cluster_id)?;
    let profile = match &args.profile_dir {
        Some(dir) => ProfileDir::at(dir),
        None => context.profile_dir()?,
    };
    profile.create()?;
    let mut config = Config::load_with(&profile, &args.settings)?;
    config.controller.ip = addresses::of_interface(&config.controller.ip);
    let settings = ControllerSettings {
        profile,
        cluster_id: context.cluster_id.clone(),
        config: config.controller,
    };
    context.block_on(controller::run(settings))??;
    Ok(Exit::Fine)
}

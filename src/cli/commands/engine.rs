//! `pcluster engine`: what launchers start.
use super::{setting, supervise};
use crate::cli::{CommandError, Context, Exit, logging};
use crate::connection::ConnectionFile;
use crate::engine::{self, EngineSettings};
use crate::model::EngineId;
use crate::profile::{Config, ProfileDir};
use std::path::PathBuf;

/// Run an engine in the foreground
///
/// Launchers start this; `pcluster start -n 4` is what one usually wants. It logs to stderr, and works until its controller
/// ends it, SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The engine's connection file [default: the one of the profile]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The profile's directory, instead of --profile
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,
    /// The Python interpreter for the worker [default: engine.python of the profile, else the active environment's]
    #[arg(long, value_name = "PYTHON")]
    python: Option<String>,
    /// The id that the engine would like
    #[arg(long, value_name = "N")]
    id: Option<u32>,
    /// A setting over those of the profile's pcluster.yaml, for example engine.interrupt_ms=1000
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Start the engine as a process of its own, and another one whenever it was killed or has crashed
    #[arg(long)]
    supervise: bool,
    /// It takes the place of one that was killed: its controller may be about to come back too
    #[arg(long, hide = true)]
    replacement: bool,
    /// How much to log: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    logging::start(context.log_level(&args.log_level));
    if args.supervise {
        return supervise(&["--replacement"], false);
    }
    let profile = match &args.profile_dir {
        Some(dir) => ProfileDir::at(dir),
        None => context.profile_dir()?,
    };
    let file = args.file.unwrap_or_else(|| profile.engine_file(&context.cluster_id));
    let config = Config::load_with(&profile, &args.settings)?;
    let settings = EngineSettings {
        id: args.id.map(EngineId),
        python: args.python.or(config.engine.python),
        interrupt_ms: config.engine.interrupt_ms,
        terminate_ms: config.engine.terminate_ms,
        registration_timeout_ms: match args.replacement {
            true => config.controller.controller_patience_ms,
            false => config.controller.registration_timeout_ms,
        },
        cwd: config.engine.cwd.map(|dir| dir.to_string_lossy().into_owned()),
        env: config.engine.env,
        ..EngineSettings::new(ConnectionFile::read(&file)?)
    };
    context.block_on_one_thread(engine::run(settings))??;
    Ok(Exit::Fine)
}

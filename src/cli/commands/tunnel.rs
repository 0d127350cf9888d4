//! `pcluster tunnel`: what `connect` starts.
use super::{Care, supervise};
use crate::cli::{CommandError, Context, Exit, logging};
use crate::cluster::remote;
use crate::launchers;
use crate::profile::ProfileDir;
use crate::ssh::tunnel::{Direction, TunnelState};
use std::path::PathBuf;

/// Keep a tunnel to another host, in the foreground
///
/// `pcluster connect` starts this. It logs to stderr, and serves until `pcluster disconnect`, SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The profile's directory, instead of --profile
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,
    /// Its state file, written by the command that starts it
    #[arg(long, value_name = "FILE", hide = true)]
    state: Option<PathBuf>,
    /// Run as a process of its own session, and again whenever it was killed or has crashed
    #[arg(long)]
    supervise: bool,
    /// Somebody waits for the first connection: end where it does not come about
    #[arg(long)]
    first: bool,
    /// It has been connected before
    #[arg(long)]
    again: bool,
    /// How much to log: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    logging::start(context.log_level(&args.log_level));
    if args.supervise {
        // Fails where it leads a session already: then there is nothing to be done.
        let _ = nix::unistd::setsid();
        return supervise(&Care {
            restart_arguments: &["--again"],
            retries_refusals: true,
            watches_supervisor: false,
        });
    }
    let (file, state) = match args.state {
        // Ended before it has begun: the file is gone.
        Some(file) => match TunnelState::read(&file)? {
            Some(state) => (file, state),
            None => return Ok(Exit::Fine),
        },
        None => {
            let profile = match &args.profile_dir {
                Some(dir) => ProfileDir::at(dir),
                None => context.profile_dir()?,
            };
            let file = profile.tunnel_file(&context.cluster_id);
            let state = TunnelState::read(&file)?;
            (file, state.ok_or_else(|| remote::not_connected(&profile, &context.cluster_id))?)
        }
    };
    let first = args.first && !args.again;
    match state.direction {
        Direction::Forward => context.block_on(remote::serve(&file, state, first))??,
        Direction::Reverse => context.block_on(launchers::ssh::tunnel::serve(&file, state, first))??,
    }
    Ok(Exit::Fine)
}

//! `pcluster tunnel`: started by `connect`.
use super::{SupervisionPolicy, supervise};
use crate::cli::{CommandError, Context, Exit, logging};
use crate::cluster::remote;
use crate::launchers;
use crate::profile::ProfileDir;
use crate::ssh::tunnel::{Direction, TunnelState};
use std::path::PathBuf;

/// Keep a tunnel to a remote host open, in the foreground
///
/// `pcluster connect` starts this. Logs to stderr, and serves until `pcluster disconnect`, SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Use this profile directory, instead of --profile
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,
    /// Its state file, written by the command that starts it
    #[arg(long, value_name = "FILE", hide = true)]
    state: Option<PathBuf>,
    /// Run as a child process in its own session, and restart it when it is killed or crashes
    #[arg(long)]
    supervise: bool,
    /// Exit if the first connection fails
    #[arg(long)]
    first: bool,
    /// Continue an earlier connection
    #[arg(long)]
    again: bool,
    /// Set the log level: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    logging::start(context.log_level(&args.log_level));
    if args.supervise {
        // Fails if it is already a session leader, which is fine.
        let _ = nix::unistd::setsid();
        let policy = SupervisionPolicy {
            again: &["--again"],
            retries: true,
            watches: false,
        };
        return supervise(&policy, None);
    }
    let (file, state) = match args.state {
        // Stopped before it started: the file was removed.
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

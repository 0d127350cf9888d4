//! `pcluster walltime-monitor`: started by `start` for clusters whose engines may be restarted, or whose work decides how many there
//! are.
use super::{SupervisionPolicy, supervise, watch_supervisor};
use crate::cli::{CommandError, Context, Exit, logging};
use crate::cluster::walltime_restart;
use crate::profile::ProfileDir;
use std::path::PathBuf;

/// Restart engines after walltime, and start and retire engines as the work needs, in the foreground
///
/// `pcluster start` starts this with --max or --max-walltime-restarts. Logs to stderr, and exits with the cluster, or on SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Use this profile directory, instead of --profile
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,
    /// Run as a child process, and restart it when it is killed or crashes
    #[arg(long)]
    supervise: bool,
    /// Set the log level: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

const POLICY: SupervisionPolicy = SupervisionPolicy {
    again: &[],
    retries: true,
    watches: true,
};

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    logging::start(context.log_level(&args.log_level));
    if args.supervise {
        return supervise(&POLICY, None);
    }
    watch_supervisor(&POLICY)?;
    let profile = match &args.profile_dir {
        Some(dir) => ProfileDir::at(dir),
        None => context.profile_dir()?,
    };
    context.block_on_one_thread(walltime_restart::serve(profile, &context.cluster_id))??;
    Ok(Exit::Fine)
}

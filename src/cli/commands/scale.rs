//! `pcluster scale`
use super::engines::{options, report_removed};
use super::start::{EngineArgs, StartProgressBar};
use crate::cli::interruptible::interruptible;
use crate::cli::output::counted;
use crate::cli::output::json;
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::{self, Scaled};

/// Scale a running cluster to N engines
///
/// Engines waiting in a batch system's queue count as well. Removes engines that have not started first, then idle ones; a busy
/// engine finishes its task first. Starts new engines in the same way as the existing ones, unless options say otherwise.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster scale 20\n  pcluster scale 0\n  pcluster scale 64 --launcher slurm --walltime 1h")]
pub(crate) struct Args {
    /// Target number of engines
    n: u32,
    #[command(flatten)]
    how: EngineArgs,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let options = options(args.n, args.how, context)?;
    let mut bar = StartProgressBar::new(context);
    let scaled = interruptible(context, cluster::scale(options, &mut |progress| bar.show(progress)))?;
    bar.clear();
    match scaled {
        Scaled::Removed(removed) => return report_removed(&removed, context),
        _ if context.json => {
            let (added, total) = match scaled {
                Scaled::Added { n, total } => (n, total),
                _ => (0, args.n),
            };
            json::print(&serde_json::json!({"added": added, "engines": total}))?;
        }
        Scaled::Added { n, total } => context.note(format!("{} added, {total} in total", counted(u64::from(n), "engine"))),
        Scaled::Unchanged { n } => context.note(format!("already {}", counted(u64::from(n), "engine"))),
    }
    Ok(Exit::Fine)
}

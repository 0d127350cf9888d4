//! `pcluster scale`
use super::counted;
use super::engines::{options, report_removed};
use super::start::{Bar, How, interruptible};
use crate::cli::output::json;
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::{self, Scaled};

/// Bring a running cluster to so many engines: start more, or take some away
///
/// Engines that wait in a batch system's queue count too. Those go first that have not begun, then idle ones; one that runs a task
/// finishes it before it goes. New ones are started as the others were, unless options say otherwise.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many there are to be
    n: u32,
    #[command(flatten)]
    how: How,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let options = options(args.n, args.how, context)?;
    let mut bar = Bar::new(context);
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
        Scaled::Added { n, total } => context.say(format!("{} added; there are {total}", counted(u64::from(n), "engine"))),
        Scaled::Unchanged { n } => context.say(format!("there are {} already", counted(u64::from(n), "engine"))),
    }
    Ok(Exit::Fine)
}

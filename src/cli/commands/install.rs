//! `pcluster install`
use super::start::interruptible;
use crate::cli::output::json;
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::ClusterError;
use crate::cluster::remote::{install, run};
use crate::model::VERSION;

/// Copy this pcluster to another host
///
/// To ~/.local/bin there, unless this very program is there already (by its hash). It is tried before it takes its place,
/// and refused for a machine of another kind.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where ssh goes: [user@]host, or a Host of ~/.ssh/config
    destination: String,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let work = async {
        let (ssh, host) = run::reach(&args.destination).await?;
        let installed = install::copy(&ssh, &host).await;
        ssh.close().await;
        Ok::<_, ClusterError>((host, installed?))
    };
    let (host, installed) = interruptible(context, work).map_err(|e| e.instead_of_started("nothing was installed"))?;
    if context.json {
        json::print(&serde_json::json!({
            "host": host.name, "path": installed.path, "copied": installed.copied, "pcluster": VERSION, "before": installed.before,
        }))?;
        return Ok(Exit::Fine);
    }
    context.say(match installed.copied {
        true => format!("pcluster {VERSION} is now {} on {}", installed.path, host.name),
        false => format!("{} on {} is this very pcluster {VERSION} already", installed.path, host.name),
    });
    Ok(Exit::Fine)
}

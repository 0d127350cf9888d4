//! `pcluster install`
use crate::cli::interruptible::interruptible;
use crate::cli::output::json;
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::ClusterError;
use crate::cluster::remote::{install, run};
use crate::model::VERSION;

/// Copy this pcluster to a remote host
///
/// Installs to ~/.local/bin on the host, unless the same build (by hash) is already installed. Tests the copy before it replaces
/// an older one, and refuses a host of another architecture.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster install login.example.org\n  pcluster install me@login.example.org --json")]
pub(crate) struct Args {
    /// Install on this host: [user@]host, or a Host of ~/.ssh/config
    destination: String,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let work = async {
        let (ssh, host) = run::reach(&args.destination).await?;
        let installed = install::copy(&ssh, &host).await;
        ssh.close().await;
        Ok::<_, ClusterError>((host, installed?))
    };
    let (host, installed) = interruptible(context, work).map_err(|e| e.with_interruption("nothing was installed"))?;
    if context.json {
        json::print(&serde_json::json!({
            "host": host.name, "path": installed.path, "copied": installed.copied, "pcluster": VERSION, "previous": installed.before,
        }))?;
        return Ok(Exit::Fine);
    }
    context.note(match installed.copied {
        true => format!("pcluster {VERSION} installed: {} on {}", installed.path, host.name),
        false => format!("pcluster {VERSION} is already installed: {} on {}", installed.path, host.name),
    });
    Ok(Exit::Fine)
}

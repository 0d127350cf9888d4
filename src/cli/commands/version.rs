//! `pcluster version`
use crate::cli::{CommandError, Context, Exit, output};
use crate::model::{PROTOCOL_VERSION, VERSION};

/// Print the version
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster version\n  pcluster version --json")]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args, context: &Context) -> Result<Exit, CommandError> {
    if context.json {
        output::print(&format!(
            "{}\n",
            serde_json::json!({"version": 1, "pcluster": VERSION, "protocol": PROTOCOL_VERSION})
        ))?;
    } else {
        output::print(&format!("pcluster {VERSION}\n"))?;
    }
    Ok(Exit::Fine)
}

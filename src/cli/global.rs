//! The global options.
use clap::ValueEnum;
use std::path::PathBuf;

/// Options of every command, accepted before or after its name.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Use this profile, a directory `profile_<NAME>` in the IPython directory [default: default]
    #[arg(long, global = true, value_name = "NAME", env = "PCLUSTER_PROFILE", hide_env_values = true)]
    pub profile: Option<String>,
    /// Use this cluster, if the profile has several
    #[arg(long, global = true, value_name = "ID", default_value = "", hide_default_value = true)]
    pub cluster_id: String,
    /// Look for profiles in this directory [default: ~/.ipython]
    #[arg(long, global = true, value_name = "DIR", env = "IPYTHONDIR", hide_env_values = true)]
    pub ipython_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Increase verbosity (-vv for more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Suppress progress and status output
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Use colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_default_value = true)]
    pub color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

//! What can be typed: the global options, and the commands in the groups and the order that `--help` shows.
use super::commands::Command;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// IPython-parallel clusters from one binary
#[derive(Debug, Parser)]
#[command(name = "pcluster", version, disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes, before or after its name.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The profile: a directory `profile_<NAME>` in the IPython directory [default: default]
    #[arg(long, global = true, value_name = "NAME", env = "PCLUSTER_PROFILE", hide_env_values = true)]
    pub profile: Option<String>,
    /// One of several clusters in the profile
    #[arg(long, global = true, value_name = "ID", default_value = "", hide_default_value = true)]
    pub cluster_id: String,
    /// Where the profiles are [default: ~/.ipython]
    #[arg(long, global = true, value_name = "DIR", env = "IPYTHONDIR", hide_env_values = true)]
    pub ipython_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more (-vv: still more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing but results and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_default_value = true)]
    pub color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

/// The commands by what one does with them. `tests` hold that each visible command stands here once.
pub const GROUPS: &[(&str, &[&str])] = &[
    (
        "Clusters",
        &["start", "stop", "restart", "list", "clean", "status", "engines", "logs"],
    ),
    ("Work", &["map", "apply", "exec", "run", "push", "pull", "scatter", "gather"]),
    ("Results", &["results", "resubmit", "cancel", "wait", "purge"]),
    ("Setup", &["doctor", "profile", "completions", "version"]),
];

const TEMPLATE: &str = "{about}\n\n{usage-heading} {usage}\n{after-help}\n{options}";

/// The whole command line as clap knows it, its commands listed by group.
pub fn app() -> clap::Command {
    let app = Cli::command();
    let mut list = String::new();
    for (heading, names) in GROUPS {
        list.push_str(&format!("\n{heading}:\n"));
        for name in *names {
            let about = app
                .find_subcommand(name)
                .and_then(|c| c.get_about())
                .map(|a| a.to_string())
                .unwrap_or_default();
            list.push_str(&format!("  {name:<12} {about}\n"));
        }
    }
    list.push_str("\n`pcluster <COMMAND> --help` says more about one command.\n");
    app.help_template(TEMPLATE).after_help(list)
}

pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = app().try_get_matches_from(arguments)?;
    Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut app()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        app().debug_assert();
    }

    #[test]
    fn each_visible_command_stands_in_one_group() {
        let mut grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let app = app();
        let mut visible: Vec<_> = app.get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name()).collect();
        assert_eq!(visible, grouped, "the order of the enum is the order of the groups");
        grouped.sort_unstable();
        visible.sort_unstable();
        visible.dedup();
        assert_eq!(visible, grouped);
    }

    #[test]
    fn global_options_may_stand_on_either_side() {
        for line in ["pcluster --profile p --json list", "pcluster list --profile p --json"] {
            let cli = parse(line.split(' ').map(OsString::from)).unwrap();
            assert_eq!((cli.global.profile.as_deref(), cli.global.json), (Some("p"), true));
        }
    }
}

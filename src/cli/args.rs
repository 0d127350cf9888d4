//! What can be typed: the global options, and the commands in the groups and the order that `--help` shows.
use super::commands::Command;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// IPython-parallel clusters from one binary
#[derive(Debug, Parser)]
#[command(name = "pcluster", version, arg_required_else_help = true, max_term_width = 100)]
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
        &[
            "start", "stop", "restart", "list", "clean", "status", "engines", "scale", "logs", "script",
        ],
    ),
    ("Elsewhere", &["connect", "disconnect", "connection", "install"]),
    (
        "Work",
        &["map", "apply", "exec", "run", "push", "pull", "scatter", "gather", "signal"],
    ),
    ("Results", &["results", "resubmit", "cancel", "wait", "purge"]),
    ("Setup", &["doctor", "profile", "template", "completions", "version"]),
];

/// No help is wider.
const MOST_COLUMNS: u16 = 100;
const TEMPLATE: &str = "{about}\n\n{usage-heading} {usage}{after-help}\n\nGlobal options:\n{options}";

/// The whole command line as clap knows it, its commands listed by group.
pub fn app() -> clap::Command {
    app_at(usize::from(
        super::output::terminal_width().unwrap_or(MOST_COLUMNS).min(MOST_COLUMNS),
    ))
}

/// For a terminal of so many columns.
fn app_at(columns: usize) -> clap::Command {
    let app = Cli::command();
    let mut list = String::new();
    for (heading, names) in GROUPS {
        list.push_str(&format!("\n{heading}:\n"));
        for name in *names {
            let about = app.find_subcommand(name).and_then(|c| c.get_about());
            let about = about.map(|a| a.to_string()).unwrap_or_default();
            let lines = wrap(&about, columns.saturating_sub(15));
            list.push_str(&format!("  {name:<12} {}\n", lines.join(&format!("\n{:15}", ""))));
        }
    }
    list.push_str("\n`pcluster <COMMAND> --help` says more about one command.");
    app.help_template(TEMPLATE).after_help(list.trim_start().to_string())
}

/// Lines of whole words, no longer than `columns` where the words allow.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// Whether this option of `pcluster controller` or `pcluster engine` takes no value.
fn is_flag(app: &clap::Command, option: &str) -> bool {
    let is_spelled = |argument: &clap::Arg| {
        let longs = argument
            .get_long()
            .into_iter()
            .chain(argument.get_all_aliases().unwrap_or_default());
        let short = argument.get_short().map(|short| format!("-{short}"));
        option
            .strip_prefix("--")
            .is_some_and(|name| longs.into_iter().any(|long| long == name))
            || short.as_deref() == Some(option)
    };
    let commands = ["controller", "engine"].iter().filter_map(|name| app.find_subcommand(name));
    let mut arguments = app.get_arguments().chain(commands.flat_map(clap::Command::get_arguments));
    arguments.any(|argument| !argument.get_action().takes_values() && is_spelled(argument))
}

pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let command_line = app();
    let words = super::ipyparallel::traits_as_options(arguments, |option| is_flag(&command_line, option));
    let matches = command_line.try_get_matches_from(words)?;
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
    fn the_whole_help() {
        insta::assert_snapshot!(app_at(80).term_width(80).render_help(), @r"
        IPython-parallel clusters from one binary

        Usage: pcluster [OPTIONS] <COMMAND>

        Clusters:
          start        Start a controller and engines
          stop         Stop a cluster: its engines, then its controller
          restart      Stop a cluster, if it runs, and start it again
          list         List all clusters of all profiles
          clean        Clear away what dead clusters have left
          status       Show how a cluster is doing: controller, engines, queue
          engines      List a cluster's engines, add some, stop some
          scale        Bring a running cluster to so many engines: start more, or take
                       some away
          logs         Show what the controller and the engines logged
          script       Show the script that a start would submit to a batch system, and
                       submit nothing

        Elsewhere:
          connect      Connect to a cluster on another host, through ssh
          disconnect   End the tunnel to another host; the cluster there runs on
          connection   Carry connection files by hand: show, export, import
          install      Copy this pcluster to another host

        Work:
          map          Run a Python function or a command on every input
          apply        Call a Python function once on each engine
          exec         Run Python code in each engine's namespace
          run          Run a Python script in each engine's namespace
          push         Set names in each engine's namespace
          pull         Show names of each engine's namespace
          scatter      Cut a list into even parts, one for each engine, under one name
          gather       Put the lists that engines have under one name together, in the
                       engines' order, and print them as one JSON list
          signal       Send a signal to what the engines run at this moment

        Results:
          results      List maps, their tasks, or all that is known of a task
          resubmit     Run finished tasks again, in place
          cancel       Stop tasks, waiting or running
          wait         Wait until maps are finished
          purge        Forget finished maps, with all their results

        Setup:
          doctor       Look whether clusters can work here, and say what to do where not
          profile      Create, list and show profiles
          template     List, show and copy the templates of batch scripts
          completions  Print a completion script for a shell
          version      Print the version

        `pcluster <COMMAND> --help` says more about one command.

        Global options:
              --profile <NAME>     The profile: a directory `profile_<NAME>` in the
                                   IPython directory [default: default] [env:
                                   PCLUSTER_PROFILE]
              --cluster-id <ID>    One of several clusters in the profile
              --ipython-dir <DIR>  Where the profiles are [default: ~/.ipython] [env:
                                   IPYTHONDIR]
              --json               Print JSON
          -v, --verbose...         Say more (-vv: still more)
          -q, --quiet              Say nothing but results and errors
              --color <WHEN>       Colours [possible values: auto, always, never]
          -h, --help               Print help (see more with '--help')
          -V, --version            Print version
        ");
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

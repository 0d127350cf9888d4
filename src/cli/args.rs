//! The command line: the commands in the groups and order of `--help`.
use super::commands::Command;
use super::global::Global;
use super::output::wrap;
use clap::{CommandFactory, FromArgMatches, Parser};
use std::ffi::OsString;

/// Run Python functions and commands in parallel: locally, over ssh, or on a batch system
#[derive(Debug, Parser)]
#[command(name = "pcluster", version, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands by purpose. A test checks that each visible command is listed exactly once.
pub(crate) const GROUPS: &[(&str, &[&str])] = &[
    (
        "Clusters",
        &[
            "start", "stop", "restart", "list", "clean", "status", "engines", "scale", "elastic", "logs", "script",
        ],
    ),
    ("Remote", &["connect", "disconnect", "connection", "install"]),
    (
        "Work",
        &["map", "apply", "exec", "run", "push", "pull", "scatter", "gather", "signal"],
    ),
    (
        "Results",
        &["results", "explain", "resubmit", "cancel", "priority", "wait", "purge"],
    ),
    ("Setup", &["doctor", "profile", "template", "completions", "version"]),
];

/// The maximum width of help texts.
const MAX_COLUMNS: u16 = 100;
const TEMPLATE: &str = "{about}\n\n{usage-heading} {usage}{after-help}\n\nGlobal options:\n{options}";

/// The complete clap command, with its subcommands listed by group.
pub(crate) fn app() -> clap::Command {
    app_at(usize::from(super::output::terminal_width().unwrap_or(MAX_COLUMNS).min(MAX_COLUMNS)))
}

/// The same, for a terminal of this width.
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
    list.push_str("\nRun `pcluster <COMMAND> --help` for details and examples.");
    app.help_template(TEMPLATE).after_help(list.trim_start().to_string())
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

pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
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
    fn help_text_of_all_commands() {
        insta::assert_snapshot!(app_at(80).term_width(80).render_help(), @r"
        Run Python functions and commands in parallel: locally, over ssh, or on a batch
        system

        Usage: pcluster [OPTIONS] <COMMAND>

        Clusters:
          start        Start a controller and engines
          stop         Stop a cluster: its engines, then its controller
          restart      Stop a cluster if it is running, then start it again
          list         List all clusters of all profiles
          clean        Remove files left by dead clusters
          status       Show the state of a cluster: controller, engines, queue
          engines      List, add, remove or stop engines of a cluster
          scale        Scale a running cluster to N engines
          elastic      Show and change how the work decides how many engines there are
          logs         Show the logs of the controller and engines
          script       Print the script that `start` would submit to a batch system

        Remote:
          connect      Connect to a cluster on a remote host through ssh
          disconnect   Close the tunnel to a remote cluster, which keeps running
          connection   Show, export or import connection files
          install      Copy this pcluster to a remote host

        Work:
          map          Run a Python function or a command on every input
          apply        Call a Python function once on each engine
          exec         Run Python code in each engine's namespace
          run          Run a Python script in each engine's namespace
          push         Set variables in each engine's namespace
          pull         Print variables of each engine's namespace
          scatter      Partition a list across the engines
          gather       Concatenate a list variable from all engines
          signal       Send a signal to the running task of each engine

        Results:
          results      List maps, their tasks, or the details of a task
          explain      Explain why a task, map, engine or job is in its state
          resubmit     Run finished tasks again
          cancel       Cancel waiting and running tasks
          priority     Change the priority of a map
          wait         Wait until maps have finished
          purge        Delete finished maps and their results

        Setup:
          doctor       Check this machine and suggest fixes
          profile      Create, list and show profiles
          template     List, show and copy batch script templates
          completions  Print a shell completion script
          version      Print the version

        Run `pcluster <COMMAND> --help` for details and examples.

        Global options:
              --profile <NAME>     Use this profile, a directory `profile_<NAME>` in the
                                   IPython directory [default: default] [env:
                                   PCLUSTER_PROFILE]
              --cluster-id <ID>    Use this cluster, if the profile has several
              --ipython-dir <DIR>  Look for profiles in this directory [default:
                                   ~/.ipython] [env: IPYTHONDIR]
              --json               Print JSON
          -v, --verbose...         Increase verbosity (-vv for more)
          -q, --quiet              Suppress progress and status output
              --color <WHEN>       Use colours [possible values: auto, always, never]
          -h, --help               Print help (see more with '--help')
          -V, --version            Print version
        ");
    }

    #[test]
    fn each_visible_command_is_in_one_group() {
        let mut grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let app = app();
        let mut visible: Vec<_> = app.get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name()).collect();
        assert_eq!(visible, grouped, "the order of the enum is the order of the groups");
        grouped.sort_unstable();
        visible.sort_unstable();
        visible.dedup();
        assert_eq!(visible, grouped);
    }

    /// Every `pcluster …` in the examples of a command, as words.
    fn examples(command: &clap::Command) -> Vec<Vec<String>> {
        let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let example = |line: &str| -> Option<Vec<String>> {
            let words = shlex::split(&line[line.find("pcluster ")?..]).unwrap_or_else(|| panic!("unbalanced quotes: {line}"));
            Some(words.into_iter().take_while(|word| word != ">" && word != "<").collect())
        };
        text.lines().filter_map(example).collect()
    }

    #[test]
    fn every_command_has_examples_that_are_accepted() {
        let app = app();
        let daemons = ["controller", "engine"];
        for name in GROUPS.iter().flat_map(|(_, names)| names.iter()).chain(&daemons) {
            let examples = examples(app.find_subcommand(name).unwrap());
            assert!((2..=3).contains(&examples.len()), "{name}: {examples:?}");
            for words in examples {
                let parsed = parse(words.iter().map(OsString::from));
                assert!(parsed.is_ok(), "{words:?}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn global_options_are_accepted_on_either_side() {
        for line in ["pcluster --profile p --json list", "pcluster list --profile p --json"] {
            let cli = parse(line.split(' ').map(OsString::from)).unwrap();
            assert_eq!((cli.global.profile.as_deref(), cli.global.json), (Some("p"), true));
        }
    }
}

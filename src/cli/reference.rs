//! `docs/reference/cli.md`, out of what clap knows. A test holds the file to it; `UPDATE=1 cargo test cli_reference` rewrites it.
use super::args::{self, GROUPS};
use clap::{Arg, Command};

const INTRODUCTION: &str = "\
# Command line

<!-- Written by `UPDATE=1 cargo test cli_reference`; held to the code by the same test. -->

Data goes to stdout, messages go to stderr. Tables are cut to the width of a terminal; in a pipe they are complete.
Colours appear only on a terminal, and not if `NO_COLOR` is set. `--json` prints one document with a `version`, which
changes only when a key changes its meaning or is removed.

## JSON

`results --json` prints `{\"version\": 1, \"maps\": [...]}` or `{\"version\": 1, \"tasks\": [...]}`, `--jsonl` the same
objects, one a line. Times are ISO 8601 in UTC, durations are seconds.

**A map** has `map kind name label state submitted completed duration tasks done ok failed pending running assigned error
aborted timeout lost`. Its `state` is `open` (more inputs may come), `queued`, `running`, `ok` or `failed`.

**A task** has `task map index state input value stdout stderr exit_code error engine host attempts submitted started
completed duration label`, and if applicable:

- `exact`, `type`, `pickled`: JSON cannot hold the value. `exact` is false, `type` is its Python type, `value` is a
  rendering, and `pickled` is the value itself, a pickle in base64.
- `msg_id`, `repr`: of a request of an ipyparallel client.
- `definition`, `earlier`: what the task runs, and its superseded attempts, if single tasks are requested.
- `stdout_base64`, `stderr_base64`: output that is not UTF-8; then `stdout` or `stderr` is null.
- `stdout_size`, `stderr_size`: the size of an output above 256 KiB, of which `results` shows the beginning.
  `results TASK --stdout` writes all of it, and `map` writes complete outputs in every format.

`error` has `ename evalue traceback`.

## Exit codes

| code | meaning |
|---|---|
| 0 | success |
| 1 | some tasks failed, or a wait timed out |
| 2 | invalid arguments or input |
| 3 | no cluster is running, or there is no such map, task or engine |
| 4 | the controller cannot be reached, or rejected the request |
| 5 | the environment: Python, ports, files, permissions |
| 70 | a bug in pcluster |
| 75 | `pcluster controller` only: it cannot start now (full disk, port in use); its supervisor retries |
| 130 | interrupted (Ctrl-C) |
| 141 | stdout was closed by its reader |

";

/// The whole file.
pub fn markdown() -> String {
    let mut app = args::app();
    app.build();
    let mut text = INTRODUCTION.to_string();
    text.push_str("## Commands\n\n");
    for (heading, names) in GROUPS {
        text.push_str(&format!("**{heading}:** "));
        let links: Vec<_> = names.iter().map(|name| format!("[`{name}`](#pcluster-{name})")).collect();
        text.push_str(&format!("{}\n\n", links.join(" ")));
    }
    text.push_str("**Daemons** (what launchers start): [`controller`](#pcluster-controller) [`engine`](#pcluster-engine)\n\n");
    text.push_str("## Global options\n\nEvery command takes these, before or after its name.\n\n");
    options(&mut text, app.get_arguments().filter(|a| a.is_global_set()));
    let daemons = ["controller", "engine"];
    for name in GROUPS.iter().flat_map(|(_, names)| names.iter()).chain(&daemons) {
        if let Some(command) = app.find_subcommand(name) {
            section(&mut text, command, "##", &format!("pcluster {name}"));
        }
    }
    // Exactly one newline at the end.
    format!("{}\n", text.trim_end())
}

fn section(text: &mut String, command: &Command, level: &str, path: &str) {
    text.push_str(&format!("{level} {path}\n\n"));
    let about = command.get_long_about().or(command.get_about());
    if let Some(about) = about {
        text.push_str(&format!("{}\n\n", about.to_string().trim()));
    }
    let usage = command.clone().render_usage().to_string();
    text.push_str(&format!("```text\n{}\n```\n\n", usage.trim_start_matches("Usage: ")));
    options(text, command.get_positionals().filter(|argument| !argument.is_hide_set()));
    let own = |arg: &&Arg| {
        !arg.is_global_set() && !arg.is_positional() && !matches!(arg.get_id().as_str(), "help" | "version") && !arg.is_hide_set()
    };
    options(text, command.get_arguments().filter(own));
    for child in command.get_subcommands().filter(|c| c.get_name() != "help" && !c.is_hide_set()) {
        section(text, child, &format!("{level}#"), &format!("{path} {}", child.get_name()));
    }
}

fn options<'a>(text: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let mut any = false;
    for argument in arguments {
        any = true;
        text.push_str(&format!("- `{}`", spelling(argument)));
        let help = argument
            .get_long_help()
            .or(argument.get_help())
            .map(|h| h.to_string())
            .unwrap_or_default();
        let mut notes = Vec::new();
        let defaults: Vec<_> = argument.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
        if !argument.is_hide_default_value_set() && !defaults.is_empty() && argument.get_action().takes_values() {
            notes.push(format!("default: `{}`", defaults.join(" ")));
        }
        if let Some(variable) = argument.get_env() {
            notes.push(format!("environment: `{}`", variable.to_string_lossy()));
        }
        let values: Vec<_> = argument
            .get_possible_values()
            .iter()
            .filter(|v| !v.is_hide_set())
            .map(|v| format!("`{}`", v.get_name()))
            .collect();
        if argument.get_action().takes_values() && !values.is_empty() {
            notes.push(format!("one of {}", values.join(" ")));
        }
        if !help.is_empty() {
            text.push_str(&format!(": {}", help.trim().replace("\n\n", "\n\n  ")));
        }
        if !notes.is_empty() {
            text.push_str(&format!(" ({})", notes.join("; ")));
        }
        text.push('\n');
    }
    if any {
        text.push('\n');
    }
}

/// `-n, --lines <N>`, `[IDS]...`
fn spelling(argument: &Arg) -> String {
    let takes = argument.get_action().takes_values();
    let names = argument.get_value_names().unwrap_or_default();
    let values: Vec<_> = names.iter().map(|name| format!("<{name}>")).collect();
    if argument.is_positional() {
        return argument.to_string();
    }
    let mut spelled = Vec::new();
    if let Some(short) = argument.get_short() {
        spelled.push(format!("-{short}"));
    }
    if let Some(long) = argument.get_long() {
        spelled.push(format!("--{long}"));
    }
    let spelled = spelled.join(", ");
    if takes {
        format!("{spelled} {}", values.join(" "))
    } else {
        spelled
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn cli_reference_is_what_the_code_says() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/cli.md");
        let now = super::markdown();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &now).unwrap();
        }
        let file = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            file == now,
            "docs/reference/cli.md is not what the code says: UPDATE=1 cargo test cli_reference"
        );
    }
}

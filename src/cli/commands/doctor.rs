//! `pcluster doctor`
use crate::cli::doctor::{Check, Verdict, examine};
use crate::cli::output::visible::visible;
use crate::cli::output::{self, json};
use crate::cli::{CommandError, Context, Exit};

/// Check this machine and suggest fixes
///
/// Each line is `ok`, `warn` (works with limits, or needed only for some features) or `fail`. Exits with 5 if any check fails.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster doctor\n  pcluster doctor --python ~/venv/bin/python")]
pub(crate) struct Args {
    /// Check this Python interpreter [default: engine.python of the profile, else the active environment's]
    #[arg(long, value_name = "PYTHON")]
    python: Option<String>,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let profile = context.profile_dir()?;
    let checks = examine(context, &profile, args.python.as_deref());
    let fit = checks.iter().all(|check| check.verdict != Verdict::Fail);
    match context.json {
        true => json::print(&serde_json::json!({"fit": fit, "checks": checks}))?,
        false => output::print(&text(&checks, context.terminal.color))?,
    }
    Ok(if fit { Exit::Fine } else { Exit::Unfit })
}

fn text(checks: &[Check], color: bool) -> String {
    let mut text = String::new();
    for check in checks {
        let (word, tone) = match check.verdict {
            Verdict::Ok => ("ok", "\x1b[32m"),
            Verdict::Warn => ("warn", "\x1b[33m"),
            Verdict::Fail => ("fail", "\x1b[1;31m"),
        };
        let (on, off) = if color { (tone, "\x1b[0m") } else { ("", "") };
        // What was found may have lines of its own: a settings file's line with a mark below it.
        let found = visible(&check.found).replace('\n', "\n                   ");
        text.push_str(&format!("{on}{word:<5}{off} {:<12} {found}\n", check.name));
        if let Some(advice) = &check.advice {
            text.push_str(&format!("{:19}-> {}\n", "", visible(advice)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_shown_with_advice() {
        let check = |name, verdict, found: &str, advice: Option<&str>| Check {
            name,
            verdict,
            found: found.into(),
            advice: advice.map(str::to_string),
        };
        let checks = [
            check("python", Verdict::Ok, "3.11.7 at /usr/bin/python3", None),
            check(
                "file system",
                Verdict::Warn,
                "NFS at /home",
                Some("put profiles on a local disk with IPYTHONDIR"),
            ),
            check(
                "settings",
                Verdict::Fail,
                "pcluster.yaml:2:3: unknown key\n  2 | hwmm: 3",
                Some("did you mean `hwm`?"),
            ),
        ];
        insta::assert_snapshot!(text(&checks, false), @r"
        ok    python       3.11.7 at /usr/bin/python3
        warn  file system  NFS at /home
                           -> put profiles on a local disk with IPYTHONDIR
        fail  settings     pcluster.yaml:2:3: unknown key
                             2 | hwmm: 3
                           -> did you mean `hwm`?
        ");
    }
}

//! `pcluster logs`
use crate::cli::output;
use crate::cli::output::visible::visible;
use crate::cli::{CommandError, Context, Exit};
use crate::cluster;
use crate::model::targets::Targets;
use crate::profile::ProfileDir;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The poll interval of `--follow`.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How many bytes at the end of a file are searched for lines.
const TAIL: u64 = 4 * 1024 * 1024;

/// Show the logs of the controller and engines
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster logs --follow\n  pcluster logs engine 0,2-3 -n 200\n  pcluster logs all")]
pub(crate) struct Args {
    /// Show the log of `controller`, `engine` (optionally with numbers, `0,2-3`) or `all`
    #[arg(value_enum, default_value = "controller")]
    of: Of,
    /// Select engine processes by the number in the name of their log
    engines: Option<Targets>,
    /// Follow the logs, like tail -f
    #[arg(short, long)]
    follow: bool,
    /// Show the last N lines of each log
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    lines: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Of {
    Controller,
    #[value(alias = "engines")]
    Engine,
    All,
}

impl Args {
    /// Whether the log of the engine process with this number is wanted.
    fn wants(&self, number: u32) -> bool {
        match &self.engines {
            Some(Targets::Some(ids)) => ids.iter().any(|id| id.0 == number),
            _ => true,
        }
    }
}

struct Log {
    /// `controller`, `engine 3`
    name: String,
    path: PathBuf,
    /// Number of bytes shown so far.
    shown: u64,
    /// An incomplete last line.
    rest: Vec<u8>,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let profile = context.profile_dir()?;
    let mut logs = find(&profile, &context.cluster_id, &args)?;
    let remote = match args.of {
        Of::Controller => Vec::new(),
        _ => cluster::logs::remote(&profile, &context.cluster_id, |number| args.wants(number), args.lines),
    };
    if logs.is_empty() && remote.is_empty() {
        return Err(
            CommandError::not_found(format!("no such logs in {}", profile.log_dir().display())).hint(format!(
                "logs are written once the cluster is started: pcluster start{} -n 4",
                context.options()
            )),
        );
    }
    let several = logs.len() + remote.len() > 1;
    for log in &mut logs {
        let lines = last_lines(log, args.lines).map_err(|e| unreadable(&log.path, &e))?;
        show(&log.name, &lines, several)?;
    }
    if args.follow && !remote.is_empty() {
        context.note("logs on hosts that do not share the profile are shown, but not followed");
    }
    let mut problems = Vec::new();
    for (number, text) in &remote {
        match text {
            Ok(text) => show(&format!("engine {number}"), text.as_bytes(), several)?,
            Err(why) if problems.contains(&why) => {}
            Err(why) => problems.push(why),
        }
    }
    problems
        .iter()
        .for_each(|why| context.note(format!("cannot fetch some logs: {why}")));
    if !args.follow {
        return Ok(Exit::Fine);
    }
    // Until Ctrl-C, or until the reader closes stdout.
    loop {
        std::thread::sleep(POLL_INTERVAL);
        for log in &mut logs {
            let more = read_on(log).map_err(|e| unreadable(&log.path, &e))?;
            show(&log.name, &more, several)?;
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> CommandError {
    CommandError::environment(format!("cannot read {}: {error}", path.display()))
}

fn find(profile: &ProfileDir, cluster_id: &str, args: &Args) -> Result<Vec<Log>, CommandError> {
    if args.engines.is_some() && args.of != Of::Engine {
        return Err(CommandError::usage("only engines have numbers").hint("for example: pcluster logs engine 0,2-3"));
    }
    let mut logs = Vec::new();
    let log = |name: String, path: PathBuf| Log {
        name,
        path,
        shown: 0,
        rest: Vec::new(),
    };
    if args.of != Of::Engine {
        logs.push(log("controller".into(), profile.controller_log(cluster_id)));
    }
    if args.of != Of::Controller {
        for number in engine_numbers(profile, cluster_id) {
            if args.wants(number) {
                logs.push(log(format!("engine {number}"), profile.engine_log(cluster_id, number)));
            }
        }
        for (number, path) in cluster::logs::of_jobs(profile, cluster_id) {
            if args.wants(number) {
                logs.push(log(format!("engine {number}"), path));
            }
        }
    }
    logs.retain(|log| log.path.exists());
    Ok(logs)
}

/// The numbers of the engines that have a log.
fn engine_numbers(profile: &ProfileDir, cluster_id: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(profile.log_dir()) else {
        return Vec::new();
    };
    let number = |path: PathBuf| -> Option<u32> {
        let stem = path.file_stem()?.to_str()?;
        let number: u32 = stem.rsplit('-').next()?.parse().ok()?;
        // Another cluster's log may end in a number too.
        (profile.engine_log(cluster_id, number) == path).then_some(number)
    };
    let mut numbers: Vec<u32> = entries.flatten().filter_map(|entry| number(entry.path())).collect();
    numbers.sort_unstable();
    numbers
}

fn show(name: &str, text: &[u8], several: bool) -> Result<(), CommandError> {
    if text.is_empty() {
        return Ok(());
    }
    output::stdout(|out| {
        for line in text.split_inclusive(|b| *b == b'\n') {
            if several {
                write!(out, "[{name}] ")?;
            }
            out.write_all(visible(&String::from_utf8_lossy(line)).as_bytes())?;
            if !line.ends_with(b"\n") {
                out.write_all(b"\n")?;
            }
        }
        Ok(())
    })
}

fn last_lines(log: &mut Log, count: usize) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(&log.path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.take(length - from).read_to_end(&mut text)?;
    log.shown = from + text.len() as u64;
    let start = match count {
        0 => text.len(),
        _ => {
            let ends = text.iter().enumerate().rev().skip(1).filter(|(_, b)| **b == b'\n');
            ends.map(|(at, _)| at + 1).nth(count - 1).unwrap_or(0)
        }
    };
    Ok(text.split_off(start))
}

/// The complete lines added since. A file that became shorter is read from the start.
fn read_on(log: &mut Log) -> std::io::Result<Vec<u8>> {
    let Ok(mut file) = File::open(&log.path) else {
        return Ok(Vec::new());
    };
    if file.metadata()?.len() < log.shown {
        (log.shown, log.rest) = (0, Vec::new());
    }
    file.seek(SeekFrom::Start(log.shown))?;
    let mut text = std::mem::take(&mut log.rest);
    let had = text.len();
    file.take(TAIL).read_to_end(&mut text)?;
    log.shown += (text.len() - had) as u64;
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    log.rest = text.split_off(whole);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn log(path: &Path) -> Log {
        Log {
            name: "controller".into(),
            path: path.to_path_buf(),
            shown: 0,
            rest: Vec::new(),
        }
    }

    #[test]
    fn last_lines_are_shown_and_appended_lines_follow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        for (count, expected) in [
            (0, ""),
            (1, "three\n"),
            (2, "two\nthree\n"),
            (3, "one\ntwo\nthree\n"),
            (9, "one\ntwo\nthree\n"),
        ] {
            assert_eq!(last_lines(&mut log(&path), count).unwrap(), expected.as_bytes(), "{count}");
        }
        let mut log = log(&path);
        last_lines(&mut log, 1).unwrap();
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"four\nfi").unwrap();
        assert_eq!(read_on(&mut log).unwrap(), b"four\n");
        file.write_all(b"ve\n").unwrap();
        assert_eq!(read_on(&mut log).unwrap(), b"five\n");
        assert_eq!(read_on(&mut log).unwrap(), b"");
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(read_on(&mut log).unwrap(), b"new\n");
    }

    #[test]
    fn engines_logs_are_those_of_this_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("p", Some(dir.path())).unwrap();
        profile.create().unwrap();
        for (id, number) in [("", 0), ("", 12), ("a", 3), ("a-4", 5)] {
            std::fs::write(profile.engine_log(id, number), "x\n").unwrap();
        }
        assert_eq!(engine_numbers(&profile, ""), [0, 12]);
        assert_eq!(engine_numbers(&profile, "a"), [3]);
        assert_eq!(engine_numbers(&profile, "a-4"), [5]);
    }
}

//! Running programs: always without stdin, always in the repository.
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// A program to be run in `folder`, with nothing to read.
pub fn program(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(folder).stdin(Stdio::null());
    command
}

/// Shows a command before it runs.
pub fn echo(line: &str) {
    println!("\n$ {line}");
    let _ = std::io::stdout().flush();
}

/// Runs to completion with inherited output.
pub fn status(command: &mut Command) -> Result<ExitStatus, String> {
    command.status().map_err(|e| cannot_run(command, &e))
}

/// Runs to completion; each line of stdout is printed and passed to `seen`. stderr is inherited.
pub fn watched(command: &mut Command, mut seen: impl FnMut(&str)) -> Result<ExitStatus, String> {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| cannot_run(command, &e))?;
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).map_err(|e| cannot_run(command, &e))? > 0 {
            let text = String::from_utf8_lossy(&line);
            print!("{text}");
            seen(text.trim_end());
            line.clear();
        }
    }
    child.wait().map_err(|e| cannot_run(command, &e))
}

/// Runs to completion; returns its stdout, or an error with its stderr.
pub fn captured(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| cannot_run(command, &e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!(
        "{} failed ({}):\n{}",
        spelled(command),
        output.status,
        String::from_utf8_lossy(&text).trim_end()
    ))
}

pub fn spelled(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn cannot_run(command: &Command, why: &std::io::Error) -> String {
    format!("cannot run {}: {why}", spelled(command))
}

//! Runs one task on each of some engines and shows the answers: shared by `apply`, `exec`, `run`, `push`, `pull`, `scatter` and `gather`.
use crate::cli::commands::map::follow::{Job, LongOutputs, MapEnd, Taken};
use crate::cli::commands::map::interrupts::Interrupts;
use crate::cli::commands::map::needs::NeedOptions;
use crate::cli::commands::map::options::current_directory;
use crate::cli::commands::positive_seconds;
use crate::cli::output::visible::visible;
use crate::cli::progress::Progress;
use crate::cli::values::{error_text, value_line, whole};
use crate::cli::{CommandError, Context, Exit, output};
use crate::client::submit::Input;
use crate::model::definition::{MapOptions, Work};
use crate::model::targets::Targets;
use crate::model::task::TaskRow;
use crate::model::{EngineId, MapId};
use crate::profile::config::MapConfig;
use bytes::Bytes;
use std::io::{self, Write};

/// Selects engines and limits the run time.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct EngineOptions {
    /// Run on these engines: all, or a list such as 0,3,5-8
    #[arg(long, value_name = "ENGINES", default_value = "all")]
    pub targets: Targets,
    /// Stop a task that runs longer than DURATION (90, 90s, 10m, 2h)
    #[arg(long, value_name = "DURATION", value_parser = positive_seconds)]
    pub timeout: Option<f64>,
}

/// The results, in the order of the engines.
pub(crate) struct Answers {
    pub map: MapId,
    pub rows: Vec<(EngineId, TaskRow)>,
}

/// Runs `work` once on each engine with its input from `inputs`. None if interrupted, which has been reported.
pub(crate) fn run(
    context: &Context,
    options: &EngineOptions,
    work: Work,
    inputs: impl FnOnce(&[EngineId]) -> Vec<String>,
) -> Result<Option<Answers>, CommandError> {
    run_with(context, options, &NeedOptions::default(), work, inputs)
}

/// The same, with resources of each engine's node.
pub(crate) fn run_with(
    context: &Context,
    options: &EngineOptions,
    needs: &NeedOptions,
    work: Work,
    inputs: impl FnOnce(&[EngineId]) -> Vec<String>,
) -> Result<Option<Answers>, CommandError> {
    // The profile's defaults are for maps: a line of Python on each engine waits only if options of the command ask for something.
    let request = needs.request(&MapConfig::default()).map_err(CommandError::usage)?;
    let client = context.client()?;
    let name = work.default_name();
    let mut view = client.direct(options.targets.clone());
    view.options = MapOptions {
        timeout_s: options.timeout,
        resources: request.resources,
        mem_bytes: Some(request.mem_bytes).filter(|bytes| *bytes > 0),
        // Code in an engine's namespace runs in that engine's directory, which it may have changed itself.
        directory: if matches!(work, Work::Call { .. } | Work::Command { .. }) {
            current_directory()
        } else {
            None
        },
        // A crash loses the engine's namespace; a retry would hide that.
        max_crashes: 0,
        interactive: true,
        ..view.options
    };
    context.block_on(async {
        let mut interrupts = Interrupts::listen()?;
        let inputs = |engines: &[EngineId]| -> Vec<Input> { inputs(engines).into_iter().map(|text| Ok(Bytes::from(text))).collect() };
        let submitted = view.for_each_engine(work, inputs).await?;
        let engines = submitted.engines().to_vec();
        if engines.is_empty() {
            return Err(no_engines(context));
        }
        let mut progress = Progress::new(&name, context.terminal.stderr && !context.quiet);
        let job = Job {
            context,
            client: client.clone(),
            map: submitted.map(),
            total: Some(engines.len() as u64),
            feed: None,
            detachable: true,
            outputs: LongOutputs::Fetched,
            values: true,
            inputs: true,
        };
        let mut rows = Vec::new();
        let (ended, _) = job
            .follow(&mut interrupts, &mut progress, &mut |_, taken| {
                if let Taken::Rows(new) = taken {
                    rows.extend(new);
                }
                Ok(())
            })
            .await?;
        progress.clear();
        if ended != MapEnd::Complete {
            return Ok(None);
        }
        let of_engine = |row: &TaskRow| {
            engines
                .get(row.task.index as usize)
                .copied()
                .or(row.engine)
                .unwrap_or(EngineId(row.task.index))
        };
        let rows = rows.into_iter().map(|row| (of_engine(&row), row)).collect();
        Ok(Some(Answers {
            map: submitted.map(),
            rows,
        }))
    })?
}

fn no_engines(context: &Context) -> CommandError {
    CommandError::not_found("no engines are registered").hint(format!(
        "`pcluster engines{}` shows the engines, `pcluster status{0}` the cluster",
        context.options()
    ))
}

/// Which values are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShowValue {
    Always,
    /// Unless it is None.
    NotNone,
    Never,
}

impl Answers {
    /// Prints output and values prefixed with the engine, `[0] …`, and stderr, errors and their number to stderr; or everything as JSON.
    pub(crate) fn show(&self, context: &Context, show: ShowValue) -> Result<Exit, CommandError> {
        if context.json {
            output::stdout(|out| {
                let mut list = output::json::List::begin(out, "results")?;
                for (_, row) in &self.rows {
                    list.item(out, &whole(row))?;
                }
                list.end(out)
            })?;
        } else {
            output::stdout(|out| {
                let mut errors = io::stderr();
                self.rows
                    .iter()
                    .try_for_each(|(engine, row)| write_answer(out, &mut errors, *engine, row, show))
            })?;
        }
        Ok(self.exit(context))
    }

    /// Reports how many failed.
    pub(crate) fn exit(&self, context: &Context) -> Exit {
        let failed = self.rows.iter().filter(|(_, row)| row.state.is_failed()).count();
        if failed == 0 {
            return Exit::Fine;
        }
        context.note(format!(
            "failed on {failed} of {} engines; details: pcluster results{} {}",
            self.rows.len(),
            context.options(),
            self.map
        ));
        Exit::SomeFailed
    }

    /// An error if it failed on any engine, for commands that need all results.
    pub(crate) fn require_success(&self, context: &Context, what: &str) -> Result<(), CommandError> {
        let Some((engine, row)) = self.rows.iter().find(|(_, row)| row.state.is_failed()) else {
            return Ok(());
        };
        let error = row.error.as_ref().map(error_text).unwrap_or_else(|| row.state.to_string());
        Err(
            CommandError::failed(format!("{what} failed on engine {engine}: {error}")).hint(format!(
                "details: pcluster results{} {}",
                context.options(),
                row.task
            )),
        )
    }
}

fn write_answer(out: &mut dyn Write, errors: &mut dyn Write, engine: EngineId, row: &TaskRow, show: ShowValue) -> io::Result<()> {
    prefixed_bytes(out, engine, &row.stdout.bytes)?;
    // Keeps an engine's output before its errors if both go to one terminal.
    if !row.stderr.is_empty() || row.state.is_failed() {
        out.flush()?;
    }
    prefixed_bytes(errors, engine, &row.stderr.bytes)?;
    if row.state.is_failed() {
        let error = row.error.as_ref();
        let traceback = error.map(|e| e.traceback.trim_end()).unwrap_or_default();
        let words = error
            .map(error_text)
            .filter(|w| !w.is_empty())
            .unwrap_or_else(|| row.state.to_string());
        if traceback.is_empty() {
            return prefixed(errors, engine, &visible(&words));
        }
        return prefixed(errors, engine, &visible(traceback));
    }
    match show {
        ShowValue::Never => Ok(()),
        ShowValue::NotNone if value_line(row) == "null" => Ok(()),
        _ => prefixed(out, engine, &value_line(row)),
    }
}

/// Each line prefixed with `[engine] `.
fn prefixed(out: &mut dyn Write, engine: EngineId, text: &str) -> io::Result<()> {
    text.lines().try_for_each(|line| writeln!(out, "[{engine}] {line}"))
}

/// The same for bytes.
fn prefixed_bytes(out: &mut dyn Write, engine: EngineId, bytes: &[u8]) -> io::Result<()> {
    for line in bytes
        .strip_suffix(b"\n")
        .unwrap_or(bytes)
        .split(|byte| *byte == b'\n')
        .filter(|_| !bytes.is_empty())
    {
        write!(out, "[{engine}] ")?;
        out.write_all(line)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::values::tests::row;
    use crate::model::task::{TaskError, TaskState};

    fn written(row: &TaskRow, show: ShowValue) -> (String, String) {
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        write_answer(&mut out, &mut errors, EngineId(3), row, show).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(errors).unwrap())
    }

    #[test]
    fn each_line_names_its_engine() {
        let talkative = TaskRow {
            stdout: "a\n\nb".into(),
            stderr: "oh\n".into(),
            ..row(0, Some("{\"x\":1}"))
        };
        assert_eq!(
            written(&talkative, ShowValue::Always),
            ("[3] a\n[3] \n[3] b\n[3] {\"x\":1}\n".into(), "[3] oh\n".into())
        );
        assert_eq!(written(&row(0, None), ShowValue::Always).0, "[3] null\n");
        assert_eq!(written(&row(0, None), ShowValue::NotNone).0, "");
        assert_eq!(written(&row(0, Some("5")), ShowValue::NotNone).0, "[3] 5\n");
        assert_eq!(written(&row(0, Some("5")), ShowValue::Never).0, "");
    }

    #[test]
    fn errors_go_to_stderr() {
        let error = TaskError {
            ename: "NameError".into(),
            evalue: "x".into(),
            traceback: String::new(),
        };
        let mut failed = TaskRow {
            state: TaskState::Error,
            error: Some(error),
            ..row(0, None)
        };
        assert_eq!(written(&failed, ShowValue::Always), (String::new(), "[3] NameError: x\n".into()));
        failed.error.as_mut().unwrap().traceback = "Traceback\nNameError: x\n".into();
        assert_eq!(written(&failed, ShowValue::Always).1, "[3] Traceback\n[3] NameError: x\n");
    }
}

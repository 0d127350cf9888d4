//! `pcluster map`: a function or a command over many inputs, results in their order.
//!
//! Parts: [`options`] (of everything that makes a map), [`follow`] (staying with it), [`report`] (what failed),
//! [`reduce`] (folding the values), [`interrupts`] (Ctrl-C).
pub mod follow;
pub mod interrupts;
pub mod options;
pub mod reduce;
pub mod report;

use crate::cli::inputs::{InputArgs, Inputs, Shape, Texts, function};
use crate::cli::progress::Progress;
use crate::cli::values::sink::Sink;
use crate::cli::values::{Format, Style};
use crate::cli::{CommandError, Context, Exit, output};
use crate::client::submit::Input;
use crate::client::{Client, Feeding};
use crate::model::definition::{MapDefinition, Work};
use crate::model::targets::Targets;
use crate::wire::content::client::Selection;
use bytes::Bytes;
use follow::{Ended, Feed, Job};
use interrupts::Interrupts;
use options::TaskOptions;
use report::Report;
use std::path::PathBuf;

/// Run a Python function or a command on every input
///
/// FN is file.py:function (the file's text travels to the engines) or package.module:function (imported there).
/// A command stands after two dashes instead; {} in it is the input, {1} {2} are its columns.
/// INPUTS is a file with one input a line (empty lines are passed over), or - for stdin.
///
/// Results come out on stdout in input order: a function's values as JSON lines, a command's output as it is.
/// A task that failed has a line {"__error__": …} in its place, a value that JSON cannot hold {"__pickled__": …, "repr": …}.
/// Exit code 1: some tasks failed.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "pcluster map [OPTIONS] FN INPUTS\n       pcluster map [OPTIONS] INPUTS -- COMMAND [{}]...",
    after_help = "Examples:\n  pcluster map pidigits.py:two_digit_counts files.txt --reduce pidigits.py:add_counts\n  \
                  pcluster map --range 0..1000 model.py:simulate -o results.jsonl\n  \
                  find . -name '*.wav' | pcluster map - -- sox {} {}.mp3"
)]
pub struct Args {
    /// The function: file.py:function or package.module:function
    #[arg(value_name = "FN")]
    first: Option<String>,
    /// The file with inputs, or -
    #[arg(value_name = "INPUTS")]
    second: Option<String>,
    /// A command instead of FN
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    inputs: InputArgs,
    #[command(flatten)]
    tasks: TaskOptions,
    #[command(flatten)]
    results: ResultOptions,
    /// As many inputs as engines: input i for the i-th of these and no other (all, or 0,3,5-8)
    #[arg(long, value_name = "ENGINES")]
    targets: Option<Targets>,
    /// Print the map's number and return at once (when all inputs are sent)
    #[arg(long)]
    detach: bool,
}

/// What becomes of results.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Results")]
pub struct ResultOptions {
    /// How results are written
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write results to a file, which appears when it is complete
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write no results (they are kept: pcluster results)
    #[arg(long, conflicts_with_all = ["output", "format"])]
    no_output: bool,
    /// Fold the values, in input order, with a function of two values that is associative; print the one that is left
    #[arg(long, value_name = "FN", conflicts_with_all = ["format", "detach"])]
    reduce: Option<String>,
    /// With --reduce: leave out the tasks that failed
    #[arg(long, requires = "reduce")]
    skip_failed: bool,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let plan = Plan::of(&args)?;
    let sink = Sink::open(args.results.output.as_deref(), args.results.no_output)?;
    let style = Style::of(
        args.results.format,
        plan.is_command(),
        context.json && args.results.reduce.is_none(),
    );
    if matches!(style, Style::Pickle { .. }) && sink.is_stdout() && context.terminal.stdout {
        return Err(
            CommandError::usage("--format pickle writes bytes, and stdout is a terminal").hint("name a file: --output results.pickle")
        );
    }
    let client = context.client()?;
    submit_and_follow(&args, plan, sink, style, client, context, true)
}

/// What is to be done, checked as far as that can be done here.
struct Plan {
    definition: MapDefinition,
    inputs: Inputs,
    reduce: Option<Work>,
}

impl Plan {
    fn of(args: &Args) -> Result<Plan, CommandError> {
        let (work, file) = match (args.command.is_empty(), &args.first, &args.second) {
            (true, Some(spec), file) => (function::work(spec)?, file),
            (true, None, _) => {
                return Err(CommandError::usage("no function and no command is given")
                    .hint("pcluster map file.py:function inputs.txt")
                    .hint("pcluster map inputs.txt -- command {}"));
            }
            (false, _, Some(extra)) => {
                return Err(CommandError::usage(format!(
                    "{extra:?} is one word too many: with a command after `--` only the inputs stand before it"
                )));
            }
            (false, file, None) => (
                Work::Command {
                    argv: args.command.clone(),
                },
                file,
            ),
        };
        let reduce = args.results.reduce.as_deref().map(function::work).transpose()?;
        let shape = match &work {
            Work::Command { .. } if reduce.is_some() => {
                return Err(CommandError::usage(
                    "--reduce folds the values of a Python function; a command has none",
                ));
            }
            Work::Command { .. } => Shape::Command,
            _ => Shape::Call,
        };
        let inputs = Inputs::find(&args.inputs, file.as_deref(), shape)?;
        let mut options = args.tasks.to_map_options();
        options.targets = args.targets.clone();
        Ok(Plan {
            definition: MapDefinition { work, options },
            inputs,
            reduce,
        })
    }

    fn is_command(&self) -> bool {
        matches!(self.definition.work, Work::Command { .. })
    }
}

fn submit_and_follow(
    args: &Args,
    plan: Plan,
    sink: Sink,
    style: Style,
    client: Client,
    context: &Context,
    detachable: bool,
) -> Result<Exit, CommandError> {
    let Plan {
        definition,
        inputs,
        reduce,
    } = plan;
    if inputs.is_typed() {
        context.say("note: reading inputs from the terminal, one a line; Ctrl-D ends them");
    }
    let mut texts = inputs.texts()?;
    // Nothing is submitted for a stream that gives nothing. Until then Ctrl-C simply ends this process.
    let first = match texts.next() {
        Some(first) => first?,
        None => return Err(inputs.none()),
    };
    let texts: Texts = Box::new(std::iter::once(Ok(first)).chain(texts));
    let texts = texts.map(|text| -> Input { text.map(Bytes::from).map_err(|e| e.to_string()) });
    let name = definition.options.name.clone().unwrap_or_else(|| definition.work.default_name());
    let options = definition.options.clone();
    let count = inputs.count;

    context.block_on(async {
        let mut interrupts = Interrupts::listen()?;
        let begun = client.begin(definition).await?;
        let map = begun.map;
        if args.targets.is_some() && count.is_some_and(|n| n != begun.engines.len() as u64) {
            client.feed(map, Vec::new(), Feeding::default()).await?;
            client
                .cancel(Selection {
                    maps: vec![map],
                    ..Selection::default()
                })
                .await?;
            return Err(CommandError::usage(format!(
                "--targets means {} engines, and there are {} inputs: there must be one for each",
                begun.engines.len(),
                count.unwrap_or_default()
            )));
        }
        context.say_more(format!("map {map}: {name}"));
        let feeding = Feeding::default();
        let (feeder, state) = (client.clone(), feeding.clone());
        let feed = Feed {
            task: tokio::spawn(async move { feeder.feed(map, texts, state).await }),
            feeding,
            is_stream: inputs.is_stream(),
        };
        if args.detach {
            return detach(feed, interrupts, map, &client, context).await;
        }
        let mut progress = Progress::new(&name, context.terminal.stderr && !context.quiet);
        let began = std::time::Instant::now();
        let job = Job {
            context,
            client: client.clone(),
            map,
            name,
            total: count,
            feed: Some(feed),
            detachable,
        };
        let mut report = Report::new(map);
        let mut results = Results {
            sink,
            style,
            terminal: context.terminal.stdout,
            fold: reduce.is_some().then(reduce::Values::default),
        };
        results.begin()?;
        let (ended, counts) = job
            .follow(&mut interrupts, &mut progress, &mut |progress, rows| {
                rows.iter().for_each(|row| report.look_at(row));
                results.take(progress, rows)
            })
            .await?;
        progress.clear();
        if ended != Ended::Complete {
            if !results.sink.is_stdout() && !results.sink.is_nowhere() && ended == Ended::Detached {
                context.say("note: the output file was not written; `pcluster results` has the results when the map is done");
            }
            return Ok(Exit::Interrupted);
        }
        report.say(context, &counts, began.elapsed());
        let exit = if counts.failed() > 0 { Exit::SomeFailed } else { Exit::Fine };
        let Some(function) = reduce else {
            results.end()?;
            return Ok(exit);
        };
        if counts.failed() > 0 && !args.results.skip_failed {
            return Err(
                CommandError::failed(format!("map {map} is not reduced, because {} of its tasks failed", counts.failed()))
                    .hint(format!("run them again: pcluster resubmit{} {map} --failed", context.options()))
                    .hint("or reduce the values that there are: --reduce FN --skip-failed"),
            );
        }
        let values = results.fold.take().unwrap_or_default();
        let reduction = reduce::Reduction {
            context,
            client: &client,
            function,
            of: map,
            options,
        };
        match reduction.run(values, &mut interrupts).await? {
            reduce::Reduced::Value(row) => {
                let line = crate::cli::values::value_line(&row).into_owned();
                results.sink.write(|out| writeln!(out, "{line}"))?;
                results.sink.finish()?;
                Ok(exit)
            }
            reduce::Reduced::Interrupted => Ok(Exit::Interrupted),
        }
    })?
}

/// Results on their way out.
struct Results {
    sink: Sink,
    style: Style,
    /// stdout is a terminal: the bar must make way.
    terminal: bool,
    /// Values are kept for a reduction instead.
    fold: Option<reduce::Values>,
}

impl Results {
    fn begin(&mut self) -> Result<(), CommandError> {
        match self.fold {
            Some(_) => Ok(()),
            None => self.sink.write(|out| self.style.begin(out)),
        }
    }

    fn take(&mut self, progress: &Progress, rows: Vec<crate::model::task::TaskRow>) -> Result<(), CommandError> {
        if let Some(values) = &mut self.fold {
            rows.into_iter().for_each(|row| values.add(row));
            return Ok(());
        }
        if rows.is_empty() || self.sink.is_nowhere() {
            return Ok(());
        }
        let aside = self.style == Style::Output || (self.terminal && self.sink.is_stdout());
        let mut write = || {
            self.sink.write(|out| {
                let mut errors = std::io::stderr();
                rows.iter().try_for_each(|row| self.style.write(row, out, &mut errors))
            })
        };
        if aside { progress.aside(write) } else { write() }
    }

    fn end(mut self) -> Result<(), CommandError> {
        self.sink.write(|out| self.style.end(out))?;
        self.sink.finish()
    }
}

/// `--detach`: the inputs are sent to their end, the map's number is printed.
async fn detach(
    mut feed: Feed,
    mut interrupts: Interrupts,
    map: crate::model::MapId,
    client: &Client,
    context: &Context,
) -> Result<Exit, CommandError> {
    let fed = tokio::select! {
        fed = &mut feed.task => fed,
        () = interrupts.next() => {
            feed.feeding.stop();
            feed.task.await.map_err(|e| CommandError::internal(format!("the sending of inputs ended: {e}")))??;
            client.cancel(Selection { maps: vec![map], ..Selection::default() }).await?;
            context.say(format!("\nmap {map} is cancelled: not all of its inputs were sent"));
            return Ok(Exit::Interrupted);
        }
    };
    let count = fed.map_err(|e| CommandError::internal(format!("the sending of inputs ended: {e}")))??;
    match context.json {
        true => output::json::print(&serde_json::json!({"map": map, "tasks": count}))?,
        false => output::print(&format!("{map}\n"))?,
    }
    context.say(follow::come_back(map, &context.options()));
    Ok(Exit::Fine)
}

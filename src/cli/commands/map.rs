//! `pcluster map`: a function or a command over many inputs, results in their order.
//!
//! Parts: [`options`] (of tasks), [`needs`] (their resources), [`own_cluster`] (`-n`), [`follow`] (waiting for a map),
//! `long_values`, [`results`] (their output), [`report`] (failures), `stalled` (why it does not get on), [`tip`] (memory), [`reduce`] (folding the values),
//! [`interrupts`] (Ctrl-C).
pub(crate) mod follow;
pub(crate) mod interrupts;
mod long_values;
pub(crate) mod needs;
pub(crate) mod options;
pub(crate) mod own_cluster;
pub(crate) mod reduce;
pub(crate) mod report;
pub(crate) mod results;
mod stalled;
mod tip;

use crate::cli::inputs::code::CodeArgs;
use crate::cli::inputs::{InputArgs, Inputs, Shape, Texts, function};
use crate::cli::progress::Progress;
use crate::cli::{CommandError, Context, Exit, output};
use crate::client::submit::Input;
use crate::client::{Client, ClientError, Feeding, MapReply, Selection};
use crate::model::MapId;
use crate::model::definition::{MapDefinition, Work};
use crate::model::targets::Targets;
use crate::model::task::Counts;
use crate::profile::Config;
use bytes::Bytes;
use follow::{Feed, Job, MapEnd, Taken};
use interrupts::Interrupts;
use options::TaskOptions;
use reduce::{Reduced, Reduction};
use report::Report;
use results::{ResultOptions, Results};
use std::time::Instant;

/// Run a Python function or a command on every input
///
/// FN is file.py:function (the file and the local modules that it imports are sent to the engines) or package.module:function
/// (imported on the engines). To run a command instead, write it after two dashes; {} stands for the input, {1} {2} for its
/// columns. INPUTS is a file with one input per line (empty lines are skipped), or - for stdin.
///
/// Writes results to stdout in input order: a function's values as JSON lines, a command's output unchanged. A failed task is
/// written as {"__error__": …}. Values that JSON cannot represent exactly (tuples, sets, arrays, non-string keys, …) are written
/// as readable JSON; --reduce and --format pickle use the exact values. With --json each line is the full record of a task.
/// Exits with 1 if any task failed.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "pcluster map [OPTIONS] FN INPUTS\n       pcluster map [OPTIONS] INPUTS -- COMMAND [{}]...",
    after_help = "Examples:\n  pcluster map pidigits.py:two_digit_counts files.txt --reduce pidigits.py:add_counts\n  \
                  pcluster map --range 0..1000 model.py:simulate -o results.jsonl\n  \
                  find . -name '*.wav' | pcluster map - -- sox {} {}.mp3"
)]
pub(crate) struct Args {
    /// Call this function: file.py:function or package.module:function
    #[arg(value_name = "FN")]
    first: Option<String>,
    /// Read inputs from this file, or - for stdin
    #[arg(value_name = "INPUTS")]
    second: Option<String>,
    /// Run this command instead of FN
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    inputs: InputArgs,
    #[command(flatten)]
    tasks: TaskOptions,
    #[command(flatten)]
    code: CodeArgs,
    #[command(flatten)]
    results: ResultOptions,
    /// If no cluster is running: start one with N engines for this map, then stop it
    #[arg(short, value_name = "N", conflicts_with = "detach", help_heading = "Engines")]
    n: Option<u32>,
    /// Run input i on the i-th of these engines only (all, or 0,3,5-8); needs one input per engine
    #[arg(long, value_name = "ENGINES", help_heading = "Engines")]
    targets: Option<Targets>,
    /// Print the map's number and return once all inputs are sent
    #[arg(long, help_heading = "Engines")]
    detach: bool,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    // Inputs keep being sent while the output is blocked by a full pipe.
    context.use_threads();
    let plan = Plan::of(&args, context)?;
    let results = Results::open(&args.results, plan.is_command(), context.json, context.terminal.stdout)?;
    own_cluster::with_cluster(args.n, context, |stays| {
        let client = context.client()?;
        let run = Run {
            args: &args,
            context,
            client,
            cluster_stays: stays,
        };
        context.block_on(run.go(plan, results))?
    })
}

/// A validated command line.
struct Plan {
    definition: MapDefinition,
    inputs: Inputs,
    reduce: Option<Work>,
}

impl Plan {
    fn of(args: &Args, context: &Context) -> Result<Plan, CommandError> {
        let (work, file) = match (args.command.is_empty(), &args.first, &args.second) {
            (true, Some(spec), file) => (function::work(spec, &args.code)?, file),
            (true, None, _) => {
                return Err(CommandError::usage("no function or command given")
                    .hint("pcluster map file.py:function inputs.txt")
                    .hint("pcluster map inputs.txt -- command {}"));
            }
            (false, _, Some(extra)) => {
                return Err(CommandError::usage(format!(
                    "unexpected argument {extra:?}: only INPUTS may precede `--` and a command"
                )));
            }
            (false, file, None) => (
                Work::Command {
                    argv: args.command.clone(),
                },
                file,
            ),
        };
        let reduce = args.results.reduce.as_deref();
        let reduce = reduce
            .map(|spec| function::work(spec, &reduce::code_of(spec, &args.code)))
            .transpose()?
            .map(|function| reduce::bring_code(function, &work));
        let shape = match &work {
            Work::Command { .. } if reduce.is_some() => {
                return Err(CommandError::usage("--reduce needs a Python function; a command returns no values"));
            }
            Work::Command { .. } => Shape::Command,
            _ => Shape::Call,
        };
        let inputs = Inputs::find(&args.inputs, file.as_deref(), shape)?;
        let config = Config::load(&context.profile_dir()?)?;
        let mut options = args.tasks.to_map_options(&config.map).map_err(CommandError::usage)?;
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

/// One map from its first input to its last result.
struct Run<'a> {
    args: &'a Args,
    context: &'a Context,
    client: Client,
    /// False if the cluster was started for this map only and will be stopped.
    cluster_stays: bool,
}

impl Run<'_> {
    async fn go(self, plan: Plan, mut results: Results) -> Result<Exit, CommandError> {
        let Plan {
            definition,
            inputs,
            reduce,
        } = plan;
        let context = self.context;
        let mut interrupts = Interrupts::listen()?;
        if inputs.is_typed() {
            context.note("note: reading inputs from the terminal, one per line; Ctrl-D ends the input");
        }
        // An empty stream submits nothing.
        let texts = tokio::select! {
            texts = first_awaited(inputs.texts()?) => texts?.ok_or_else(|| inputs.none())?,
            () = interrupts.next() => return Err(CommandError::new(crate::cli::ErrorKind::Interrupted, "interrupted before anything was submitted")),
        };
        let texts = texts.map(|text| -> Input { text.map(Bytes::from).map_err(|e| e.to_string()) });
        let name = definition.options.name.clone().unwrap_or_else(|| definition.work.default_name());
        let (options, asked, work) = (definition.options.clone(), definition.options.clone(), definition.work.clone());

        inputs.must_fit(self.client.max_input_bytes())?;
        let begun = self.client.begin(definition).await?;
        let map = begun.map;
        self.check_targets(&begun, inputs.count).await?;
        let reduction = reduce.map(|function| Reduction {
            context,
            client: &self.client,
            function,
            of: map,
            work,
            options,
        });
        if let Some(reduction) = &reduction {
            match reduction.check(&mut interrupts).await {
                Ok(Some(())) => {}
                Ok(None) => {
                    self.client.abandon(map, 0, "interrupted before its inputs were sent").await?;
                    return Ok(Exit::Interrupted);
                }
                Err(error) => {
                    self.client.abandon(map, 0, &error.error).await?;
                    return Err(error);
                }
            }
        }
        context.note_verbose(format!("map {map}: {name}"));
        let feed = self.feed(map, texts, inputs.is_stream());
        if self.args.detach {
            return self.detach(feed, interrupts, map).await;
        }

        let mut progress = Progress::new(&name, context.terminal.stderr && !context.quiet);
        let began = Instant::now();
        let job = Job {
            context,
            client: self.client.clone(),
            map,
            total: inputs.count,
            feed: Some(feed),
            detachable: self.cluster_stays,
            outputs: results.long_outputs(),
            values: results.wants_values(),
            inputs: results.wants_inputs(),
        };
        let mut report = Report::new(map, asked);
        report.values_shown = reduction.is_none() && results.shows_readable();
        report.cluster_stays = self.cluster_stays;
        results.begin()?;
        let (ended, counts) = job
            .follow(&mut interrupts, &mut progress, &mut |progress, taken| match taken {
                Taken::Rows(rows) => {
                    rows.iter().for_each(|row| report.add(row));
                    results.take(progress, rows)
                }
                Taken::Piece(stream, bytes) => results.take_piece(progress, stream, &bytes),
            })
            .await?;
        progress.clear();
        if ended != MapEnd::Complete {
            if results.is_file() && ended == MapEnd::Detached {
                context.note("note: the output file was not written; `pcluster results` shows the results when the map has finished");
            }
            return Ok(Exit::Interrupted);
        }
        self.report(&report, &counts, began).await;
        if counts.failed() > 0 && reduction.is_some() && !self.args.results.skip_failed {
            let hint = "reduce the remaining values with --skip-failed, or fix the cause and run the map again";
            return Err(CommandError::failed(format!("map {map} was not reduced: {} of its tasks failed", counts.failed())).hint(hint));
        }
        let exit = if counts.failed() > 0 { Exit::SomeFailed } else { Exit::Fine };
        match reduction {
            None => results.end().map(|()| exit),
            Some(reduction) => write_reduced(reduction, results, &mut interrupts, exit).await,
        }
    }

    /// Prints the report, and a tip if more tasks could run at a time with less memory for each.
    async fn report(&self, report: &Report, counts: &Counts, began: Instant) {
        report.print(self.context, counts, began.elapsed());
        if !report.may_have_tip() || self.context.quiet {
            return;
        }
        let engines = self.client.status().await.map(|status| status.engines).unwrap_or_default();
        if let Some(tip) = report.tip(counts.total, &engines) {
            self.context.note(tip);
        }
    }

    /// Starts sending the inputs.
    fn feed(&self, map: MapId, texts: impl Iterator<Item = Input> + Send + 'static, is_stream: bool) -> Feed {
        let feeding = Feeding::default();
        let (feeder, state) = (self.client.clone(), feeding.clone());
        Feed {
            task: tokio::spawn(async move { feeder.feed(map, texts, state).await }),
            feeding,
            is_stream,
        }
    }

    /// Checks that `--targets` has one input per engine.
    async fn check_targets(&self, begun: &MapReply, count: Option<u64>) -> Result<(), CommandError> {
        let (engines, count) = match (&self.args.targets, count) {
            (Some(_), Some(count)) if count != begun.engines.len() as u64 => (begun.engines.len(), count),
            _ => return Ok(()),
        };
        let why = format!("--targets selects {engines} engines, but there are {count} inputs: need one input per engine");
        self.client.abandon(begun.map, 0, &why).await?;
        Err(CommandError::usage(why))
    }

    async fn cancel(&self, map: MapId) -> Result<(), ClientError> {
        let maps = vec![map];
        self.client
            .cancel(Selection {
                maps,
                ..Selection::default()
            })
            .await
            .map(drop)
    }

    /// `--detach`: sends all inputs and prints the map's number.
    async fn detach(&self, mut feed: Feed, mut interrupts: Interrupts, map: MapId) -> Result<Exit, CommandError> {
        let fed = tokio::select! {
            fed = &mut feed.task => fed,
            () = interrupts.next() => {
                feed.feeding.stop();
                feed.task.await.map_err(|e| CommandError::internal(format!("sending inputs failed: {e}")))??;
                self.cancel(map).await?;
                self.context.note(format!("\nmap {map} cancelled: not all inputs were sent"));
                return Ok(Exit::Interrupted);
            }
        };
        let count = fed.map_err(|e| CommandError::internal(format!("sending inputs failed: {e}")))??;
        match self.context.json {
            true => output::json::print(&serde_json::json!({"map": map, "tasks": count}))?,
            false => output::print(&format!("{map}\n"))?,
        }
        self.context.note(follow::return_hints(map, &self.context.options()));
        Ok(Exit::Fine)
    }
}

/// Writes the reduced value.
async fn write_reduced(
    reduction: Reduction<'_>,
    mut results: Results,
    interrupts: &mut Interrupts,
    exit: Exit,
) -> Result<Exit, CommandError> {
    let (context, values) = (reduction.context, results.fold.take().unwrap_or_default());
    match reduction.run(values, interrupts).await? {
        Reduced::Value(row) => {
            let is_readable_only = row.pickled.is_some() && results.shows_readable();
            results.write_reduced(&row)?;
            if is_readable_only {
                context.note("note: JSON cannot represent the value exactly and shows a rendering; --format pickle writes the exact value");
            }
            Ok(exit)
        }
        Reduced::Interrupted => Ok(Exit::Interrupted),
    }
}

/// Waits for the first input and returns all inputs including it; None if there are none. A read cannot be cancelled, so it
/// happens on a thread that does not block the exit of this process.
async fn first_awaited(mut texts: Texts) -> Result<Option<Texts>, CommandError> {
    let (sender, first) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let first = texts.next();
        let _ = sender.send(first.map(|first| (first, texts)));
    });
    let gone = |_| CommandError::internal("the input thread has exited");
    match first.await.map_err(gone)? {
        None => Ok(None),
        Some((first, rest)) => Ok(Some(Box::new(std::iter::once(Ok(first?)).chain(rest)))),
    }
}

//! `--reduce FN`: the values of a map folded by a function of two values, on the engines, in order.
//!
//! Neighbouring values form groups; each group is folded from left to right by one task; the results are folded again
//! until one is left. All that is one further map, "reduce of map N", whose inputs follow as the groups are done. So the
//! function must be associative, need not be commutative, and few values (up to [`GROUP`]) are a plain left fold.
use super::follow::{Ended, Feed, Job};
use super::interrupts::Interrupts;
use crate::cli::inputs::code::CodeArgs;
use crate::cli::progress::Progress;
use crate::cli::values::value_line;
use crate::cli::{CommandError, Context};
use crate::client::{Client, Feeding};
use crate::model::MapId;
use crate::model::definition::{MapDefinition, MapOptions, Work};
use crate::model::task::TaskRow;
use bytes::Bytes;

/// Values in one group, at least (where there are so many),
const GROUP: usize = 16;
/// at most,
const LARGEST: usize = 5_000;
/// and bytes of them, at most (but always two values).
const GROUP_BYTES: usize = 4 << 20;

/// Values in input order, each as JSON text.
#[derive(Debug, Default)]
pub struct Values(Vec<String>);

impl Values {
    /// Takes a result; one of a failed task is left out.
    pub fn add(&mut self, row: TaskRow) {
        if !row.state.is_failed() {
            self.0.push(value_line(&row).into_owned());
        }
    }
}

pub enum Reduced {
    Value(Box<TaskRow>),
    Interrupted,
}

pub struct Reduction<'a> {
    pub context: &'a Context,
    pub client: &'a Client,
    pub function: Work,
    /// The map whose values they are.
    pub of: MapId,
    /// That map's options.
    pub options: MapOptions,
}

impl Reduction<'_> {
    pub async fn run(self, values: Values, interrupts: &mut Interrupts) -> Result<Reduced, CommandError> {
        let values = values.0;
        if values.is_empty() {
            return Err(CommandError::failed(format!("map {} has no values to reduce", self.of)));
        }
        let name = format!("reduce of map {}", self.of);
        let definition = MapDefinition {
            work: folding(self.function)?,
            options: MapOptions {
                name: Some(name.clone()),
                after: None,
                targets: None,
                timeout_s: None,
                ..self.options
            },
        };
        let engines = self.client.look(self.of).await?.engines.max(1) as usize;
        let largest = (values.len() / (8 * engines)).clamp(GROUP, LARGEST);
        let map = self.client.begin(definition).await?.map;
        let (sender, receiver) = std::sync::mpsc::channel::<String>();
        let (feeder, feeding) = (self.client.clone(), Feeding::default());
        let state = feeding.clone();
        let inputs = receiver.into_iter().map(|text| Ok(Bytes::from(text)));
        let feed = Feed {
            task: tokio::spawn(async move { feeder.feed(map, inputs, state).await }),
            feeding,
            is_stream: true,
        };
        let mut rounds = Rounds {
            largest,
            sender: Some(sender),
            expected: 0,
            values: Vec::new(),
            last: None,
            failed: None,
        };
        rounds.next(values);
        let mut progress = Progress::new(&name, self.context.terminal.stderr && !self.context.quiet);
        let job = Job {
            context: self.context,
            client: self.client.clone(),
            map,
            name,
            total: None,
            feed: Some(feed),
            detachable: false,
        };
        let (ended, _) = job
            .follow(interrupts, &mut progress, &mut |_, rows| {
                rows.into_iter().for_each(|row| rounds.take(row));
                Ok(())
            })
            .await?;
        progress.clear();
        match (ended, rounds.failed, rounds.last) {
            (Ended::Complete, Some(error), _) => Err(CommandError::failed(format!("map {} could not be reduced: {error}", self.of))
                .hint(format!(
                    "its values are kept: pcluster results{} {}",
                    self.context.options(),
                    self.of
                ))
                .hint(format!(
                    "all that is known of the failure: pcluster results{} {map} --failed",
                    self.context.options()
                ))),
            (Ended::Complete, None, Some(row)) => Ok(Reduced::Value(Box::new(row))),
            (Ended::Complete, None, None) => Err(CommandError::internal(format!(
                "the reduction of map {} ended without a value",
                self.of
            ))),
            (Ended::Detached | Ended::Cancelled, _, _) => {
                self.context.say(format!(
                    "the values of map {} are kept: pcluster results{} {0}",
                    self.of,
                    self.context.options()
                ));
                Ok(Reduced::Interrupted)
            }
        }
    }
}

/// The levels of the fold: what is out, what has come back.
struct Rounds {
    largest: usize,
    /// Dropped when no more groups follow.
    sender: Option<std::sync::mpsc::Sender<String>>,
    /// Results that this round still waits for.
    expected: usize,
    values: Vec<String>,
    last: Option<TaskRow>,
    failed: Option<String>,
}

impl Rounds {
    fn next(&mut self, values: Vec<String>) {
        let groups = groups(&values, self.largest, GROUP_BYTES);
        self.expected = groups.len();
        if let Some(sender) = &self.sender {
            for group in groups {
                // The receiver ends only when the map does.
                let _ = sender.send(format!("[{}]", group.join(",")));
            }
        }
        if self.expected == 1 {
            self.sender = None;
        }
    }

    /// One group's result, in order.
    fn take(&mut self, row: TaskRow) {
        if row.state.is_failed() {
            let error = row
                .error
                .as_ref()
                .map(crate::cli::values::in_words)
                .unwrap_or_else(|| row.state.to_string());
            self.failed.get_or_insert(format!("task {} failed: {error}", row.task));
            self.sender = None;
            return;
        }
        self.expected = self.expected.saturating_sub(1);
        self.values.push(value_line(&row).into_owned());
        self.last = Some(row);
        if self.expected == 0 && self.values.len() > 1 && self.failed.is_none() {
            let values = std::mem::take(&mut self.values);
            self.next(values);
        }
    }
}

/// Neighbours together; never more groups than half the values, so that it comes to an end.
fn groups(values: &[String], largest: usize, bytes: usize) -> Vec<&[String]> {
    let mut groups = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (i, value) in values.iter().enumerate() {
        let length = i - start;
        if length >= 2 && (length >= largest || size + value.len() > bytes) {
            groups.push(&values[start..i]);
            (start, size) = (i, 0);
        }
        size += value.len() + 1;
    }
    if start < values.len() {
        groups.push(&values[start..]);
    }
    groups
}

/// The function as one that folds a group.
fn folding(function: Work) -> Result<Work, CommandError> {
    match function {
        Work::Call { from, function, .. } => Ok(Work::Call {
            from,
            function,
            reduce: true,
        }),
        _ => Err(CommandError::usage("--reduce takes a Python function")),
    }
}

/// What `--with` names is also there for a function that reduces, if that is in a file.
pub fn code_of(function: &str, code: &CodeArgs) -> CodeArgs {
    match function.contains(".py:") || function.contains('/') {
        true => code.clone(),
        false => CodeArgs::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::values::tests::row;
    use proptest::prelude::*;

    /// Folds by concatenation, as engines would.
    fn folded(count: usize, largest: usize) -> (String, usize) {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut rounds = Rounds {
            largest,
            sender: Some(sender),
            expected: 0,
            values: Vec::new(),
            last: None,
            failed: None,
        };
        rounds.next((0..count).map(|i| format!("\"{i};\"")).collect());
        let mut tasks = 0;
        for input in receiver {
            let values: Vec<String> = serde_json::from_str(&input).unwrap();
            rounds.take(row(tasks as u32, Some(&format!("{:?}", values.concat()))));
            tasks += 1;
        }
        (serde_json::from_str(rounds.last.unwrap().value.unwrap().get()).unwrap(), tasks)
    }

    proptest! {
        #[test]
        fn order_is_kept_and_it_ends(count in 1usize..300, largest in 2usize..20) {
            let (text, tasks) = folded(count, largest);
            prop_assert_eq!(text, (0..count).map(|i| format!("{i};")).collect::<String>());
            prop_assert!(tasks <= 2 * count);
        }
        #[test]
        fn groups_are_the_values(lengths in proptest::collection::vec(0usize..50, 0..100), largest in 2usize..10, bytes in 0usize..200) {
            let values: Vec<String> = lengths.iter().map(|n| "x".repeat(*n)).collect();
            let groups = groups(&values, largest, bytes);
            prop_assert_eq!(groups.concat(), values.clone());
            prop_assert!(groups.iter().all(|g| g.len() <= largest));
            prop_assert!(groups.len() <= values.len().div_ceil(2).max(1));
        }
    }

    #[test]
    fn few_values_are_one_task() {
        assert_eq!(folded(15, GROUP).1, 1);
        assert_eq!(folded(1, GROUP).1, 1);
    }

    #[test]
    fn a_failure_ends_it() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut rounds = Rounds {
            largest: 2,
            sender: Some(sender),
            expected: 0,
            values: Vec::new(),
            last: None,
            failed: None,
        };
        rounds.next(vec!["1".into(), "2".into(), "3".into(), "4".into()]);
        rounds.take(TaskRow {
            state: crate::model::task::TaskState::Error,
            ..row(0, None)
        });
        rounds.take(row(1, Some("7")));
        assert_eq!(receiver.into_iter().count(), 2, "no more groups, and the channel is closed");
        assert_eq!(rounds.failed.as_deref(), Some("task 1.0 failed: error"));
    }
}

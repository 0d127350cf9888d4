//! Follows a map until it is complete: writes results, shows progress, handles Ctrl-C.
use super::interrupts::Interrupts;
use super::long_values::long_values;
use super::stalled::Stalled;
use crate::cli::explained::{Jobs, Line};
use crate::cli::output::visible::visible;
use crate::cli::progress::Progress;
use crate::cli::tables::unavailable_engines;
use crate::cli::{CommandError, Context};
use crate::client::{Client, ClientError, Feeding, Selection, Update};
use crate::model::MapId;
use crate::model::output::{Output, Stream};
use crate::model::task::{Counts, TaskRow};
use bytes::Bytes;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long to wait for an engine before reporting that there is none.
const NO_ENGINES: Duration = Duration::from_secs(3);
/// How long to wait for the controller before reporting that it does not answer,
const SILENT: Duration = Duration::from_secs(10);
/// and before giving up: long enough to restart it, which the map survives.
const CONTROLLER_TIMEOUT: Duration = Duration::from_secs(120);
/// How long to wait for a second Ctrl-C.
const SECOND: Duration = Duration::from_millis(1500);

/// A running map.
pub(crate) struct Job<'a> {
    pub context: &'a Context,
    pub client: Client,
    pub map: MapId,
    /// The final number of tasks, if known.
    pub total: Option<u64>,
    /// The inputs still being sent.
    pub feed: Option<Feed>,
    /// Whether the map continues without this command.
    pub detachable: bool,
    /// How to handle long outputs.
    pub outputs: LongOutputs,
    /// Whether long values are fetched into their rows.
    pub values: bool,
    /// Whether rows contain inputs, also of tasks that did not fail.
    pub inputs: bool,
}

/// How to handle task output that is too long to be part of its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LongOutputs {
    /// Ignore it.
    Left,
    /// Fetch it into the row.
    Fetched,
    /// Pass it on in chunks before the row, which then has no output.
    Streamed,
}

/// Results, in input order.
pub(crate) enum Taken {
    Rows(Vec<TaskRow>),
    /// A chunk of the output of the next row's task.
    Piece(Stream, Bytes),
}

/// Receives results.
pub(crate) type Take<'a> = dyn FnMut(&Progress, Taken) -> Result<(), CommandError> + 'a;

/// Why results were not passed on.
pub(crate) enum NotTaken {
    Fetching(ClientError),
    Taking(CommandError),
}

impl From<NotTaken> for CommandError {
    fn from(error: NotTaken) -> CommandError {
        match error {
            NotTaken::Fetching(error) => error.into(),
            NotTaken::Taking(error) => error,
        }
    }
}

/// Fetches a long value into its row.
pub(crate) async fn fetch_value(client: &Client, row: &mut TaskRow) -> Result<(), NotTaken> {
    long_values(client, std::slice::from_ref(row)).fetch(row).await
}

/// Passes on rows, with their long outputs.
async fn hand_on(
    client: &Client,
    rows: Vec<TaskRow>,
    (outputs, values): (LongOutputs, bool),
    progress: &Progress,
    take: &mut Take<'_>,
) -> Result<(), NotTaken> {
    let is_short = |row: &TaskRow| outputs == LongOutputs::Left || (row.stdout.is_whole() && row.stderr.is_whole());
    if rows.iter().all(|row| is_short(row) && (!values || row.value_size.is_none())) {
        return take(progress, Taken::Rows(rows)).map_err(NotTaken::Taking);
    }
    let mut long = long_values(client, if values { &rows } else { &[] });
    for mut row in rows {
        let (task, run) = (row.task, row.run);
        if values {
            long.fetch(&mut row).await?;
        }
        for (stream, output) in row.outputs() {
            if outputs == LongOutputs::Left {
                break;
            }
            if output.is_whole() && (outputs == LongOutputs::Fetched || output.is_empty()) {
                continue;
            }
            let mut piece = std::mem::take(output);
            let size = piece.size;
            let (mut start, mut whole) = (0, Vec::new());
            loop {
                start += piece.bytes.len() as u64;
                match outputs {
                    LongOutputs::Streamed => take(progress, Taken::Piece(stream, piece.bytes)).map_err(NotTaken::Taking)?,
                    _ => whole.extend_from_slice(&piece.bytes),
                }
                if start >= size {
                    break;
                }
                let (_, bytes) = client.output(task, Some(run), stream, start).await.map_err(NotTaken::Fetching)?;
                if bytes.is_empty() {
                    let what = format!("the {} of task {task} is truncated at {start} of {size} bytes", stream.as_str());
                    return Err(NotTaken::Taking(CommandError::internal(what)));
                }
                piece = Output::whole(bytes);
            }
            if outputs == LongOutputs::Fetched {
                *output = Output::whole(whole);
            }
        }
        take(progress, Taken::Rows(vec![row])).map_err(NotTaken::Taking)?;
    }
    Ok(())
}

pub(crate) struct Feed {
    pub task: JoinHandle<Result<u32, ClientError>>,
    pub feeding: Feeding,
    /// Cancelled by Ctrl-C.
    pub is_stream: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapEnd {
    Complete,
    /// The map continues.
    Detached,
    Cancelled,
}

impl Job<'_> {
    /// Passes every result to `take`, in input order, until the map is complete or the user interrupts.
    pub(crate) async fn follow(
        mut self,
        interrupts: &mut Interrupts,
        progress: &mut Progress,
        take: &mut Take<'_>,
    ) -> Result<(MapEnd, Counts), CommandError> {
        let every = Duration::from_millis(if self.context.terminal.stderr { 250 } else { 1000 });
        let (sender, mut updates) = mpsc::channel(4);
        let mut watch = self.client.with_timeout(CONTROLLER_TIMEOUT).watch(self.map, every);
        if !self.inputs {
            watch = watch.without_inputs();
        }
        let watcher = tokio::spawn(async move {
            loop {
                let update = watch.next().await.transpose();
                let Some(update) = update else { return };
                let failed = update.is_err();
                if sender.send(update).await.is_err() || failed {
                    return;
                }
            }
        });
        let watcher = AbortOnDrop(watcher);
        let mut counts = Counts::default();
        let mut engines = EngineNotes::default();
        let mut silence_reported = false;
        let mut stalled = Stalled::new(&self.client, self.map, Jobs::of(self.context));
        let mut clock = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = clock.tick() => {
                    let silent = self.client.silent_for() > SILENT;
                    if silent && !silence_reported {
                        progress.suspend(|| self.note_silence());
                    }
                    silence_reported = silent;
                    stalled.begin();
                }
                line = stalled.explained() => self.show_explanation(&mut stalled, line, progress),
                update = updates.recv() => match update {
                    Some(Ok(Update { counts: now, engines: able, results, .. })) => {
                        counts = now;
                        stalled.note(counts.done(), progress);
                        self.note_engines(&mut engines, able, &counts, progress).await;
                        progress.update(&counts, self.total, able);
                        let client = self.client.with_timeout(CONTROLLER_TIMEOUT);
                        let taken = tokio::select! {
                            taken = hand_on(&client, results, (self.outputs, self.values), progress, take) => Some(taken),
                            () = interrupts.next() => None,
                        };
                        match taken {
                            Some(Ok(())) => {}
                            Some(Err(NotTaken::Fetching(error))) => return Err(self.lost_sight(error)),
                            Some(Err(NotTaken::Taking(error))) => {
                                progress.clear();
                                return Err(self.nowhere_to_write(error).await);
                            }
                            None => {
                                drop(watcher);
                                return Ok((self.interrupted(interrupts, progress).await?, counts));
                            }
                        }
                    }
                    Some(Err(error)) => return Err(self.lost_sight(error)),
                    None => {
                        drop(watcher);
                        self.end_of_feed().await?;
                        return Ok((MapEnd::Complete, counts));
                    }
                },
                fed = fed(&mut self.feed) => self.total = Some(u64::from(self.fed(fed)?)),
                () = interrupts.next() => {
                    drop(watcher);
                    return Ok((self.interrupted(interrupts, progress).await?, counts));
                }
            }
        }
    }

    async fn interrupted(&mut self, interrupts: &mut Interrupts, progress: &Progress) -> Result<MapEnd, CommandError> {
        progress.clear();
        match self.detachable {
            true => self.detach(interrupts).await,
            false => self.cancel().await,
        }
    }

    /// Reports once that no engine can run the tasks, with the reason, and once that some can.
    async fn note_engines(&self, notes: &mut EngineNotes, able: u32, counts: &Counts, progress: &Progress) {
        match notes.note(Instant::now(), able, counts.pending()) {
            Some(true) => {
                let status = self.client.status().await;
                let reasons = status.map(|status| unavailable_engines(&status.engines)).unwrap_or_default();
                progress.suspend(|| {
                    self.context.note(format!(
                        "note: no engine can run the tasks of map {} yet; waiting for one",
                        self.map
                    ));
                    reasons.iter().for_each(|reason| self.context.note(reason));
                    self.context
                        .note(format!("hint: list the engines with `pcluster engines{}`", self.context.options()));
                });
            }
            Some(false) => progress.suspend(|| self.context.note(format!("note: {able} engines are available now"))),
            None => {}
        }
    }

    /// Shows why the map does not get on: below the progress bar, else once and again when the reasons change.
    fn show_explanation(&self, stalled: &mut Stalled, line: Option<Line>, progress: &mut Progress) {
        let Some(line) = line else { return };
        let is_new = stalled.is_new(&line);
        if progress.is_visible() {
            progress.explain(Some(&visible(&line.text)), usize::from(self.context.terminal.width));
        } else if is_new && !line.kinds.is_empty() {
            self.context.note(format!("note: map {}: {}", self.map, line.text));
        }
    }

    fn note_silence(&self) {
        let seconds = self.client.silent_for().as_secs();
        self.context.note(format!(
            "note: the controller at {} has not answered for {seconds} s; still trying",
            self.client.address()
        ));
        if self.detachable {
            let options = self.context.options();
            self.context.note(format!(
                "hint: check it with `pcluster list`; `pcluster start{options}` restarts it with its tasks"
            ));
        }
    }

    fn fed(&mut self, fed: Result<Result<u32, ClientError>, tokio::task::JoinError>) -> Result<u32, CommandError> {
        self.feed = None;
        match fed {
            Ok(Ok(count)) => Ok(count),
            Ok(Err(error)) => Err(self.lost_sight(error)),
            Err(error) => Err(CommandError::internal(format!("sending inputs failed: {error}"))),
        }
    }

    async fn end_of_feed(&mut self) -> Result<(), CommandError> {
        if let Some(feed) = self.feed.take() {
            let fed = feed.task.await;
            self.fed(fed)?;
        }
        Ok(())
    }

    /// Detaches from the map; a second Ctrl-C within a short time cancels it.
    async fn detach(&mut self, interrupts: &mut Interrupts) -> Result<MapEnd, CommandError> {
        let (map, options) = (self.map, self.context.options());
        let mut stopped_feed = None;
        if let Some(feed) = &self.feed {
            if feed.is_stream {
                feed.feeding.stop();
            }
            stopped_feed = feed.is_stream.then(|| feed.feeding.clone());
        }
        self.context
            .note(format!("\nmap {map} continues in the background; press Ctrl-C again to cancel it"));
        let delay = tokio::time::sleep(SECOND);
        tokio::select! {
            done = async { self.end_of_feed().await?; delay.await; Ok(()) } => done.map_err(|e: CommandError| e)?,
            () = interrupts.next_interrupt() => return self.cancel().await,
        }
        if let Some(feeding) = stopped_feed {
            self.context.note(format!(
                "note: not all inputs were sent; the map has the first {}",
                feeding.submitted()
            ));
        }
        self.context.note(return_hints(map, &options));
        Ok(MapEnd::Detached)
    }

    /// Results can no longer be written: the map continues, with all inputs that can still be sent.
    async fn nowhere_to_write(&mut self, error: CommandError) -> CommandError {
        if !self.detachable {
            return error;
        }
        if let Some(feed) = self.feed.as_ref().filter(|feed| feed.is_stream) {
            feed.feeding.stop();
        }
        if let Err(error) = self.end_of_feed().await {
            return error;
        }
        let options = self.context.options();
        self.context
            .note(format!("stdout closed; map {} continues in the background", self.map));
        self.context.note(return_hints(self.map, &options));
        error
    }

    async fn cancel(&mut self) -> Result<MapEnd, CommandError> {
        if let Some(feed) = &self.feed {
            feed.feeding.stop();
        }
        self.end_of_feed().await?;
        let maps = vec![self.map];
        let reply = self
            .client
            .cancel(Selection {
                maps,
                ..Selection::default()
            })
            .await?;
        self.context
            .note(format!("\nmap {} cancelled: {} tasks were unfinished", self.map, reply.changed));
        Ok(MapEnd::Cancelled)
    }

    /// A connection error, with the hint that the map may still be running.
    fn lost_sight(&self, error: ClientError) -> CommandError {
        let unreachable = error.is_unreachable();
        let error = CommandError::from(error);
        match unreachable && self.detachable {
            true => error.hint(format!(
                "map {} may still be running; when the controller answers again: pcluster wait{} {0}",
                self.map,
                self.context.options()
            )),
            false => error,
        }
    }
}

/// How to return to a map.
pub(crate) fn return_hints(map: MapId, options: &str) -> String {
    format!(
        "wait for it:  pcluster wait{options} {map}\nsee results:  pcluster results{options} {map}\ncancel it:    pcluster cancel{options} {map}"
    )
}

async fn fed(feed: &mut Option<Feed>) -> Result<Result<u32, ClientError>, tokio::task::JoinError> {
    match feed {
        Some(feed) => (&mut feed.task).await,
        None => std::future::pending().await,
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// When to report that there are no engines.
#[derive(Default)]
struct EngineNotes {
    without_since: Option<Instant>,
    reported: bool,
}

impl EngineNotes {
    /// `Some(true)`: report that there are none; `Some(false)`: that there are some again.
    fn note(&mut self, now: Instant, able: u32, pending: u64) -> Option<bool> {
        if able > 0 || pending == 0 {
            self.without_since = None;
            return std::mem::take(&mut self.reported).then_some(false).filter(|_| able > 0);
        }
        let since = *self.without_since.get_or_insert(now);
        if !self.reported && now.duration_since(since) >= NO_ENGINES {
            self.reported = true;
            return Some(true);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_engines_are_reported_once_after_a_delay() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut notes = EngineNotes::default();
        assert_eq!(notes.note(start, 0, 5), None);
        assert_eq!(notes.note(after(2), 0, 5), None);
        assert_eq!(notes.note(after(3), 0, 5), Some(true));
        assert_eq!(notes.note(after(9), 0, 5), None);
        assert_eq!(notes.note(after(10), 2, 5), Some(false));
        assert_eq!(notes.note(after(11), 2, 5), None);
        assert_eq!(notes.note(after(12), 0, 5), None);
        assert_eq!(notes.note(after(20), 0, 0), None);
        assert_eq!(notes.note(after(21), 0, 5), None);
    }
}

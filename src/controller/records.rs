//! The records, on two threads: one writes batches of changes, the other answers queries from committed data.
//!
//! Waking a thread takes longer than committing a few changes, so the caller itself writes a small batch or answers a small query
//! while the thread is idle. Large ones go to the threads, as does everything after them until they are done.
use super::answers::{Response, respond};
use super::clock::unix_now;
use super::core::{Event, Query, QueryKind};
use super::rescue::{self, Copy};
use crate::db::{Reader, Writer};
use crate::model::change::{Attempt, Change};
use crate::wire::content::error::ErrorContent;
use crate::wire::message::to_json;
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Between two attempts to write a failed batch.
const RETRY: Duration = Duration::from_secs(1);
/// One of this many failed attempts is logged.
const LOG_EVERY: u32 = 30;
/// A batch is small up to this [`weight`].
const SMALL: usize = 64;
/// Bytes that weigh as much as one change.
const BYTES: usize = 4096;
/// After a commit that took this long,
const SLOW: Duration = Duration::from_millis(20);
/// as on a busy disk or a network file system, batches go to the thread for this long.
const SLOW_FOR: Duration = Duration::from_millis(500);
/// The maximum number of results of a small query.
const FEW: u64 = 8;
/// Before each cleanup step: batches have priority,
const TIDY_PAUSE: Duration = Duration::from_millis(5);
/// but there is a step at least this often, even under load.
const TIDY_AT_LEAST: Duration = Duration::from_millis(250);

pub(super) struct Records {
    writer: Arc<Mutex<Writer>>,
    /// Reads on the writer's connection, whose page cache holds the last commit.
    reader: Reader,
    /// Queries that the thread has not answered.
    pending_queries: usize,
    slow_until: Option<Instant>,
    changes: Option<std_mpsc::Sender<Vec<Change>>>,
    queries: Option<std_mpsc::Sender<Query>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    copy: Arc<Mutex<Option<Copy>>>,
    /// Dropped to stop the thread that watches the file.
    watched: Option<std_mpsc::Sender<()>>,
}

/// A message from the records' threads.
pub(super) enum DbReply {
    /// The batch is on disk.
    Committed,
    /// The thread's reply to a query.
    FromThread(Box<DbReply>),
    /// For a client.
    Answer {
        query: Box<Query>,
        content: Bytes,
        buffers: Vec<Bytes>,
    },
    /// For the core.
    Event(Box<Event>),
}

impl Records {
    pub(super) fn start(writer: Writer, reader: Reader) -> std::io::Result<(Records, mpsc::UnboundedReceiver<DbReply>)> {
        let (replies, receiver) = mpsc::unbounded_channel();
        let (changes, to_write) = std_mpsc::channel();
        let (queries, to_answer) = std_mpsc::channel();
        let committed = replies.clone();
        let quick = writer.own_reader();
        let writer = Arc::new(Mutex::new(writer));
        let to_share = writer.clone();
        let (watched, until) = std_mpsc::channel();
        let (copy, to_watch) = (Arc::<Mutex<Option<Copy>>>::default(), writer.clone());
        let copied = copy.clone();
        let threads = vec![
            std::thread::Builder::new()
                .name("records-watch".into())
                .spawn(move || rescue::watch(&to_watch, &copied, &until, unix_now))?,
            std::thread::Builder::new()
                .name("records-write".into())
                .spawn(move || write(&to_share, &to_write, &committed))?,
            std::thread::Builder::new()
                .name("records-read".into())
                .spawn(move || answer(&reader, &to_answer, &replies))?,
        ];
        Ok((
            Records {
                writer,
                reader: quick,
                pending_queries: 0,
                slow_until: None,
                changes: Some(changes),
                queries: Some(queries),
                threads,
                copy,
                watched: Some(watched),
            },
            receiver,
        ))
    }

    /// Returns true if the batch is on disk; otherwise [`DbReply::Committed`] follows. Write nothing else until then.
    pub(super) fn write(&mut self, batch: Vec<Change>) -> bool {
        if self.slow_until.is_none_or(|until| until <= Instant::now())
            && self.is_free()
            && batch.iter().map(weight).sum::<usize>() <= SMALL
            && let Ok(mut writer) = self.writer.try_lock()
        {
            let began = Instant::now();
            // The thread reports the error and retries.
            let done = writer.apply(&batch).is_ok();
            if began.elapsed() > SLOW || !done {
                self.slow_until = Some(Instant::now() + SLOW_FOR);
            }
            if done {
                return true;
            }
        }
        if let Some(changes) = &self.changes {
            // The thread ends only after this sender.
            let _ = changes.send(batch);
        }
        false
    }

    /// Returns the answer if it is available immediately; otherwise the thread sends it, and the caller must call [`Records::query_done`].
    pub(super) fn query(&mut self, query: Query) -> Option<DbReply> {
        if is_small(&query.kind) && self.is_free() {
            return Some(reply_for(&self.reader, query));
        }
        if let Some(queries) = &self.queries {
            self.pending_queries += 1;
            let _ = queries.send(query);
        }
        None
    }

    /// True if no long read uses the writer's connection.
    fn is_free(&self) -> bool {
        self.pending_queries == 0 || self.writer.try_lock().is_ok_and(|writer| !writer.is_exclusive())
    }

    /// The thread has answered a query.
    pub(super) fn query_done(&mut self) {
        self.pending_queries = self.pending_queries.saturating_sub(1);
    }

    /// Waits until everything is written and the file is closed. Returns false if closing failed.
    pub(super) fn close(mut self) -> bool {
        self.changes = None;
        self.queries = None;
        self.watched = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let Records { writer, reader, copy, .. } = self;
        drop(reader);
        let orphaned = {
            let writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            let mut copy = copy.lock().unwrap_or_else(PoisonError::into_inner);
            rescue::save(&writer, &mut copy, Duration::ZERO, unix_now);
            rescue::orphaned_files(&writer, &copy)
        };
        if let Some(writer) = Arc::into_inner(writer)
            && let Err(error) = writer.into_inner().unwrap_or_else(PoisonError::into_inner).close()
        {
            tracing::warn!(%error, "cannot close the database cleanly");
            return false;
        }
        // The copy has their content, and the next database could not be opened next to them.
        orphaned.iter().for_each(|path| drop(std::fs::remove_file(path)));
        true
    }
}

/// The approximate cost of writing a change; a small change costs 1.
fn weight(change: &Change) -> usize {
    let all = |buffers: &[Bytes]| buffers.iter().map(Bytes::len).sum::<usize>();
    let (steps, bytes) = match change {
        Change::TasksAdded { inputs, .. } => (inputs.len(), all(inputs)),
        Change::TasksAssigned { count, .. } => (*count as usize, 0),
        Change::JobsSeen { jobs } => (jobs.len(), 0),
        Change::TaskFinished { outcome: o, .. } => (1, o.bytes()),
        Change::TaskReturned {
            attempt: Some(Attempt { outcome: o, .. }),
            ..
        } => (1, o.bytes()),
        Change::OutputAdded { bytes, .. } => (1, bytes.len()),
        Change::RequestAdded { request, .. } => (1, request.content.len() + all(&request.buffers)),
        Change::RequestFinished { reply, .. } => (1, reply.content.len() + all(&reply.buffers)),
        // These go through all tasks of a map.
        Change::MapReleased { .. } | Change::Purged { .. } => (SMALL + 1, 0),
        _ => (1, 0),
    };
    steps.saturating_add(bytes / BYTES)
}

fn is_small(kind: &QueryKind) -> bool {
    matches!(kind, QueryKind::Watch { most, .. } if *most <= FEW)
}

fn write(writer: &Mutex<Writer>, batches: &std_mpsc::Receiver<Vec<Change>>, replies: &mpsc::UnboundedSender<DbReply>) {
    let mut tidied = Instant::now();
    while let Some(batch) = next(writer, batches, &mut tidied) {
        // Nothing is reported before it is on disk, so a batch is retried until it succeeds: a full disk may be freed.
        let since = Instant::now();
        let mut tries = 0;
        while let Err(error) = writer.lock().unwrap_or_else(PoisonError::into_inner).apply(&batch) {
            if tries % LOG_EVERY == 0 {
                tracing::error!(%error, hint = error.hint(), "cannot write the records; retrying, and sending no replies until then");
            }
            tries += 1;
            std::thread::sleep(RETRY);
            if replies.is_closed() {
                return;
            }
        }
        if tries > 0 {
            tracing::warn!("writing the records succeeded after {:.0} s", since.elapsed().as_secs_f64());
        }
        if replies.send(DbReply::Committed).is_err() {
            return;
        }
    }
}

/// Waits for the next batch. Meanwhile, and periodically under load, runs one cleanup step after a purge at a time.
fn next(writer: &Mutex<Writer>, batches: &std_mpsc::Receiver<Vec<Change>>, tidied: &mut Instant) -> Option<Vec<Change>> {
    let mut pause = TIDY_PAUSE;
    let writer = || writer.lock().unwrap_or_else(PoisonError::into_inner);
    while writer().is_untidy() {
        if tidied.elapsed() < TIDY_AT_LEAST {
            match batches.recv_timeout(pause) {
                Ok(batch) => return Some(batch),
                Err(std_mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(std_mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
        *tidied = Instant::now();
        if let Err(error) = writer().tidy() {
            tracing::warn!(%error, "cleanup of the records postponed");
            pause = RETRY;
        }
    }
    batches.recv().ok()
}

fn answer(reader: &Reader, queries: &std_mpsc::Receiver<Query>, replies: &mpsc::UnboundedSender<DbReply>) {
    while let Ok(query) = queries.recv() {
        let reply = DbReply::FromThread(Box::new(reply_for(reader, query)));
        if replies.send(reply).is_err() {
            return;
        }
    }
}

fn reply_for(reader: &Reader, query: Query) -> DbReply {
    match respond(reader, &query) {
        Ok(Response::Content(content, buffers)) => DbReply::Answer {
            query: Box::new(query),
            content,
            buffers,
        },
        Ok(Response::Event(event)) => DbReply::Event(event),
        Err(error) => {
            let mut content = ErrorContent::new("DatabaseError", error.to_string());
            content.hint = error.hint();
            DbReply::Answer {
                query: Box::new(query),
                content: to_json(&content),
                buffers: vec![],
            }
        }
    }
}

//! Reads a worker's records.
use super::process::WorkerEvent;
use super::protocol::{RECORD_HEAD, Record, RecordHead, record_head};
use bytes::Bytes;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

/// Maximum length of a record.
const MAX_RECORD: usize = 1 << 36;
/// Bytes requested in one read.
const CHUNK: usize = 256 << 10;
/// When records arrive with less than this gap between them,
const BURST_GAP: Duration = Duration::from_micros(100);
/// ... this many times in a row,
const BURST_COUNT: u32 = 3;
/// ... reading pauses for this time, to receive many records at once.
const GATHER_DELAY: Duration = Duration::from_millis(1);

/// Why a worker's records cannot be read; its subject is the worker.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("could not be monitored")]
    Unmonitored,
    #[error("could not be read ({0})")]
    Unreadable(io::Error),
    #[error("wrote a malformed record into the engine's pipe")]
    Malformed,
    #[error("sent a record without its positions")]
    NoPositions,
    #[error("sent {0} bytes at once, for which there is not enough memory")]
    TooLong(usize),
    #[error("lost a record")]
    Lost,
}

/// Reads until the worker has ended (`wake` is dropped) and its pipe is empty. Kills a worker that sends a malformed record, and
/// returns the reason. For each message of `sync` it sends [`WorkerEvent::OutputSynced`] after all records that were in the pipe.
pub(super) async fn read_records(
    records: OwnedFd,
    mut wake: oneshot::Receiver<()>,
    mut sync: UnboundedReceiver<()>,
    number: u64,
    events: &UnboundedSender<(u64, WorkerEvent)>,
    kill: impl Fn(),
) -> Option<RecordError> {
    let Ok(records) = Receiver::from_owned_fd(records) else {
        kill();
        return Some(RecordError::Unmonitored);
    };
    let mut reader = RecordReader::default();
    let (mut since, mut burst) = (Instant::now(), 0);
    let (mut ended, mut closed, mut syncing, mut sync_closed) = (false, false, false, false);
    let mut broken = None;
    loop {
        if !ended && !syncing {
            tokio::select! {
                // Closed while the process is running: wait for its exit.
                ready = records.readable(), if !closed => if ready.is_err() {
                    return broken;
                },
                _ = &mut wake => ended = true,
                // None: no more sync requests.
                request = sync.recv(), if !sync_closed => {
                    syncing = request.is_some();
                    sync_closed = !syncing;
                }
            }
        }
        burst = if since.elapsed() < BURST_GAP { burst + 1 } else { 0 };
        let mut found = Vec::new();
        let outcome = match ended || syncing {
            false => reader.read(&mut NonBlocking(&records), &mut found),
            true => reader.read(&mut Direct(&records), &mut found),
        };
        if !found.is_empty() && broken.is_none() && events.send((number, WorkerEvent::Records(found))).is_err() {
            return broken;
        }
        match outcome {
            Ok(ReadResult::Data) => {}
            Ok(_) if ended => return broken,
            Ok(got) => {
                closed |= got == ReadResult::End;
                if std::mem::take(&mut syncing) && events.send((number, WorkerEvent::OutputSynced)).is_err() {
                    return broken;
                }
            }
            Err(why) => {
                broken.get_or_insert(why);
                kill();
                if ended {
                    return broken;
                }
                reader = RecordReader::default();
            }
        }
        if !ended && !syncing && burst >= BURST_COUNT {
            tokio::time::sleep(GATHER_DELAY).await;
        }
        since = Instant::now();
    }
}

/// Reads available bytes through the runtime.
struct NonBlocking<'a>(&'a Receiver);

impl Read for NonBlocking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

/// Reads directly: the runtime may not have noticed available bytes yet.
struct Direct<'a>(&'a Receiver);

impl Read for Direct<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(self.0, buffer)?)
    }
}

/// The result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadResult {
    Data,
    Nothing,
    /// End of file.
    End,
}

/// Splits a byte stream into records.
#[derive(Default)]
struct RecordReader {
    buffer: Vec<u8>,
    /// Buffer of a single read. Reading into `buffer` directly would require zeroing it each time.
    chunk: Vec<u8>,
    start: usize,
    /// A partially received long record: its head and the bytes of its body.
    long: Option<(RecordHead, Vec<u8>)>,
}

impl RecordReader {
    /// Reads available bytes: one chunk, or a part of a long body.
    fn read(&mut self, file: &mut impl Read, found: &mut Vec<Record>) -> Result<ReadResult, RecordError> {
        if let Some((head, body)) = &mut self.long {
            let missing = head.length - body.len();
            let before = body.len();
            let outcome = Read::by_ref(file).take(missing as u64).read_to_end(body);
            let progressed = body.len() > before;
            if body.len() == head.length {
                let (head, body) = self.long.take().ok_or(RecordError::Lost)?;
                found.push(head.with(Bytes::from(body)).ok_or(RecordError::NoPositions)?);
                return Ok(ReadResult::Data);
            }
            return match outcome {
                _ if progressed => Ok(ReadResult::Data),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(ReadResult::Nothing),
                Err(e) => Err(RecordError::Unreadable(e)),
                Ok(_) => Ok(ReadResult::End),
            };
        }
        self.chunk.resize(CHUNK, 0);
        let (count, got) = match file.read(&mut self.chunk) {
            Ok(0) => (0, ReadResult::End),
            Ok(count) => (count, ReadResult::Data),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => (0, ReadResult::Nothing),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => (0, ReadResult::Data),
            Err(e) => return Err(RecordError::Unreadable(e)),
        };
        self.buffer.extend_from_slice(&self.chunk[..count]);
        self.cut(found)?;
        Ok(got)
    }

    fn cut(&mut self, found: &mut Vec<Record>) -> Result<(), RecordError> {
        while let Some(head) = self.buffer[self.start..].first_chunk::<RECORD_HEAD>() {
            let head = record_head(head);
            if !b"HVPEBIANL".contains(&head.kind) || head.length > MAX_RECORD {
                return Err(RecordError::Malformed);
            }
            let body = self.start + RECORD_HEAD;
            let available = self.buffer.len() - body;
            if available < head.length {
                if head.length > CHUNK {
                    let mut long = Vec::new();
                    long.try_reserve_exact(head.length).map_err(|_| RecordError::TooLong(head.length))?;
                    long.extend_from_slice(&self.buffer[body..]);
                    self.long = Some((head, long));
                    self.buffer.clear();
                    self.start = 0;
                }
                break;
            }
            let bytes = Bytes::copy_from_slice(&self.buffer[body..body + head.length]);
            found.push(head.with(bytes).ok_or(RecordError::NoPositions)?);
            self.start = body + head.length;
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        Ok(())
    }
}

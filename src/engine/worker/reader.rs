//! Reading what the worker says.
use super::process::WorkerEvent;
use super::protocol::{RECORD_HEAD, Record, RecordHead, record_head};
use bytes::Bytes;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

/// No record is longer.
const LONGEST_RECORD: usize = 1 << 36;
/// Bytes asked for in one read.
const CHUNK: usize = 256 << 10;
/// Records that come so close to each other,
const CLOSE: Duration = Duration::from_micros(100);
/// ... so often in a row,
const OFTEN: u32 = 3;
/// ... are left to gather for so long: they come many at a time then.
const GATHER: Duration = Duration::from_millis(1);

/// Reads until the worker has ended (`wake` is dropped) and its pipe is empty; a worker that sends nonsense is killed, with the
/// reason. For each word of `look`: [`WorkerEvent::Looked`] when all has been told that was in the pipe by then.
pub async fn read_records(
    records: OwnedFd,
    mut wake: oneshot::Receiver<()>,
    mut look: UnboundedReceiver<()>,
    number: u64,
    events: &UnboundedSender<(u64, WorkerEvent)>,
    kill: impl Fn(),
) -> Option<String> {
    let Ok(records) = Receiver::from_owned_fd(records) else {
        kill();
        return Some("could not be listened to".into());
    };
    let mut reader = RecordReader::default();
    let (mut since, mut close) = (Instant::now(), 0);
    let (mut ended, mut closed, mut looked, mut blind) = (false, false, false, false);
    let mut broken = None;
    loop {
        if !ended && !looked {
            tokio::select! {
                // Closed, though the process is there: its exit is what counts.
                ready = records.readable(), if !closed => if ready.is_err() {
                    return broken;
                },
                _ = &mut wake => ended = true,
                // None is left who could look.
                asked = look.recv(), if !blind => {
                    looked = asked.is_some();
                    blind = !looked;
                }
            }
        }
        close = if since.elapsed() < CLOSE { close + 1 } else { 0 };
        let mut found = Vec::new();
        let outcome = match ended || looked {
            false => reader.read(&mut Now(&records), &mut found),
            true => reader.read(&mut AtTheEnd(&records), &mut found),
        };
        if !found.is_empty() && broken.is_none() && events.send((number, WorkerEvent::Records(found))).is_err() {
            return broken;
        }
        match outcome {
            Ok(Got::Something) => {}
            Ok(_) if ended => return broken,
            Ok(got) => {
                closed |= got == Got::End;
                if std::mem::take(&mut looked) && events.send((number, WorkerEvent::Looked)).is_err() {
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
        if !ended && !looked && close >= OFTEN {
            tokio::time::sleep(GATHER).await;
        }
        since = Instant::now();
    }
}

/// Reads what is there now.
struct Now<'a>(&'a Receiver);

impl Read for Now<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

/// The same when the runtime may not have heard yet of what is there.
struct AtTheEnd<'a>(&'a Receiver);

impl Read for AtTheEnd<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(self.0, buffer)?)
    }
}

/// What came of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Got {
    Something,
    Nothing,
    /// There will not be more.
    End,
}

/// Cuts a byte stream into records.
#[derive(Default)]
struct RecordReader {
    buffer: Vec<u8>,
    /// Where a read goes first: to make room for it in `buffer` each time would be to clear that.
    chunk: Vec<u8>,
    start: usize,
    /// A long record on its way: its head, and the body as far as it has come.
    long: Option<(RecordHead, Vec<u8>)>,
}

impl RecordReader {
    /// Reads what is there, one chunk or one long body.
    fn read(&mut self, file: &mut impl Read, found: &mut Vec<Record>) -> Result<Got, String> {
        if let Some((head, body)) = &mut self.long {
            let missing = head.length - body.len();
            let before = body.len();
            let outcome = Read::by_ref(file).take(missing as u64).read_to_end(body);
            let progressed = body.len() > before;
            if body.len() == head.length {
                let (head, body) = self.long.take().ok_or("lost a record")?;
                found.push(head.with(Bytes::from(body)).ok_or("sent a record without its positions")?);
                return Ok(Got::Something);
            }
            return match outcome {
                _ if progressed => Ok(Got::Something),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Got::Nothing),
                Err(e) => Err(format!("could not be read ({e})")),
                Ok(_) => Ok(Got::End),
            };
        }
        self.chunk.resize(CHUNK, 0);
        let (count, got) = match file.read(&mut self.chunk) {
            Ok(0) => (0, Got::End),
            Ok(count) => (count, Got::Something),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => (0, Got::Nothing),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => (0, Got::Something),
            Err(e) => return Err(format!("could not be read ({e})")),
        };
        self.buffer.extend_from_slice(&self.chunk[..count]);
        self.cut(found)?;
        Ok(got)
    }

    fn cut(&mut self, found: &mut Vec<Record>) -> Result<(), String> {
        while let Some(head) = self.buffer[self.start..].first_chunk::<RECORD_HEAD>() {
            let head = record_head(head);
            if !b"HVPEBIANL".contains(&head.kind) || head.length > LONGEST_RECORD {
                return Err("wrote what is not a record into the engine's pipe".into());
            }
            let body = self.start + RECORD_HEAD;
            let there = self.buffer.len() - body;
            if there < head.length {
                if head.length > CHUNK {
                    let mut long = Vec::new();
                    long.try_reserve_exact(head.length)
                        .map_err(|_| format!("sent {} bytes at once, for which there is no memory", head.length))?;
                    long.extend_from_slice(&self.buffer[body..]);
                    self.long = Some((head, long));
                    self.buffer.clear();
                    self.start = 0;
                }
                break;
            }
            let bytes = Bytes::copy_from_slice(&self.buffer[body..body + head.length]);
            found.push(head.with(bytes).ok_or("sent a record without its positions")?);
            self.start = body + head.length;
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        Ok(())
    }
}

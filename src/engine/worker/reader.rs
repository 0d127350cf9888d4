//! Reading what the worker says, on a thread of its own.
use super::process::{WorkerEvent, signal_group};
use super::protocol::{RECORD_HEAD, Record, RecordHead, record_head};
use bytes::Bytes;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// No record is longer.
const LONGEST_RECORD: usize = 1 << 36;
/// Bytes asked for in one read.
const CHUNK: usize = 256 << 10;
/// While records come this close to each other, the reader waits as long between reads: they come many at a time then.
const CLOSE: Duration = Duration::from_micros(250);

/// Reads until the worker has ended and its pipe is empty; a worker that sends nonsense is killed, with the reason. For each
/// byte in `look`: [`WorkerEvent::Looked`] when all has been told that was in the pipe by then.
pub fn read_records(
    records: OwnedFd,
    wake: OwnedFd,
    look: OwnedFd,
    number: u64,
    events: &UnboundedSender<(u64, WorkerEvent)>,
    pid: i32,
) -> Option<String> {
    let mut file = std::fs::File::from(records);
    let mut look = Some(std::fs::File::from(look));
    let mut reader = RecordReader::default();
    let mut last = Instant::now();
    let (mut ended, mut closed, mut looked) = (false, false, false);
    let mut broken = None;
    loop {
        if !ended && !looked {
            let input = |fd| PollFd::new(fd, PollFlags::POLLIN);
            // Closed, though the process is there: its exit is what counts.
            let pipe = (!closed).then(|| input(file.as_fd()));
            let mut waiting: Vec<PollFd> = pipe.into_iter().chain([input(wake.as_fd())]).collect();
            waiting.extend(look.as_ref().map(|look| input(look.as_fd())));
            match poll(&mut waiting, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                Err(_) => return broken,
                Ok(_) => {}
            }
            let mut flags = waiting.iter().map(|fd| fd.revents().unwrap_or(PollFlags::POLLERR));
            let said = if closed {
                PollFlags::empty()
            } else {
                flags.next().unwrap_or(PollFlags::POLLERR)
            };
            closed |= said == PollFlags::POLLHUP;
            ended = flags.next().is_some_and(|flags| !flags.is_empty());
            if flags.next().is_some_and(|flags| !flags.is_empty()) {
                drop(flags);
                looked = matches!(look.as_mut().map(|look| look.read(&mut [0; 64])), Some(Ok(1..)));
                // Nobody is left who could look.
                look = look.filter(|_| looked);
            }
        }
        let mut found = Vec::new();
        let outcome = reader.read(&mut file, &mut found);
        if !found.is_empty() && broken.is_none() && events.send((number, WorkerEvent::Records(found))).is_err() {
            return broken;
        }
        match outcome {
            Ok(true) => {}
            Ok(false) if ended => return broken,
            Ok(false) if looked => {
                looked = false;
                if events.send((number, WorkerEvent::Looked)).is_err() {
                    return broken;
                }
            }
            Ok(false) => {}
            Err(why) => {
                broken.get_or_insert(why);
                signal_group(pid, nix::libc::SIGKILL);
                if ended {
                    return broken;
                }
                reader = RecordReader::default();
            }
        }
        let now = Instant::now();
        if !ended && !looked && now - last < 2 * CLOSE {
            std::thread::sleep(CLOSE);
        }
        last = now;
    }
}

/// Cuts a byte stream into records.
#[derive(Default)]
struct RecordReader {
    buffer: Vec<u8>,
    start: usize,
    /// A long record on its way: its head, and the body as far as it has come.
    long: Option<(RecordHead, Vec<u8>)>,
}

impl RecordReader {
    /// Reads what is there, one chunk or one long body; false when nothing was.
    fn read(&mut self, file: &mut std::fs::File, found: &mut Vec<Record>) -> Result<bool, String> {
        if let Some((head, body)) = &mut self.long {
            let missing = head.length - body.len();
            let before = body.len();
            let outcome = Read::by_ref(file).take(missing as u64).read_to_end(body);
            let progressed = body.len() > before;
            if body.len() == head.length {
                let (head, body) = self.long.take().ok_or("lost a record")?;
                found.push(head.with(Bytes::from(body)).ok_or("sent a record without its positions")?);
                return Ok(true);
            }
            return match outcome {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(progressed),
                Err(e) => Err(format!("could not be read ({e})")),
                Ok(_) => Ok(progressed),
            };
        }
        let old = self.buffer.len();
        self.buffer.resize(old + CHUNK, 0);
        let count = match file.read(&mut self.buffer[old..]) {
            Ok(count) => count,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(e) => return Err(format!("could not be read ({e})")),
        };
        self.buffer.truncate(old + count);
        self.cut(found)?;
        Ok(count > 0)
    }

    fn cut(&mut self, found: &mut Vec<Record>) -> Result<(), String> {
        while let Some(head) = self.buffer[self.start..].first_chunk::<RECORD_HEAD>() {
            let head = record_head(head);
            if !b"HVPEBIA".contains(&head.kind) || head.length > LONGEST_RECORD {
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

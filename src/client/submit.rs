//! Submits a map: its definition once, then its inputs in batches while more are being read.
use super::{Client, ClientError};
use crate::model::definition::MapDefinition;
use crate::model::{MapId, TaskId};
use crate::wire::content::client::{INPUTS, InputsReply, InputsRequest, MAP, MapReply, MapRequest, Selection};
use crate::wire::content::error::Refusal;
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A batch is sent when it has this many inputs,
const BATCH_INPUTS: usize = 5_000;
/// or this many bytes,
const BATCH_BYTES: usize = 1 << 20;
/// or when no more input has arrived for this long.
const LINGER: Duration = Duration::from_millis(5);
/// The size of a bundle above which the controller is first asked whether it has it.
const ASK_FIRST: usize = 256 << 10;
/// The maximum number of unacknowledged batches.
const IN_FLIGHT: usize = 3;
/// The maximum number of inputs read ahead.
const READ_AHEAD: usize = 256;
/// How often a stop request is checked while waiting for input.
const STOP_CHECK: Duration = Duration::from_millis(100);
/// The interval of keepalives while there is no input: the controller closes the map of a dead client.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// The delay before a batch that arrived before its predecessor is resent.
const BATCH_RETRY: Duration = Duration::from_millis(100);

/// One input as JSON text on one line, or why there is none.
pub(crate) type Input = Result<Bytes, String>;

/// The progress of submitting inputs, shared with its display, and a way to stop it.
#[derive(Clone, Default)]
pub struct Feeding {
    submitted: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
}

impl Feeding {
    /// Inputs that the controller has recorded so far.
    pub fn submitted(&self) -> u32 {
        self.submitted.load(Ordering::Relaxed)
    }
    /// Stops reading inputs; the map is closed with those already sent.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Client {
    /// Submits a map with all its inputs; returns when the controller has recorded the last of them.
    pub async fn submit<I>(&self, definition: MapDefinition, inputs: I) -> Result<MapId, ClientError>
    where
        I: IntoIterator<Item = Input>,
        I::IntoIter: Send + 'static,
    {
        let map = self.begin(definition).await?.map;
        self.feed(map, inputs, Feeding::default()).await?;
        Ok(map)
    }

    /// Announces a map. Its inputs follow with [`Client::feed`].
    pub async fn begin(&self, definition: MapDefinition) -> Result<MapReply, ClientError> {
        // The key makes the request repeatable: the same key again is the same map.
        let key = uuid::Uuid::new_v4().simple().to_string();
        let request = MapRequest {
            key,
            definition,
            with_bundle: false,
            whole: false,
            watch: None,
        };
        self.send_map(request, Vec::new(), None).await
    }

    /// Sends a small bundle with its map; for a large one, first asks the controller whether it has it.
    pub(super) async fn send_map(
        &self,
        mut request: MapRequest,
        mut buffers: Vec<Bytes>,
        waits: Option<Duration>,
    ) -> Result<MapReply, ClientError> {
        let wait = waits.unwrap_or_default();
        let bundle = request.definition.bundle().and_then(|bundle| bundle.content.clone());
        if let Some(bundle) = bundle {
            if bundle.content.len() > ASK_FIRST {
                match self.request_for_rows(MAP, &request, buffers.clone(), wait).await {
                    Err(ClientError::Refused {
                        refusal: Refusal::UnknownBundle,
                        ..
                    }) => {}
                    answer => return answer,
                }
            }
            request.with_bundle = true;
            buffers.push(bundle.content.clone());
        }
        self.request_for_rows(MAP, &request, buffers, wait).await
    }

    /// Sends inputs until there are no more, then closes the map; returns how many there were. `inputs` may block: it is
    /// read on a thread of its own, and what it has given is sent after a moment even when more may come.
    /// After an `Err` among the inputs the map is abandoned.
    pub async fn feed<I>(&self, map: MapId, inputs: I, feeding: Feeding) -> Result<u32, ClientError>
    where
        I: IntoIterator<Item = Input>,
        I::IntoIter: Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        let inputs = inputs.into_iter();
        // Not a tokio thread: a read from a terminal would keep the runtime from ending.
        std::thread::spawn(move || {
            for input in inputs {
                let failed = input.is_err();
                if sender.blocking_send(input).is_err() || failed {
                    return;
                }
            }
        });
        let mut batches = Batches::new(self, map, feeding);
        let mut reader = Reader {
            receiver,
            read: VecDeque::new(),
        };
        loop {
            let (batch, end) = reader.batch(&batches.feeding).await;
            let failed = match &end {
                End::Failed(why) => Some(why.clone()),
                _ => None,
            };
            let last = matches!(end, End::NoMore);
            let longest = batch.iter().zip(batches.next..).map(|(input, index)| (input.len(), index)).max();
            let failed = match batches.send(batch, last).await {
                Err(ClientError::TooLarge { max, .. }) => {
                    let (bytes, index) = longest.unwrap_or_default();
                    let task = TaskId::new(map, index);
                    Some(format!(
                        "the input of task {task} has {bytes} bytes; the controller accepts at most {max} bytes \
                         (controller.max_message_mb)"
                    ))
                }
                sent => sent.map(|()| failed)?,
            };
            if let Some(why) = failed {
                let submitted = batches.finish().await?;
                self.abandon(map, submitted, &why).await?;
                return Err(ClientError::Inputs { map, submitted, why });
            }
            if last {
                return batches.finish().await;
            }
        }
    }

    /// Ends a map of which `first` inputs were sent: it gets no more, what runs of it is cancelled, and it is listed as failed for this reason.
    pub async fn abandon(&self, map: MapId, first: u32, why: &str) -> Result<(), ClientError> {
        let request = InputsRequest {
            map,
            first,
            last: true,
            abandoned: Some(why.into()),
        };
        match self.request::<_, InputsReply>(INPUTS, &request, vec![Bytes::new()]).await {
            // It has ended already.
            Ok(_) | Err(ClientError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
        let maps = vec![map];
        self.cancel(Selection {
            maps,
            ..Selection::default()
        })
        .await
        .map(drop)
    }
}

enum End {
    More,
    NoMore,
    Failed(String),
}

/// Groups inputs into batches as they arrive.
struct Reader {
    receiver: mpsc::Receiver<Input>,
    read: VecDeque<Input>,
}

impl Reader {
    /// The next batch: waits for the first input and a short time for more; empty after [`KEEP_ALIVE`].
    async fn batch(&mut self, feeding: &Feeding) -> (Vec<Bytes>, End) {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut until = Instant::now();
        let idle_until = Instant::now() + KEEP_ALIVE;
        loop {
            while let Some(input) = self.read.pop_front() {
                match input {
                    Ok(input) => {
                        bytes += input.len() + 1;
                        batch.push(input);
                    }
                    Err(why) => return (batch, End::Failed(why)),
                }
                if batch.len() >= BATCH_INPUTS || bytes >= BATCH_BYTES {
                    return (batch, End::More);
                }
                if batch.len() == 1 {
                    until = Instant::now() + LINGER;
                }
            }
            if feeding.is_stopped() {
                return (batch, End::NoMore);
            }
            if batch.is_empty() && Instant::now() >= idle_until {
                return (batch, End::More);
            }
            if batch.is_empty() {
                until = Instant::now() + STOP_CHECK;
            }
            let mut some = Vec::new();
            match tokio::time::timeout_at(until, self.receiver.recv_many(&mut some, READ_AHEAD)).await {
                Err(_) if batch.is_empty() => continue,
                Err(_) => return (batch, End::More),
                Ok(0) => return (batch, End::NoMore),
                Ok(_) => self.read.extend(some),
            }
        }
    }
}

/// Unacknowledged batches of one map. The controller accepts them in the order of `first` and skips duplicates.
struct Batches<'a> {
    client: &'a Client,
    map: MapId,
    feeding: Feeding,
    next: u32,
    in_flight: JoinSet<Result<(), ClientError>>,
}

impl<'a> Batches<'a> {
    fn new(client: &'a Client, map: MapId, feeding: Feeding) -> Self {
        Batches {
            client,
            map,
            feeding,
            next: 0,
            in_flight: JoinSet::new(),
        }
    }

    async fn send(&mut self, batch: Vec<Bytes>, last: bool) -> Result<(), ClientError> {
        if batch.is_empty() && !last && !self.in_flight.is_empty() {
            // Unacknowledged batches serve as keepalives.
            self.one_arrived().await?;
            return Ok(());
        }
        // The last batch closes the map: it is sent after all others are acknowledged.
        let limit = if last { 0 } else { IN_FLIGHT - 1 };
        while self.in_flight.len() > limit {
            self.one_arrived().await?;
        }
        let mut text = Vec::with_capacity(batch.iter().map(|input| input.len() + 1).sum());
        for input in &batch {
            text.extend_from_slice(input);
            text.push(b'\n');
        }
        let request = InputsRequest {
            map: self.map,
            first: self.next,
            last,
            abandoned: None,
        };
        let request_first = self.next;
        self.next = self.next.saturating_add(u32::try_from(batch.len()).unwrap_or(u32::MAX));
        let (client, end, text, feeding) = (self.client.clone(), self.next, Bytes::from(text), self.feeding.clone());
        let mut work = Box::pin(async move {
            loop {
                let reply: InputsReply = client.request(INPUTS, &request, vec![text.clone()]).await?;
                // Fewer are recorded if an earlier batch was lost with a connection and is being resent.
                feeding.submitted.fetch_max(reply.total, Ordering::Relaxed);
                if reply.total >= end {
                    return Ok(());
                }
                tokio::time::sleep(BATCH_RETRY).await;
            }
        });
        // Polled here first, so that batches are sent in order: spawned tasks start in any order, and an early batch waits for BATCH_RETRY.
        match poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await {
            Poll::Ready(arrived) => {
                if arrived.is_err() {
                    self.next = request_first;
                }
                return arrived;
            }
            Poll::Pending => self.in_flight.spawn(work),
        };
        Ok(())
    }

    async fn one_arrived(&mut self) -> Result<(), ClientError> {
        match self.in_flight.join_next().await {
            Some(Ok(arrived)) => arrived,
            _ => Ok(()),
        }
    }

    /// Waits for all; how many inputs the map has.
    async fn finish(mut self) -> Result<u32, ClientError> {
        while !self.in_flight.is_empty() {
            self.one_arrived().await?;
        }
        Ok(self.next)
    }
}

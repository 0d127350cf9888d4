//! Giving a map to the controller: its definition once, then its inputs in batches while more are still being read.
use super::{Client, ClientError};
use crate::model::definition::MapDefinition;
use crate::model::{MapId, TaskId};
use crate::wire::content::client::{INPUTS, InputsReply, InputsRequest, MAP, MapReply, MapRequest, Selection, UNKNOWN_BUNDLE};
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

/// One batch is sent when it has so many inputs,
const BATCH_INPUTS: usize = 5_000;
/// or so many bytes,
const BATCH_BYTES: usize = 1 << 20;
/// or when no more has come for so long.
const LINGER: Duration = Duration::from_millis(5);
/// A bundle of more bytes is not sent to a controller that has it.
const ASK_FIRST: usize = 256 << 10;
/// Batches on their way at once.
const IN_FLIGHT: usize = 3;
/// Inputs that have been read and not yet batched, at most.
const READ_AHEAD: usize = 256;
/// How soon a wish to stop is noticed while no input comes.
const STOP_CHECK: Duration = Duration::from_millis(100);
/// With nothing to send the controller is told so often that the client lives: it gives a map up whose client has died.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long to wait before a batch that came before its predecessor is offered again.
const REOFFER: Duration = Duration::from_millis(100);

/// One input as JSON text on one line, or why there is none.
pub type Input = Result<Bytes, String>;

/// Where the reading of a map's inputs stands; shared with who shows it, and a way to end it.
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
    /// No more inputs are read; the map is closed with those that were sent.
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

    /// A small bundle goes with its map; before a large one is sent, the controller is asked whether it has it.
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
                    Err(ClientError::Refused { ename, .. }) if ename == UNKNOWN_BUNDLE => {}
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
                        "the input of task {task} has {bytes} bytes; the controller receives messages of up to {max} bytes \
                         (controller.most_message_mb)"
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

/// Inputs as they come, cut into batches.
struct Reader {
    receiver: mpsc::Receiver<Input>,
    read: VecDeque<Input>,
}

impl Reader {
    /// The next batch: what is there, having waited for the first input and a moment for more; none after [`KEEP_ALIVE`].
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

/// Batches of one map on their way. The controller takes them in order of `first`; what it has it passes over.
struct Batches<'a> {
    client: &'a Client,
    map: MapId,
    feeding: Feeding,
    next: u32,
    on_their_way: JoinSet<Result<(), ClientError>>,
}

impl<'a> Batches<'a> {
    fn new(client: &'a Client, map: MapId, feeding: Feeding) -> Self {
        Batches {
            client,
            map,
            feeding,
            next: 0,
            on_their_way: JoinSet::new(),
        }
    }

    async fn send(&mut self, batch: Vec<Bytes>, last: bool) -> Result<(), ClientError> {
        if batch.is_empty() && !last && !self.on_their_way.is_empty() {
            // They say that this client lives.
            self.one_arrived().await?;
            return Ok(());
        }
        // The last one closes the map: it goes when the others have arrived.
        let limit = if last { 0 } else { IN_FLIGHT - 1 };
        while self.on_their_way.len() > limit {
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
                // Fewer are recorded when a batch in front of this one was lost with a connection: it is on its way again.
                feeding.submitted.fetch_max(reply.total, Ordering::Relaxed);
                if reply.total >= end {
                    return Ok(());
                }
                tokio::time::sleep(REOFFER).await;
            }
        });
        // Begun here, so that batches leave in order: spawned tasks begin in any, and a batch too early waits for REOFFER.
        match poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await {
            Poll::Ready(arrived) => {
                if arrived.is_err() {
                    self.next = request_first;
                }
                return arrived;
            }
            Poll::Pending => self.on_their_way.spawn(work),
        };
        Ok(())
    }

    async fn one_arrived(&mut self) -> Result<(), ClientError> {
        match self.on_their_way.join_next().await {
            Some(Ok(arrived)) => arrived,
            _ => Ok(()),
        }
    }

    /// Waits for all; how many inputs the map has.
    async fn finish(mut self) -> Result<u32, ClientError> {
        while !self.on_their_way.is_empty() {
            self.one_arrived().await?;
        }
        Ok(self.next)
    }
}

//! One connection to a controller: requests go out, a background task finds for every reply the request that waits for it.
use super::address::candidates;
use super::error::{ClientError, writer_of};
use crate::connection::ConnectionFile;
use crate::model::{PROTOCOL_VERSION, UnixTime, VERSION};
use crate::sys::process;
use crate::transport::{Kind, Security, Socket};
use crate::wire::content::client::{Again, HELLO, HasRows, Hello, HelloReply};
use crate::wire::content::error::{ErrorContent, Status};
use crate::wire::message::to_json;
use crate::wire::{Message, Session};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A request without a reply is sent again after so long, then after twice as long, and so on.
const RESEND: Duration = Duration::from_secs(4);
/// ... and given up after so long, unless the caller says otherwise ([`Client::with_patience`]).
const PATIENCE: Duration = Duration::from_secs(45);
/// While a reply is waited for, the connection file is looked at so often.
const LOOK: Duration = Duration::from_secs(2);
/// How long one TCP connection to one address may take.
const PROBE: Duration = Duration::from_secs(5);
/// A message has less besides its buffers.
const HEAD_BYTES: u64 = 64 << 10;

/// A connected client. Cheap to clone; clones share the connection, which ends with the last of them.
#[derive(Clone)]
pub struct Client {
    link: Arc<Link>,
    patience: Duration,
    resend: Duration,
}

struct Link {
    way: Mutex<Way>,
    /// Read again when the controller is silent.
    file: Option<PathBuf>,
    session: Mutex<Session>,
    waiting: Arc<Mutex<Waiting>>,
    hello: HelloReply,
}

/// Where the controller is, as far as is known.
struct Way {
    socket: Socket,
    /// `tcp://…`, for errors.
    address: String,
    connection: ConnectionFile,
    receiver: JoinHandle<()>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

#[derive(Default)]
struct Waiting {
    /// By message id; a request that was sent again has several.
    by_id: HashMap<String, mpsc::Sender<Message>>,
    last_heard: Option<Instant>,
    /// Why the receiving task ended.
    ended: Option<String>,
    /// The last message that could not be opened, for the error of who waits in vain.
    unreadable: Option<String>,
}

impl Client {
    /// Connects to the controller that wrote `file` (its client file), says hello and compares versions.
    /// `timeout` bounds all of it.
    pub async fn connect(file: &ConnectionFile, timeout: Duration) -> Result<Client, ClientError> {
        Client::connected(file, None, timeout).await
    }

    /// The same for one that lasts. `path` is where `file` was read: when the controller is silent, it is read again, and a controller that
    /// has come back at other ports is found there.
    pub async fn connect_and_follow(file: &ConnectionFile, path: &Path, timeout: Duration) -> Result<Client, ClientError> {
        Client::connected(file, Some(path.to_path_buf()), timeout).await
    }

    async fn connected(file: &ConnectionFile, path: Option<PathBuf>, timeout: Duration) -> Result<Client, ClientError> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let user = std::env::var("USER").unwrap_or_else(|_| "pcluster".into());
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let mut link = Link {
            way: Mutex::new(Way::open(file, &id, &waiting, timeout).await?),
            file: path,
            session: Mutex::new(Session::new(file.key.as_bytes(), id, user)),
            waiting,
            hello: HelloReply {
                status: String::new(),
                protocol: 0,
                version: String::new(),
                cluster_id: String::new(),
                pid: 0,
                host: String::new(),
                started: UnixTime::default(),
                packs: false,
                max_message_bytes: 0,
            },
        };
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            version: VERSION.into(),
        };
        let reply = link
            .exchange(HELLO, &hello, &[], Duration::ZERO, RESEND.min(timeout / 3), timeout)
            .await?;
        link.hello = checked_hello(&reply, &link.address())?;
        if link.hello.packs {
            lock(&link.way).pack();
        }
        Ok(Client {
            link: Arc::new(link),
            patience: PATIENCE,
            resend: RESEND,
        })
    }

    /// A client on the same connection that gives a request up when it has had no reply for so long.
    pub fn with_patience(&self, patience: Duration) -> Client {
        Client {
            link: self.link.clone(),
            patience,
            resend: RESEND.min(patience / 3),
        }
    }

    /// What the controller said of itself.
    /// A longer input is not received.
    pub fn max_input_bytes(&self) -> u64 {
        match self.link.hello.max_message_bytes {
            0 => u64::MAX,
            max => max.saturating_sub(HEAD_BYTES + 1),
        }
    }

    pub fn hello(&self) -> &HelloReply {
        &self.link.hello
    }

    /// `tcp://…` of the controller's registration port.
    pub fn address(&self) -> String {
        self.link.address()
    }

    /// How long ago anything was heard from the controller.
    pub fn silent_for(&self) -> Duration {
        lock(&self.link.waiting).last_heard.map(|t| t.elapsed()).unwrap_or_default()
    }

    /// Sends one request and waits for its reply. It is sent again when no reply comes, so it must be one that may be repeated.
    pub async fn request<Req, Rep>(&self, msg_type: &str, content: &Req, buffers: Vec<Bytes>) -> Result<Rep, ClientError>
    where
        Req: Serialize + ?Sized,
        Rep: DeserializeOwned,
    {
        self.request_that_waits(msg_type, content, buffers, Duration::ZERO).await
    }

    /// The same for a request that the controller answers only after up to `wait` (it is told so in the content).
    pub async fn request_that_waits<Req, Rep>(
        &self,
        msg_type: &str,
        content: &Req,
        buffers: Vec<Bytes>,
        wait: Duration,
    ) -> Result<Rep, ClientError>
    where
        Req: Serialize + ?Sized,
        Rep: DeserializeOwned,
    {
        let reply = self
            .link
            .exchange(msg_type, content, &buffers, wait, self.resend, self.patience)
            .await?;
        decode(msg_type, &reply)
    }

    /// The same for a request whose reply has buffers.
    pub async fn request_with_buffers<Req, Rep>(&self, msg_type: &str, content: &Req) -> Result<(Rep, Vec<Bytes>), ClientError>
    where
        Req: Serialize + ?Sized,
        Rep: DeserializeOwned,
    {
        let reply = self
            .link
            .exchange(msg_type, content, &[], Duration::ZERO, self.resend, self.patience)
            .await?;
        Ok((decode(msg_type, &reply)?, reply.buffers))
    }

    /// The same where the answer holds tasks, whose values may be buffers behind it.
    pub async fn request_for_rows<Req, Rep>(
        &self,
        msg_type: &str,
        content: &Req,
        buffers: Vec<Bytes>,
        wait: Duration,
    ) -> Result<Rep, ClientError>
    where
        Req: Serialize + ?Sized,
        Rep: DeserializeOwned + HasRows,
    {
        let reply = self
            .link
            .exchange(msg_type, content, &buffers, wait, self.resend, self.patience)
            .await?;
        let mut content: Rep = decode(msg_type, &reply)?;
        match content.fill(reply.buffers) {
            true => Ok(content),
            false => Err(ClientError::BadReply {
                request: msg_type.into(),
                why: "its buffers are not those of its values".into(),
            }),
        }
    }

    /// Sends what is still to be sent and closes the connection (the last clone does so too, without waiting).
    pub async fn close(self) {
        if let Ok(link) = Arc::try_unwrap(self.link).map_err(drop) {
            let socket = {
                let way = lock(&link.way);
                way.receiver.abort();
                way.socket.clone()
            };
            socket.close().await;
        }
    }
}

impl Way {
    /// To the first address at which something listens, under the routing id `id`.
    async fn open(file: &ConnectionFile, id: &str, waiting: &Arc<Mutex<Waiting>>, timeout: Duration) -> Result<Way, ClientError> {
        let ip = reachable(file, candidates(file, &process::host())?, timeout).await?;
        let security = match &file.curve_serverkey {
            Some(server_key) => Security::Client {
                server_key: server_key.clone(),
            },
            None => Security::Plain,
        };
        let socket = Socket::new(Kind::Dealer, Some(id), &security)?.with_adaptive_packing();
        socket.connect(&ip, file.registration).await?;
        Ok(Way {
            receiver: tokio::spawn(receive(
                socket.clone(),
                // It only opens messages.
                Session::new(file.key.as_bytes(), id, ""),
                waiting.clone(),
            )),
            socket,
            address: format!("tcp://{ip}:{}", file.registration),
            connection: file.clone(),
        })
    }

    /// The controller has said that it unpacks.
    fn pack(&mut self) {
        self.socket = self.socket.clone().with_packing();
    }
}

impl Link {
    fn address(&self) -> String {
        lock(&self.way).address.clone()
    }

    /// A controller that is silent may have come back at other ports; then its file says so. Whether it was found there.
    async fn follow(&self) -> bool {
        let moved = self.file.as_ref().and_then(|path| lock(&self.way).connection.moved(path));
        let Some(moved) = moved else { return false };
        let id = lock(&self.session).id.clone();
        match Way::open(&moved, &id, &self.waiting, PROBE).await {
            Ok(mut way) => {
                if self.hello.packs {
                    way.pack();
                }
                tracing::info!(address = way.address, "the controller has come back elsewhere");
                *lock(&self.way) = way;
                true
            }
            Err(error) => {
                tracing::debug!(%error, "the connection file names another place, but no controller answers there");
                false
            }
        }
    }

    async fn exchange<Req: Serialize + ?Sized>(
        &self,
        msg_type: &str,
        content: &Req,
        buffers: &[Bytes],
        wait: Duration,
        resend: Duration,
        patience: Duration,
    ) -> Result<Message, ClientError> {
        let (reply_to, mut reply) = mpsc::channel(1);
        let mut registered = Registered {
            waiting: &self.waiting,
            ids: Vec::new(),
        };
        let began = Instant::now();
        let deadline = began + wait + patience;
        let mut pause = wait + resend;
        loop {
            self.send(msg_type, content, buffers, &reply_to, &mut registered.ids)?;
            let until = (Instant::now() + pause).min(deadline);
            while Instant::now() < until {
                let look = (Instant::now() + LOOK).min(until);
                match tokio::time::timeout_at(look.into(), reply.recv()).await {
                    Ok(Some(message)) => return Ok(message),
                    // Cannot be: `reply_to` lives here. Waiting on would be right all the same.
                    Ok(None) => tokio::time::sleep_until(look.into()).await,
                    Err(_) => {}
                }
                if self.follow().await {
                    break;
                }
            }
            if Instant::now() >= deadline {
                return Err(self.unreachable(msg_type, began.elapsed()));
            }
            tracing::debug!(msg_type, "no reply yet: sent again");
            pause = (pause * 2).max(resend);
        }
    }

    /// Every sending is a message of its own (a repeated signature would be taken for a replay); a reply to any of them will do.
    fn send<Req: Serialize + ?Sized>(
        &self,
        msg_type: &str,
        content: &Req,
        buffers: &[Bytes],
        reply_to: &mpsc::Sender<Message>,
        ids: &mut Vec<String>,
    ) -> Result<(), ClientError> {
        // The controller would end the connection, and the same request would be sent again.
        let bytes = buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
        let max = self.hello.max_message_bytes;
        if max > 0 && bytes + HEAD_BYTES > max {
            return Err(ClientError::TooLarge {
                request: msg_type.into(),
                bytes,
                max,
            });
        }
        let frames = {
            let mut session = lock(&self.session);
            let mut message = session.message(&now().to_iso(), msg_type, None, content);
            message.buffers = buffers.to_vec();
            if !ids.is_empty() {
                message.metadata_json = to_json(&Again { again: true });
            }
            lock(&self.waiting).by_id.insert(message.header.msg_id.clone(), reply_to.clone());
            ids.push(message.header.msg_id.clone());
            session.seal(&[], &message)
        };
        let socket = lock(&self.way).socket.clone();
        Ok(socket.send(frames)?)
    }

    fn unreachable(&self, request: &str, silent: Duration) -> ClientError {
        let waiting = lock(&self.waiting);
        let heard = match (&waiting.ended, &waiting.unreadable, waiting.last_heard) {
            (Some(why), _, _) => format!("the connection is closed: {why}"),
            (_, Some(why), None) => format!("it answers, but {why}"),
            (_, _, Some(at)) => format!("last heard of {:.0} s ago", at.elapsed().as_secs_f64()),
            _ => "nothing was ever heard from it".into(),
        };
        ClientError::Unreachable {
            address: self.address(),
            request: request.into(),
            silent_s: silent.as_secs_f64(),
            heard,
        }
    }
}

/// Takes a request's ids out of the table however its future ends.
struct Registered<'a> {
    waiting: &'a Mutex<Waiting>,
    ids: Vec<String>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(self.waiting);
        for id in &self.ids {
            waiting.by_id.remove(id);
        }
    }
}

async fn receive(socket: Socket, mut session: Session, waiting: Arc<Mutex<Waiting>>) {
    loop {
        let frames = match socket.receive().await {
            Ok(frames) => frames,
            Err(error) => {
                lock(&waiting).ended = Some(error.to_string());
                return;
            }
        };
        match session.open(frames) {
            Ok(message) => {
                let parent = message.parent().map(|p| p.msg_id).unwrap_or_default();
                let mut waiting = lock(&waiting);
                waiting.last_heard = Some(Instant::now());
                match waiting.by_id.get(&parent) {
                    // A second reply to a request that was sent twice finds the place taken and is dropped.
                    Some(reply_to) => drop(reply_to.try_send(message)),
                    None => tracing::debug!(msg_type = message.msg_type(), parent, "a reply that nobody waits for"),
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a message that cannot be opened");
                lock(&waiting).unreadable = Some(error.to_string());
            }
        }
    }
}

/// Reads a reply's content; one with `status: error` is the controller's refusal.
fn decode<Rep: DeserializeOwned>(request: &str, reply: &Message) -> Result<Rep, ClientError> {
    let bad = |why: serde_json::Error| ClientError::BadReply {
        request: request.into(),
        why: why.to_string(),
    };
    let Status { status } = reply.content().map_err(bad)?;
    if status == "error" {
        let error: ErrorContent = reply.content().map_err(bad)?;
        return Err(ClientError::Refused {
            request: request.into(),
            ename: error.ename,
            evalue: error.evalue,
            hint: error.hint,
        });
    }
    reply.content().map_err(bad)
}

fn checked_hello(reply: &Message, address: &str) -> Result<HelloReply, ClientError> {
    match reply.content::<HelloReply>() {
        Ok(hello) if hello.protocol != PROTOCOL_VERSION => Err(ClientError::VersionMismatch {
            version: hello.version,
            protocol: hello.protocol,
        }),
        Ok(hello) if hello.status != "error" => Ok(hello),
        _ => match decode::<HelloReply>(HELLO, reply) {
            // A hub that does not know the request is ipyparallel's own.
            Err(ClientError::Refused { ename, evalue, .. }) => Err(ClientError::NotPcluster {
                address: address.into(),
                why: format!("{ename}: {evalue}"),
            }),
            Err(ClientError::BadReply { why, .. }) => Err(ClientError::NotPcluster {
                address: address.into(),
                why,
            }),
            other => other,
        },
    }
}

/// The first address at which something listens.
async fn reachable(file: &ConnectionFile, addresses: Vec<String>, timeout: Duration) -> Result<String, ClientError> {
    let port = file.registration;
    let mut whys = Vec::new();
    for ip in &addresses {
        let attempt = tokio::net::TcpStream::connect((ip.as_str(), port));
        let why = match tokio::time::timeout(PROBE.min(timeout), attempt).await {
            Ok(Ok(_)) => return Ok(ip.clone()),
            Ok(Err(error)) => error.kind().to_string(),
            Err(_) => format!("no answer within {} s", PROBE.min(timeout).as_secs_f32()),
        };
        if !whys.contains(&why) {
            whys.push(why);
        }
    }
    Err(ClientError::NoController {
        addresses: addresses.iter().map(|ip| format!("tcp://{ip}:{port}")).collect(),
        why: whys.join(", "),
        controller: writer_of(file),
    })
}

pub(super) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime(since.as_secs_f64())
}

/// A panic elsewhere leaves these tables usable: each change to them is one insertion or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! One connection to a controller: sends requests, and a background task matches each reply to its request.
use super::address::candidates;
use super::error::{ClientError, writer_of};
use crate::connection::ConnectionFile;
use crate::model::{PROTOCOL_VERSION, UnixTime, VERSION};
use crate::sys::process;
use crate::transport::{Security, Socket, SocketKind};
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

/// The delay before a request without a reply is resent, doubled each time,
const RESEND: Duration = Duration::from_secs(4);
/// and the default timeout of a request ([`Client::with_timeout`]).
const TIMEOUT: Duration = Duration::from_secs(45);
/// How often the connection file is checked while waiting for a reply.
const FILE_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The timeout for a TCP connection to one address.
const PROBE: Duration = Duration::from_secs(5);
/// An upper bound for the size of a message without its buffers.
const HEAD_BYTES: u64 = 64 << 10;

/// A connected client. Cheap to clone; clones share the connection, which ends with the last of them.
#[derive(Clone)]
pub struct Client {
    link: Arc<Link>,
    timeout: Duration,
    resend: Duration,
}

struct Link {
    route: Mutex<SocketConnection>,
    /// Reread when the controller is silent.
    file: Option<PathBuf>,
    session: Mutex<Session>,
    waiting: Arc<Mutex<PendingReplies>>,
    hello: HelloReply,
}

/// The current connection to the controller.
struct SocketConnection {
    socket: Socket,
    /// `tcp://…`, for errors.
    address: String,
    connection: ConnectionFile,
    receiver: JoinHandle<()>,
}

impl Drop for SocketConnection {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

#[derive(Default)]
struct PendingReplies {
    /// By message id; a resent request has several ids.
    by_id: HashMap<String, mpsc::Sender<Message>>,
    last_heard: Option<Instant>,
    /// Why the receiving task ended.
    ended: Option<String>,
    /// Why the last message could not be decoded, for the timeout error.
    unreadable: Option<String>,
}

impl Client {
    /// Connects to the controller that wrote `file` (its client file) and compares versions, within `timeout`.
    pub async fn connect(file: &ConnectionFile, timeout: Duration) -> Result<Client, ClientError> {
        Client::connected(file, None, timeout).await
    }

    /// The same for a long-lived client. `path` is the path of `file`: it is reread when the controller is silent, to find a controller
    /// that restarted with other ports.
    pub async fn connect_and_follow(file: &ConnectionFile, path: &Path, timeout: Duration) -> Result<Client, ClientError> {
        Client::connected(file, Some(path.to_path_buf()), timeout).await
    }

    async fn connected(file: &ConnectionFile, path: Option<PathBuf>, timeout: Duration) -> Result<Client, ClientError> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let user = std::env::var("USER").unwrap_or_else(|_| "pcluster".into());
        let waiting = Arc::new(Mutex::new(PendingReplies::default()));
        let mut link = Link {
            route: Mutex::new(SocketConnection::open(file, &id, &waiting, timeout).await?),
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
            lock(&link.route).pack();
        }
        Ok(Client {
            link: Arc::new(link),
            timeout: TIMEOUT,
            resend: RESEND,
        })
    }

    /// A client on the same connection with another request timeout.
    pub fn with_timeout(&self, timeout: Duration) -> Client {
        Client {
            link: self.link.clone(),
            timeout,
            resend: RESEND.min(timeout / 3),
        }
    }

    /// Whether the controller runs on this host, or on one of the same name.
    pub fn is_local(&self) -> bool {
        self.link.hello.host == process::host()
    }

    /// A longer input is not received.
    pub fn max_input_bytes(&self) -> u64 {
        match self.link.hello.max_message_bytes {
            0 => u64::MAX,
            max => max.saturating_sub(HEAD_BYTES + 1),
        }
    }

    /// The controller's description of itself.
    pub fn hello(&self) -> &HelloReply {
        &self.link.hello
    }

    /// `tcp://…` of the controller's registration port.
    pub fn address(&self) -> String {
        self.link.address()
    }

    /// The time since the last message from the controller.
    pub fn silent_for(&self) -> Duration {
        lock(&self.link.waiting).last_heard.map(|t| t.elapsed()).unwrap_or_default()
    }

    /// Sends one request and waits for its reply. Resends it without a reply, so it must be idempotent.
    pub async fn request<Req, Rep>(&self, msg_type: &str, content: &Req, buffers: Vec<Bytes>) -> Result<Rep, ClientError>
    where
        Req: Serialize + ?Sized,
        Rep: DeserializeOwned,
    {
        self.request_that_waits(msg_type, content, buffers, Duration::ZERO).await
    }

    /// The same for a request that the controller answers after up to `wait`, which is part of its content.
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
            .exchange(msg_type, content, &buffers, wait, self.resend, self.timeout)
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
            .exchange(msg_type, content, &[], Duration::ZERO, self.resend, self.timeout)
            .await?;
        Ok((decode(msg_type, &reply)?, reply.buffers))
    }

    /// The same for a reply with tasks, whose values may be buffers.
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
            .exchange(msg_type, content, &buffers, wait, self.resend, self.timeout)
            .await?;
        let mut content: Rep = decode(msg_type, &reply)?;
        match content.fill(reply.buffers) {
            true => Ok(content),
            false => Err(ClientError::BadReply {
                request: msg_type.into(),
                why: "its buffers do not match its values".into(),
            }),
        }
    }

    /// Flushes and closes the connection (the last clone also does so, without waiting).
    pub async fn close(self) {
        if let Ok(link) = Arc::try_unwrap(self.link).map_err(drop) {
            let socket = {
                let route = lock(&link.route);
                route.receiver.abort();
                route.socket.clone()
            };
            socket.close().await;
        }
    }
}

impl SocketConnection {
    /// Connects to the first address that accepts, with the routing id `id`.
    async fn open(
        file: &ConnectionFile,
        id: &str,
        waiting: &Arc<Mutex<PendingReplies>>,
        timeout: Duration,
    ) -> Result<SocketConnection, ClientError> {
        let ip = reachable(file, candidates(file, &process::host())?, timeout).await?;
        let security = match &file.curve_serverkey {
            Some(server_key) => Security::Client {
                server_key: server_key.clone(),
            },
            None => Security::Plain,
        };
        let socket = Socket::new(SocketKind::Dealer, Some(id), &security)?.with_adaptive_packing();
        socket.connect(&ip, file.registration).await?;
        Ok(SocketConnection {
            receiver: tokio::spawn(receive(
                socket.clone(),
                // It only decodes messages.
                Session::new(file.key.as_bytes(), id, ""),
                waiting.clone(),
            )),
            socket,
            address: format!("tcp://{ip}:{}", file.registration),
            connection: file.clone(),
        })
    }

    /// The controller has announced that it unpacks.
    fn pack(&mut self) {
        self.socket = self.socket.clone().with_packing();
    }
}

impl Link {
    fn address(&self) -> String {
        lock(&self.route).address.clone()
    }

    /// Checks whether a silent controller restarted with other ports, according to its file, and connects to it.
    async fn follow(&self) -> bool {
        let moved = self.file.as_ref().and_then(|path| lock(&self.route).connection.moved(path));
        let Some(moved) = moved else { return false };
        let id = lock(&self.session).id.clone();
        match SocketConnection::open(&moved, &id, &self.waiting, PROBE).await {
            Ok(mut route) => {
                if self.hello.packs {
                    route.pack();
                }
                tracing::info!(address = route.address, "the controller restarted at another address");
                *lock(&self.route) = route;
                true
            }
            Err(error) => {
                tracing::debug!(%error, "the connection file has another address, but no controller answers there");
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
        timeout: Duration,
    ) -> Result<Message, ClientError> {
        let (reply_to, mut reply) = mpsc::channel(1);
        let mut registered = Registered {
            waiting: &self.waiting,
            ids: Vec::new(),
        };
        let began = Instant::now();
        let deadline = began + wait + timeout;
        let mut pause = wait + resend;
        loop {
            self.send(msg_type, content, buffers, &reply_to, &mut registered.ids)?;
            let until = (Instant::now() + pause).min(deadline);
            while Instant::now() < until {
                let next = (Instant::now() + FILE_POLL_INTERVAL).min(until);
                match tokio::time::timeout_at(next.into(), reply.recv()).await {
                    Ok(Some(message)) => return Ok(message),
                    // Unreachable: `reply_to` is alive.
                    Ok(None) => tokio::time::sleep_until(next.into()).await,
                    Err(_) => {}
                }
                if self.follow().await {
                    break;
                }
            }
            if Instant::now() >= deadline {
                return Err(self.unreachable(msg_type, began.elapsed()));
            }
            tracing::debug!(msg_type, "no reply yet; resent");
            pause = (pause * 2).max(resend);
        }
    }

    /// Every attempt is a new message (a repeated signature would be rejected as a replay); a reply to any of them counts.
    fn send<Req: Serialize + ?Sized>(
        &self,
        msg_type: &str,
        content: &Req,
        buffers: &[Bytes],
        reply_to: &mpsc::Sender<Message>,
        ids: &mut Vec<String>,
    ) -> Result<(), ClientError> {
        // The controller would drop the connection, and the request would be resent forever.
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
        let socket = lock(&self.route).socket.clone();
        Ok(socket.send(frames)?)
    }

    fn unreachable(&self, request: &str, silent: Duration) -> ClientError {
        let waiting = lock(&self.waiting);
        let heard = match (&waiting.ended, &waiting.unreadable, waiting.last_heard) {
            (Some(why), _, _) => format!("the connection is closed: {why}"),
            (_, Some(why), None) => format!("it answers, but {why}"),
            (_, _, Some(at)) => format!("last message {:.0} s ago", at.elapsed().as_secs_f64()),
            _ => "no message received".into(),
        };
        ClientError::Unreachable {
            address: self.address(),
            request: request.into(),
            silent_s: silent.as_secs_f64(),
            heard,
        }
    }
}

/// Removes the ids of a request on drop.
struct Registered<'a> {
    waiting: &'a Mutex<PendingReplies>,
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

async fn receive(socket: Socket, mut session: Session, waiting: Arc<Mutex<PendingReplies>>) {
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
                    // A second reply to a resent request finds the channel full and is dropped.
                    Some(reply_to) => drop(reply_to.try_send(message)),
                    None => tracing::debug!(msg_type = message.msg_type(), parent, "unexpected reply"),
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot decode a message");
                lock(&waiting).unreadable = Some(error.to_string());
            }
        }
    }
}

/// Decodes a reply; `status: error` means that the controller refused the request.
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
            refusal: error.ename.into(),
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
            // A hub that does not support the request is ipyparallel's.
            Err(ClientError::Refused { refusal, evalue, .. }) => Err(ClientError::NotPcluster {
                address: address.into(),
                why: format!("{refusal}: {evalue}"),
            }),
            Err(ClientError::BadReply { why, .. }) => Err(ClientError::NotPcluster {
                address: address.into(),
                why,
            }),
            other => other,
        },
    }
}

/// The first address that accepts a connection.
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

/// Ignores poisoning: each change to these tables is a single insertion or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The engine's connection to its controller: finds the address that answers, registers, signs and verifies messages.
use super::ssh_tunnel::SshTunnel;
use super::{EngineError, EngineSettings};
use crate::connection::ConnectionFile;
use crate::model::{EngineId, EngineUuid, UnixTime};
use crate::transport::{Connections, Security, Socket, SocketKind, TransportError};
use crate::wire::content::engine::{Channel, HEARTBEAT, Heartbeat, REGISTER, REGISTERED, Register, Registered, UNKNOWN_ENGINE};
use crate::wire::message::to_json;
use crate::wire::{Frames, Message, Session};
use bytes::Bytes;
use serde::Serialize;
use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Time limit for connecting to an address,
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// ... and for the first answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between rounds over all addresses.
const ROUND_PAUSE: Duration = Duration::from_millis(500);

/// Why an address does not lead to the controller.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    #[error(transparent)]
    Connection(std::io::Error),
    #[error(transparent)]
    Transport(TransportError),
    #[error("accepted the connection, but did not answer within {} s; does it use other keys?", ANSWER_TIMEOUT.as_secs())]
    Silent,
}

pub(super) struct Link {
    pub socket: Socket,
    /// Connections of the socket, which reconnects automatically to the same address.
    pub connections: Connections,
    session: Session,
    uuid: EngineUuid,
    pub id: EngineId,
    /// Replies that the controller has not recorded, oldest first, with the request's id.
    unrecorded: VecDeque<(String, Channel, Vec<Bytes>, Message)>,
    unrecorded_bytes: usize,
    /// The controller rejects longer messages.
    pub max_message: usize,
    /// The tunnel through which the controller is reached, if any.
    tunnel: Option<SshTunnel>,
}

/// Maximum size of unrecorded replies; beyond it the oldest are dropped, with a warning in the log.
const MAX_UNRECORDED_BYTES: usize = 512 << 20;

/// Upper bound of a message's size beyond its parts: header, signature, and some bytes for each frame.
pub(super) const MESSAGE_OVERHEAD: usize = 16 << 10;

pub(super) fn unix_now() -> UnixTime {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    UnixTime((since.as_secs_f64() * 1e6).round() / 1e6)
}

/// The first message of a connection, and the answers that it expects.
struct FirstMessage<'a> {
    uuid: &'a EngineUuid,
    msg_type: &'static str,
    content: serde_json::Value,
    answers: &'static [&'static str],
}

impl Link {
    /// Tries each address of the controller, then the ssh server of the file if it has one; repeats this until an address answers or
    /// the time limit is reached.
    pub(super) async fn connect(settings: &mut EngineSettings, register: &Register) -> Result<(Link, Registered), EngineError> {
        let first = FirstMessage {
            uuid: &register.facts.uuid,
            msg_type: REGISTER,
            content: serde_json::to_value(register).unwrap_or_default(),
            answers: &[REGISTERED],
        };
        let until = Instant::now() + Duration::from_millis(settings.registration_timeout_ms);
        let mut tunnel: Option<SshTunnel> = None;
        loop {
            let mut failures = Vec::new();
            if let Some((mut link, answer)) = Link::try_all_addresses(settings, &first, &mut tunnel, &mut failures).await? {
                let registered: Registered = answer.content().map_err(|e| EngineError::Refused(format!("invalid answer: {e}")))?;
                if registered.status != "ok" {
                    return Err(EngineError::Refused(registered.evalue));
                }
                link.id = registered.id.unwrap_or(EngineId(0));
                return Ok((link, registered));
            }
            if Instant::now() >= until {
                let tried = failures.join(", ");
                let seconds = settings.registration_timeout_ms as f64 / 1000.0;
                let text = format!(
                    "no controller answered within {seconds} s. Tried: {tried}. Is it running (`pcluster status`), and can this host ({}) reach it? \
                     A controller for other hosts needs `controller: ip:` in the profile, or `controller: engine_ssh:`",
                    super::command::host()
                );
                return Err(EngineError::Unreachable(text));
            }
            tokio::time::sleep(ROUND_PAUSE).await;
            if let Some(moved) = settings.moved() {
                (settings.connection, tunnel) = (moved, None);
            }
        }
    }

    /// Reconnects to a controller that may still know the engine. Its first answer tells whether the engine must register again.
    pub(super) async fn reconnect(settings: &EngineSettings, uuid: &EngineUuid) -> Result<(Link, Message), EngineError> {
        let first = FirstMessage {
            uuid,
            msg_type: HEARTBEAT,
            content: serde_json::to_value(Heartbeat {}).unwrap_or_default(),
            answers: &[HEARTBEAT, UNKNOWN_ENGINE],
        };
        let mut failures = Vec::new();
        let found = Link::try_all_addresses(settings, &first, &mut None, &mut failures).await?;
        found.ok_or_else(|| EngineError::Unreachable(failures.join(", ")))
    }

    /// Tries each address once, then the ssh server.
    async fn try_all_addresses(
        settings: &EngineSettings,
        first: &FirstMessage<'_>,
        tunnel: &mut Option<SshTunnel>,
        failures: &mut Vec<String>,
    ) -> Result<Option<(Link, Message)>, EngineError> {
        let (file, addresses) = (&settings.connection, settings.addresses());
        let port = file.pcluster.as_ref().and_then(|keys| keys.engine_port).ok_or_else(|| {
            EngineError::BadConnectionFile(
                "the connection file is not an engine file of a pcluster controller (no pcluster.engine_port)".into(),
            )
        })?;
        for address in &addresses {
            match Link::try_address(file, address, port, first).await? {
                Ok(found) => {
                    tracing::info!("found the controller at {address}:{port}");
                    return Ok(Some(found));
                }
                Err(why) => {
                    tracing::debug!(address, port, %why, "no answer from the controller");
                    failures.push(format!("{address}:{port} ({why})"));
                }
            }
        }
        if file.ssh.is_empty() {
            return Ok(None);
        }
        if tunnel.is_none() {
            match SshTunnel::open(&file.ssh, &addresses, port).await {
                Ok(opened) => *tunnel = Some(opened),
                Err(why) => failures.push(format!("through {} ({why})", file.ssh)),
            }
        }
        let Some(opened) = tunnel.as_ref() else { return Ok(None) };
        match Link::try_address(file, "127.0.0.1", opened.port, first).await? {
            Ok((mut link, answer)) => {
                let (server, address) = (&file.ssh, &opened.address);
                tracing::info!(
                    "reached the controller at {address}:{port} through {server}; a direct connection failed: {}",
                    failures.join(", ")
                );
                link.tunnel = tunnel.take();
                Ok(Some((link, answer)))
            }
            Err(why) => {
                failures.push(format!("through {} ({why})", file.ssh));
                Ok(None)
            }
        }
    }

    /// The outer error is final; the inner one concerns only this address.
    async fn try_address(
        file: &ConnectionFile,
        address: &str,
        port: u16,
        first: &FirstMessage<'_>,
    ) -> Result<Result<(Link, Message), NoAnswer>, EngineError> {
        match tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::TcpStream::connect((address, port))).await {
            Err(_) => return Ok(Err(NoAnswer::Timeout)),
            Ok(Err(e)) => return Ok(Err(NoAnswer::Connection(e))),
            Ok(Ok(_)) => {}
        }
        let security = match &file.curve_serverkey {
            Some(key) => Security::Client { server_key: key.clone() },
            None => Security::Plain,
        };
        let uuid = first.uuid.clone();
        let unusable = |e: TransportError| EngineError::BadConnectionFile(e.to_string());
        let socket = Socket::new(SocketKind::Dealer, Some(&uuid.0), &security)
            .map_err(unusable)?
            .with_packing();
        let connections = socket.connections();
        socket.connect(address, port).await.map_err(unusable)?;
        let user = std::env::var("USER").unwrap_or_else(|_| "engine".into());
        let mut link = Link {
            socket,
            connections,
            session: Session::new(file.key.as_bytes(), uuid.to_string(), user),
            uuid,
            id: EngineId(0),
            unrecorded: VecDeque::new(),
            unrecorded_bytes: 0,
            max_message: usize::MAX,
            tunnel: None,
        };
        link.send_native(first.msg_type, &first.content);
        let until = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        loop {
            let frames = match tokio::time::timeout_at(until, link.socket.receive()).await {
                Ok(Ok(frames)) => frames,
                Ok(Err(e)) => return Ok(Err(NoAnswer::Transport(e))),
                Err(_) => {
                    link.socket.close().await;
                    return Ok(Err(NoAnswer::Silent));
                }
            };
            if let Some((Channel::Native, message)) = link.open(frames)
                && first.answers.contains(&message.msg_type())
            {
                return Ok(Ok((link, message)));
            }
        }
    }

    /// Continues the session of the previous connection: engine id, message counter, unrecorded replies.
    pub(super) fn take_over(&mut self, previous: Link) {
        (self.id, self.session) = (previous.id, previous.session);
        (self.unrecorded, self.unrecorded_bytes) = (previous.unrecorded, previous.unrecorded_bytes);
        self.max_message = previous.max_message;
    }

    /// Returns None, with a warning in the log, if the signature is invalid or the channel unknown.
    pub(super) fn open(&mut self, frames: Frames) -> Option<(Channel, Message)> {
        let channel = frames.first().and_then(|frame| Channel::from_frame(frame));
        match (channel, self.session.open(frames)) {
            (Some(channel), Ok(message)) => Some((channel, message)),
            (None, _) => {
                tracing::warn!("dropped a message on an unknown channel");
                None
            }
            (_, Err(e)) => {
                tracing::warn!("dropped a message: {e}");
                None
            }
        }
    }

    pub(super) fn send_native<T: Serialize + ?Sized>(&mut self, msg_type: &str, content: &T) {
        self.send_with_buffers(msg_type, content, Vec::new());
    }

    pub(super) fn send_with_buffers<T: Serialize + ?Sized>(&mut self, msg_type: &str, content: &T, buffers: Vec<Bytes>) {
        let mut message = self.message(msg_type, None, content);
        message.buffers = buffers;
        self.send(Channel::Native, &[], &message);
    }

    /// Creates a message whose metadata names the engine.
    pub(super) fn message<T: Serialize + ?Sized>(&mut self, msg_type: &str, parent: Option<&Bytes>, content: &T) -> Message {
        let mut message = self.session.message(&unix_now().to_iso(), msg_type, parent, content);
        message.metadata_json = to_json(&serde_json::json!({ "engine": self.uuid }));
        message
    }

    /// Returns whether the message exceeds the controller's limit: it would close the connection.
    pub(super) fn is_too_large(&self, message: &Message) -> bool {
        size(message) + message.metadata_json.len() + message.parent_json.len() + MESSAGE_OVERHEAD > self.max_message
    }

    /// Sends a reply to a request and keeps it until the controller has recorded it.
    pub(super) fn reply(&mut self, msg_id: &str, channel: Channel, route: &[Bytes], message: Message) {
        self.send(channel, route, &message);
        self.unrecorded_bytes += size(&message);
        self.unrecorded.push_back((msg_id.to_string(), channel, route.to_vec(), message));
        while self.unrecorded_bytes > MAX_UNRECORDED_BYTES
            && self.unrecorded.len() > 1
            && let Some((msg_id, _, _, message)) = self.unrecorded.pop_front()
        {
            tracing::warn!(msg_id, "too many unrecorded replies; dropped the oldest one");
            self.unrecorded_bytes -= size(&message);
        }
    }

    pub(super) fn recorded(&mut self, msg_ids: &[String]) {
        let recorded: HashSet<&String> = msg_ids.iter().collect();
        let bytes = &mut self.unrecorded_bytes;
        self.unrecorded.retain(|(id, _, _, message)| {
            let is_unrecorded = !recorded.contains(id);
            *bytes -= if is_unrecorded { 0 } else { size(message) };
            is_unrecorded
        });
    }

    pub(super) fn unrecorded(&self) -> impl Iterator<Item = String> {
        self.unrecorded.iter().map(|(id, ..)| id.clone())
    }

    /// Sends unrecorded replies again with new headers: an identical message would be rejected as a replay.
    pub(super) fn resend_unrecorded(&mut self) {
        for (_, channel, route, message) in self.unrecorded.clone() {
            let mut again = self.message(message.msg_type(), Some(&message.parent_json), &());
            again.metadata_json = message.metadata_json;
            again.content_json = message.content_json;
            again.buffers = message.buffers;
            self.send(channel, &route, &again);
        }
    }

    /// Sends a message; `route` is placed between the channel and the delimiter.
    pub(super) fn send(&self, channel: Channel, route: &[Bytes], message: &Message) {
        let mut prefix = vec![Bytes::from_static(channel.frame())];
        prefix.extend_from_slice(route);
        if let Err(e) = self.socket.send(self.session.seal(&prefix, message)) {
            tracing::warn!(msg_type = message.msg_type(), "cannot send a message: {e}");
        }
    }
}

fn size(message: &Message) -> usize {
    message.content_json.len() + message.buffers.iter().map(Bytes::len).sum::<usize>()
}

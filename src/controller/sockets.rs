//! The controller's listening sockets: seven for clients, nine for engines. A task per socket reads and forwards messages
//! in order.
use super::core::ClientChannel;
use crate::model::EngineUuid;
use crate::profile::config::ControllerConfig;
use crate::transport::{Connection, Limits, MemoryBudget, Security, Socket, SocketKind, TransportError};
use crate::wire::Frames;
use crate::wire::content::engine::Channel;
use bytes::Bytes;
use tokio::sync::mpsc;

/// Messages queued for the driver. Further messages wait in the sockets.
const INBOX: usize = 4096;

/// The lowest port chosen if none is configured, and the number of ports tried.
const MIN_PORT: u16 = 10_000;
const BIND_TRIES: usize = 20;

/// The maximum number of frames of a message. Each buffer of a task is a frame.
const MAX_FRAMES: usize = 65_536;
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// A received message or connection event, with its socket.
#[derive(Debug)]
pub(super) enum Arrival {
    Client(ClientChannel, Frames),
    /// An `ipengine`'s channel.
    Stock(Channel, Frames),
    Registrant(Frames),
    Pong(Frames),
    /// The single connection of a pcluster engine.
    Native(Frames),
    Gone(EngineUuid),
    /// A client connected on a channel whose replies may be delivered later.
    ClientConnected(ClientChannel, Bytes, Option<String>),
    ClientDisconnected(ClientChannel, Bytes),
}

/// A socket whose peers have routing ids, so that a single peer can be disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PeerSocket {
    Client(ClientChannel),
    Stock(Channel),
    Registrant,
    Native,
}

impl Arrival {
    /// The sender according to the socket; None for a SUB socket and for connection events.
    pub(super) fn sender(&self) -> Option<(PeerSocket, Bytes)> {
        let (socket, frames) = match self {
            Arrival::Client(channel, frames) => (PeerSocket::Client(*channel), frames),
            Arrival::Stock(Channel::Iopub, _) | Arrival::Pong(_) | Arrival::Gone(_) => return None,
            Arrival::ClientConnected(..) | Arrival::ClientDisconnected(..) => return None,
            Arrival::Stock(channel, frames) => (PeerSocket::Stock(*channel), frames),
            Arrival::Registrant(frames) => (PeerSocket::Registrant, frames),
            Arrival::Native(frames) => (PeerSocket::Native, frames),
        };
        Some((socket, frames.first()?.clone()))
    }
}

/// The ports, as written to the connection files.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub(super) struct Ports {
    pub client: ClientPorts,
    pub engine: EnginePorts,
}
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub(super) struct ClientPorts {
    pub registration: u16,
    pub control: u16,
    pub mux: u16,
    pub task: u16,
    pub broadcast: u16,
    pub iopub: u16,
    pub notification: u16,
}
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub(super) struct EnginePorts {
    pub registration: u16,
    pub control: u16,
    pub mux: u16,
    pub task: u16,
    pub broadcast: u16,
    pub iopub: u16,
    pub hb_ping: u16,
    pub hb_pong: u16,
    pub native: u16,
}

impl Ports {
    /// The number of ports.
    const COUNT: usize = 16;

    /// Parses `10101-10116` or `10101,10103,10110-10125`; ports are assigned in the order of the fields above.
    pub(super) fn parse(text: &str) -> Result<Ports, String> {
        let mut list: Vec<u16> = Vec::new();
        for part in text.split(',') {
            let part = part.trim();
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |s: &str| {
                s.trim()
                    .parse::<u16>()
                    .ok()
                    .filter(|p| *p > 0)
                    .ok_or_else(|| format!("{s:?} is not a port (1 to 65535)"))
            };
            list.extend(number(first)?..=number(last)?);
        }
        if list.len() < Ports::COUNT {
            return Err(format!(
                "got {} ports, {} are needed (for example 10101-10116)",
                list.len(),
                Ports::COUNT
            ));
        }
        let mut next = list.into_iter();
        let mut port = || next.next().unwrap_or_default();
        Ok(Ports {
            client: ClientPorts {
                registration: port(),
                control: port(),
                mux: port(),
                task: port(),
                broadcast: port(),
                iopub: port(),
                notification: port(),
            },
            engine: EnginePorts {
                registration: port(),
                control: port(),
                mux: port(),
                task: port(),
                broadcast: port(),
                iopub: port(),
                hb_ping: port(),
                hb_pong: port(),
                native: port(),
            },
        })
    }
}

pub(super) struct Sockets {
    client: ClientSockets,
    engine: EngineSockets,
    pub ports: Ports,
    /// Accounts for messages that peers have not read yet.
    pub budget: MemoryBudget,
}

struct ClientSockets {
    registration: Socket,
    control: Socket,
    mux: Socket,
    task: Socket,
    broadcast: Socket,
    iopub: Socket,
    notification: Socket,
}

struct EngineSockets {
    registration: Socket,
    control: Socket,
    mux: Socket,
    task: Socket,
    broadcast: Socket,
    hb_ping: Socket,
    native: Socket,
}

impl Sockets {
    /// Listens on `wanted` (0: any free port). `client` and `engine` are the two sides' keys. Messages that may carry what
    /// users send have up to `config.max_message_mb`, others little.
    pub(super) async fn listen(
        ip: &str,
        wanted: &Ports,
        client: &Security,
        engine: &Security,
        config: &ControllerConfig,
    ) -> Result<(Sockets, mpsc::Receiver<Arrival>), TransportError> {
        let ip = if ip == "*" { "0.0.0.0" } else { ip };
        let (inbox, arrivals) = mpsc::channel(INBOX);
        let mut ports = Ports::default();
        let bytes = |mb: u64| usize::try_from(mb).unwrap_or(usize::MAX).saturating_mul(MIB);
        let (most, budget) = (bytes(config.max_message_mb), MemoryBudget::new(bytes(config.max_buffered_mb)));
        macro_rules! bind {
            ($side:ident, $name:ident, $kind:ident, $bytes:expr) => {
                bind!($side, $name, $kind, $bytes, |_| ())
            };
            // `watch` gets the socket before it is bound: peers of the previous run reconnect within milliseconds.
            ($side:ident, $name:ident, $kind:ident, $bytes:expr, $watch:expr) => {{
                let limits = Limits {
                    message_bytes: Some($bytes),
                    frames: MAX_FRAMES,
                    budget: Some(budget.clone()),
                };
                let socket = Socket::with_limits(SocketKind::$kind, None, $side, &limits)?;
                let watch: &dyn Fn(&Socket) = &$watch;
                watch(&socket);
                ports.$side.$name = match wanted.$side.$name {
                    0 => bind_outside_ephemeral(&socket, ip).await?,
                    port => socket.bind(ip, port).await?,
                };
                socket
            }};
        }
        let clients = ClientSockets {
            registration: bind!(client, registration, Router, most).with_adaptive_packing(),
            control: bind!(client, control, Router, most),
            mux: bind!(client, mux, Router, most, |s| report_connections(s, &inbox, ClientChannel::Mux)),
            task: bind!(client, task, Router, most, |s| report_connections(s, &inbox, ClientChannel::Task)),
            broadcast: bind!(client, broadcast, Router, most, |s| report_connections(
                s,
                &inbox,
                ClientChannel::Broadcast
            )),
            iopub: bind!(client, iopub, Pub, 64 * KIB),
            notification: bind!(client, notification, Pub, 64 * KIB),
        };
        let engine_iopub = bind!(engine, iopub, Sub, most);
        let hb_pong = bind!(engine, hb_pong, Router, 64 * KIB, |s| report_departures(s, &inbox));
        let engines = EngineSockets {
            registration: bind!(engine, registration, Router, MIB),
            control: bind!(engine, control, Router, most),
            mux: bind!(engine, mux, Router, most),
            task: bind!(engine, task, Router, most),
            broadcast: bind!(engine, broadcast, Router, most),
            hb_ping: bind!(engine, hb_ping, Pub, 64 * KIB),
            native: bind!(engine, native, Router, most, |s| report_departures(s, &inbox)).with_packing(),
        };
        read(&clients.registration, &inbox, |f| Arrival::Client(ClientChannel::Registration, f));
        read(&clients.control, &inbox, |f| Arrival::Client(ClientChannel::Control, f));
        read(&clients.mux, &inbox, |f| Arrival::Client(ClientChannel::Mux, f));
        read(&clients.task, &inbox, |f| Arrival::Client(ClientChannel::Task, f));
        read(&clients.broadcast, &inbox, |f| Arrival::Client(ClientChannel::Broadcast, f));
        read(&engines.registration, &inbox, Arrival::Registrant);
        read(&engines.control, &inbox, |f| Arrival::Stock(Channel::Control, f));
        read(&engines.mux, &inbox, |f| Arrival::Stock(Channel::Mux, f));
        read(&engines.task, &inbox, |f| Arrival::Stock(Channel::Task, f));
        read(&engines.broadcast, &inbox, |f| Arrival::Stock(Channel::Broadcast, f));
        read(&engine_iopub, &inbox, |f| Arrival::Stock(Channel::Iopub, f));
        read(&hb_pong, &inbox, Arrival::Pong);
        read(&engines.native, &inbox, Arrival::Native);
        let sockets = Sockets {
            client: clients,
            engine: engines,
            ports,
            budget,
        };
        Ok((sockets, arrivals))
    }

    pub(super) fn to_client(&self, channel: ClientChannel, frames: Frames) -> Result<(), TransportError> {
        match channel {
            ClientChannel::Registration => &self.client.registration,
            ClientChannel::Control => &self.client.control,
            ClientChannel::Mux => &self.client.mux,
            ClientChannel::Task => &self.client.task,
            ClientChannel::Broadcast => &self.client.broadcast,
        }
        .send(frames)
    }

    pub(super) fn to_stock_engine(&self, channel: Channel, frames: Frames) -> Result<(), TransportError> {
        match channel {
            Channel::Mux => &self.engine.mux,
            Channel::Task => &self.engine.task,
            Channel::Broadcast => &self.engine.broadcast,
            _ => &self.engine.control,
        }
        .send(frames)
    }

    pub(super) fn to_native_engine(&self, frames: Frames) -> Result<(), TransportError> {
        self.engine.native.send(frames)
    }
    pub(super) fn to_registrant(&self, frames: Frames) -> Result<(), TransportError> {
        self.engine.registration.send(frames)
    }
    pub(super) fn publish_iopub(&self, frames: Frames) -> Result<(), TransportError> {
        self.client.iopub.send(frames)
    }
    pub(super) fn notify(&self, frames: Frames) -> Result<(), TransportError> {
        self.client.notification.send(frames)
    }
    pub(super) fn ping(&self, payload: Bytes) -> Result<(), TransportError> {
        self.engine.hb_ping.send(vec![payload])
    }

    /// Ends a peer's connection.
    pub(super) fn disconnect(&self, socket: PeerSocket, peer: &Bytes, why: &str) {
        match socket {
            PeerSocket::Client(ClientChannel::Registration) => &self.client.registration,
            PeerSocket::Client(ClientChannel::Control) => &self.client.control,
            PeerSocket::Client(ClientChannel::Mux) => &self.client.mux,
            PeerSocket::Client(ClientChannel::Task) => &self.client.task,
            PeerSocket::Client(ClientChannel::Broadcast) => &self.client.broadcast,
            PeerSocket::Stock(Channel::Mux) => &self.engine.mux,
            PeerSocket::Stock(Channel::Task) => &self.engine.task,
            PeerSocket::Stock(Channel::Broadcast) => &self.engine.broadcast,
            PeerSocket::Stock(_) => &self.engine.control,
            PeerSocket::Registrant => &self.engine.registration,
            PeerSocket::Native => &self.engine.native,
        }
        .disconnect(peer, why);
    }

    /// Flushes sent messages, then closes the sockets.
    pub(super) async fn close(self) {
        let Sockets { client, engine, .. } = self;
        for socket in [
            client.registration,
            client.notification,
            client.iopub,
            engine.native,
            engine.control,
        ] {
            socket.close().await;
        }
    }
}

/// Listens on a port outside the ephemeral range. While a killed controller is down, the system could assign an ephemeral port to a
/// connection of another program, and the controller's engines and clients would not find it again.
async fn bind_outside_ephemeral(socket: &Socket, ip: &str) -> Result<u16, TransportError> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = range.split_whitespace().filter_map(|word| word.parse::<u16>().ok());
    let first_ephemeral = bounds.next().unwrap_or(32_768);
    for _ in 0..BIND_TRIES {
        let Some(port) = port_outside_ephemeral(first_ephemeral, uuid::Uuid::new_v4().as_u128()) else {
            break;
        };
        if let Ok(port) = socket.bind(ip, port).await {
            return Ok(port);
        }
    }
    socket.bind(ip, 0).await
}

/// A port between 10000 and the ephemeral range; None if fewer than 1000 ports are available.
fn port_outside_ephemeral(first_ephemeral: u16, random: u128) -> Option<u16> {
    let room = first_ephemeral.checked_sub(MIN_PORT).filter(|room| *room >= 1000)?;
    Some(MIN_PORT + (random % u128::from(room)) as u16)
}

fn read(socket: &Socket, inbox: &mpsc::Sender<Arrival>, wrap: impl Fn(Frames) -> Arrival + Send + 'static) {
    let (socket, inbox) = (socket.clone(), inbox.clone());
    tokio::spawn(async move {
        loop {
            match socket.receive().await {
                Ok(frames) => {
                    if inbox.send(wrap(frames)).await.is_err() {
                        return;
                    }
                }
                Err(TransportError::Closed) => return,
                Err(error) => tracing::warn!(%error, "cannot receive a message"),
            }
        }
    });
}

fn report_departures(socket: &Socket, inbox: &mpsc::Sender<Arrival>) {
    let (mut connections, inbox) = (socket.connections(), inbox.clone());
    tokio::spawn(async move {
        while let Some(gone) = connections.next_disconnected().await {
            // A routing id that this socket generated for an anonymous peer starts with a zero byte.
            if let Ok(uuid) = std::str::from_utf8(&gone)
                && !uuid.starts_with('\0')
                && inbox.send(Arrival::Gone(EngineUuid::from(uuid))).await.is_err()
            {
                return;
            }
        }
    });
}

fn report_connections(socket: &Socket, inbox: &mpsc::Sender<Arrival>, channel: ClientChannel) {
    let (mut connections, inbox) = (socket.connections(), inbox.clone());
    tokio::spawn(async move {
        while let Some(connection) = connections.next().await {
            let arrival = match connection {
                Connection::Began { identity, key } => Arrival::ClientConnected(channel, identity, key),
                Connection::Ended { identity } => Arrival::ClientDisconnected(channel, identity),
            };
            if inbox.send(arrival).await.is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_assigned_in_order() {
        let ports = Ports::parse("10101-10110, 20001-20006").unwrap();
        assert_eq!((ports.client.registration, ports.client.notification), (10101, 10107));
        assert_eq!((ports.engine.registration, ports.engine.native), (10108, 20006));
        for (text, expected) in [
            ("10101", "16 are needed"),
            ("a-b", "not a port"),
            ("", "not a port"),
            ("0-20", "not a port"),
            ("70000", "not a port"),
        ] {
            let error = Ports::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn ports_are_chosen_outside_the_ephemeral_range() {
        for random in [0, 7, 22_767, 22_768, u128::MAX] {
            assert!((10_000..32_768).contains(&port_outside_ephemeral(32_768, random).unwrap()));
        }
        assert_eq!(port_outside_ephemeral(10_999, 5), None);
        let (sockets, _arrivals) = Sockets::listen(
            "127.0.0.1",
            &Ports::default(),
            &Security::Plain,
            &Security::Plain,
            &ControllerConfig::default(),
        )
        .await
        .unwrap();
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let first: u16 = text.split_whitespace().next().unwrap().parse().unwrap();
        let ports = [
            sockets.ports.client.registration,
            sockets.ports.client.task,
            sockets.ports.engine.native,
        ];
        assert!(first < 11_000 || ports.iter().all(|port| *port < first), "{ports:?}");
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut wanted = Ports::default();
        wanted.client.mux = port;
        let result = Sockets::listen(
            "127.0.0.1",
            &wanted,
            &Security::Plain,
            &Security::Plain,
            &ControllerConfig::default(),
        )
        .await;
        let error = result.err().unwrap().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("in use"), "{error}");
    }
}

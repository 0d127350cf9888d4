//! Connections from the far end of a reverse tunnel, forwarded to one local address. When one ends because the ssh connection is lost,
//! its near side is held open: the local peer sees silence, as if a cable was pulled, instead of a close, and applies its own timeout
//! for silence. Data that the peer sends meanwhile is dropped, as it would be on that cable. The data is not inspected.
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, BufReader, copy_buf};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// The maximum number of bytes buffered for one direction of one connection.
const BUFFER: usize = 128 << 10;

/// When it is dropped, all held connections close.
pub(crate) struct Relay {
    verdicts: watch::Sender<Verdicts>,
    ended: Arc<Notify>,
}

/// Counts the calls of `confirm_alive` and `release`. Held connections that ended before a call are closed.
#[derive(Clone, Copy, Default)]
struct Verdicts {
    /// The number of the ssh connection.
    connection: u64,
    alive: u64,
    released: u64,
}

/// Listens until it is dropped; accepted connections continue.
pub(crate) struct Listening(JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Default for Relay {
    fn default() -> Self {
        let (verdicts, _) = watch::channel(Verdicts::default());
        Relay {
            verdicts,
            ended: Arc::default(),
        }
    }
}

impl Relay {
    /// Starts a new ssh connection: later connections come over it, and all earlier ones ended with the previous one.
    pub(crate) fn new_connection(&self) {
        self.verdicts.send_modify(|verdicts| verdicts.connection += 1);
    }

    /// Creates a socket; its connections are forwarded to `address`:`port`.
    pub(crate) fn listen(&self, path: &Path, address: &str, port: u16) -> io::Result<Listening> {
        let listener = UnixListener::bind(path)?;
        let (verdicts, ended, address) = (self.verdicts.subscribe(), self.ended.clone(), address.to_string());
        Ok(Listening(tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((far, _)) => drop(tokio::spawn(carry(far, address.clone(), port, verdicts.clone(), ended.clone()))),
                    // For example, out of file descriptors: existing connections continue.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                    }
                }
            }
        })))
    }

    /// Returns when a connection has ended at the far side; the caller checks whether the ssh connection was lost.
    pub(crate) async fn far_side_ended(&self) {
        self.ended.notified().await;
    }

    /// Reports that the ssh connection is alive: its connections that have ended so far are closed locally, too.
    pub(crate) fn confirm_alive(&self) {
        self.verdicts.send_modify(|verdicts| verdicts.alive += 1);
    }

    /// Closes all held connections that have ended so far.
    pub(crate) fn release(&self) {
        self.verdicts.send_modify(|verdicts| verdicts.released += 1);
    }
}

async fn carry(far: UnixStream, address: String, port: u16, mut verdicts: watch::Receiver<Verdicts>, ended: Arc<Notify>) {
    let came_by = verdicts.borrow().connection;
    let near = match TcpStream::connect((address.as_str(), port)).await {
        Ok(near) => near,
        Err(error) => return tracing::debug!(address, port, %error, "nothing is listening"),
    };
    // Else small messages would wait for the acknowledgement of the previous one.
    let _ = near.set_nodelay(true);
    let (from_far, mut to_far) = far.into_split();
    let (from_near, mut to_near) = near.into_split();
    let (mut from_far, mut from_near) = (
        BufReader::with_capacity(BUFFER, from_far),
        BufReader::with_capacity(BUFFER, from_near),
    );
    let near_ended = tokio::select! {
        _ = copy_buf(&mut from_far, &mut to_near) => false,
        sent = copy_buf(&mut from_near, &mut to_far) => sent.is_ok(),
    };
    if near_ended {
        return;
    }
    drop((from_far, to_far));
    let before = *verdicts.borrow_and_update();
    let is_of = |now: &Verdicts| now.connection == came_by;
    ended.notify_one();
    let mut dropped = vec![0; BUFFER];
    loop {
        tokio::select! {
            read = from_near.read(&mut dropped) => if !matches!(read, Ok(1..)) { return },
            changed = verdicts.changed() => {
                let now = *verdicts.borrow_and_update();
                if changed.is_err() || (is_of(&now) && now.alive > before.alive) || now.released > before.released {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    struct World {
        relay: Relay,
        _listening: Listening,
        far: UnixStream,
        near: TcpStream,
        _dir: tempfile::TempDir,
    }

    /// One connection over which both sides have exchanged data.
    async fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let controller = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::default();
        let path = dir.path().join("native");
        let listening = relay.listen(&path, "127.0.0.1", controller.local_addr().unwrap().port()).unwrap();
        let mut far = UnixStream::connect(&path).await.unwrap();
        let (mut near, _) = controller.accept().await.unwrap();
        let mut received = [0; 5];
        far.write_all(b"hello").await.unwrap();
        near.read_exact(&mut received).await.unwrap();
        near.write_all(b"there").await.unwrap();
        far.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"there");
        World {
            relay,
            _listening: listening,
            far,
            near,
            _dir: dir,
        }
    }

    #[tokio::test]
    async fn a_single_closed_connection_is_closed_on_both_sides() {
        let mut world = world().await;
        drop(world.far);
        world.relay.far_side_ended().await;
        world.relay.confirm_alive();
        assert_eq!(world.near.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_connection_that_ends_with_ssh_is_held_until_released() {
        let mut world = world().await;
        drop(world.far);
        world.relay.far_side_ended().await;
        // A report on the next ssh connection does not apply to this one.
        world.relay.new_connection();
        world.relay.confirm_alive();
        // More than any buffer holds: it is read and dropped.
        world.near.write_all(&vec![0; 16 << 20]).await.unwrap();
        assert!(
            world.near.try_read(&mut [0]).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock),
            "it stands"
        );
        world.relay.release();
        let ended = world.near.read(&mut [0]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }

    #[tokio::test]
    async fn a_connection_closed_by_the_controller_is_closed_for_the_engine() {
        let mut world = world().await;
        drop(world.near);
        assert_eq!(world.far.read(&mut [0]).await.unwrap(), 0);
    }
}

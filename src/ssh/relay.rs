//! Connections from the far end of a reverse tunnel, carried on to one address here. When one ends because the ssh connection is lost,
//! its near side is held: whoever is there sees silence, as with a cable that was pulled, and not an end, and has the patience that he has
//! with silence. What comes for it meanwhile is dropped, as it would be on that cable. What is carried is not looked at.
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, BufReader, copy_buf};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// What one direction of one connection holds at most.
const BUFFER: usize = 128 << 10;

/// Dropped, all that it holds ends.
pub struct Relay {
    verdicts: watch::Sender<Verdicts>,
    ended: Arc<Notify>,
}

/// How often it was said. What ended before lets go.
#[derive(Clone, Copy, Default)]
struct Verdicts {
    /// Which ssh connection it is.
    connection: u64,
    alive: u64,
    released: u64,
}

/// Listens until it is dropped; the connections go on.
pub struct Listening(JoinHandle<()>);

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
    /// What connects from now on comes by another ssh connection; all that came before has ended with the one before.
    pub fn new_connection(&self) {
        self.verdicts.send_modify(|verdicts| verdicts.connection += 1);
    }

    /// What connects to a socket that is made here is carried to `address`:`port`.
    pub fn listen(&self, path: &Path, address: &str, port: u16) -> io::Result<Listening> {
        let listener = UnixListener::bind(path)?;
        let (verdicts, ended, address) = (self.verdicts.subscribe(), self.ended.clone(), address.to_string());
        Ok(Listening(tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((far, _)) => drop(tokio::spawn(carry(far, address.clone(), port, verdicts.clone(), ended.clone()))),
                    // Out of file descriptors, say: those that there are go on.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                    }
                }
            }
        })))
    }

    /// Returns when a connection has ended at the far side: is it the ssh connection's end?
    pub async fn far_side_ended(&self) {
        self.ended.notified().await;
    }

    /// It is not: what has come by it and has ended so far ends here, too.
    pub fn confirm_alive(&self) {
        self.verdicts.send_modify(|verdicts| verdicts.alive += 1);
    }

    /// Nothing that has ended so far need be held any longer.
    pub fn release(&self) {
        self.verdicts.send_modify(|verdicts| verdicts.released += 1);
    }
}

async fn carry(far: UnixStream, address: String, port: u16, mut verdicts: watch::Receiver<Verdicts>, ended: Arc<Notify>) {
    let came_by = verdicts.borrow().connection;
    let near = match TcpStream::connect((address.as_str(), port)).await {
        Ok(near) => near,
        Err(error) => return tracing::debug!(address, port, %error, "nobody listens"),
    };
    // Else small messages would wait for the acknowledgement of the one before.
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
            said = verdicts.changed() => {
                let now = *verdicts.borrow_and_update();
                if said.is_err() || (is_of(&now) && now.alive > before.alive) || now.released > before.released {
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

    /// One connection, through which both sides have heard of each other.
    async fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let controller = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::default();
        let path = dir.path().join("native");
        let listening = relay.listen(&path, "127.0.0.1", controller.local_addr().unwrap().port()).unwrap();
        let mut far = UnixStream::connect(&path).await.unwrap();
        let (mut near, _) = controller.accept().await.unwrap();
        let mut said = [0; 5];
        far.write_all(b"hello").await.unwrap();
        near.read_exact(&mut said).await.unwrap();
        near.write_all(b"there").await.unwrap();
        far.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"there");
        World {
            relay,
            _listening: listening,
            far,
            near,
            _dir: dir,
        }
    }

    #[tokio::test]
    async fn one_that_ends_alone_ends_on_both_sides() {
        let mut world = world().await;
        drop(world.far);
        world.relay.far_side_ended().await;
        world.relay.confirm_alive();
        assert_eq!(world.near.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn one_that_ends_with_the_ssh_connection_is_held_until_it_is_released() {
        let mut world = world().await;
        drop(world.far);
        world.relay.far_side_ended().await;
        // A word about the next connection is none about this one.
        world.relay.new_connection();
        world.relay.confirm_alive();
        // More than any buffer holds: it is taken and dropped.
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
    async fn one_that_the_controller_ends_ends_for_the_engine() {
        let mut world = world().await;
        drop(world.near);
        assert_eq!(world.far.read(&mut [0]).await.unwrap(), 0);
    }
}

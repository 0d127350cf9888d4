//! One connection to one host over ssh: commands, files, forwards. The user's own OpenSSH does it (crate `openssh`), with
//! the user's configuration, agent, jump hosts and known hosts. It never prompts: what would need an answer is an error
//! in the host's own words.
use super::config::{HostConfig, HostKeys};
use super::control_dir::ControlDir;
use super::destination::Destination;
use super::error::{self, SshError};
use super::shell::{between_marks, marked, quoted};
use openssh::{ForwardType, KnownHosts, Session, SessionBuilder, Socket, Stdio};
use std::borrow::Cow;
use std::convert::Infallible;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// For the network and the key exchange, unless the user's configuration has another time.
const CONNECT: Duration = Duration::from_secs(15);
/// For logging in after that: a host that hangs then is given up.
const LOG_IN: Duration = Duration::from_secs(20);
/// So often it is noted what a connection that is being made goes through.
const NOTE_EVERY: Duration = Duration::from_millis(200);
/// A connection on which nothing is heard is asked so often whether it lives, and given up after three answers that do not
/// come; unless the user's configuration says it.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// More of a command's output than this is not kept.
const MAX_OUTPUT: u64 = 64 << 20;

/// What a command did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// None where a signal ended it.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    /// The last lines of what it said, for an error.
    pub fn last_lines(&self) -> String {
        let said = if self.stderr.is_empty() { &self.stdout } else { &self.stderr };
        let text = String::from_utf8_lossy(said);
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
        lines[lines.len().saturating_sub(6)..].join("\n")
    }
}

/// A command that runs there. Dropped, its output is no longer read; the command is not ended by that.
pub struct RemoteCommand {
    child: openssh::Child<Arc<Session>>,
    to: String,
}

/// A live connection. Dropped, it is closed, unless it was the user's own.
pub struct Ssh {
    session: Option<Arc<Session>>,
    to: Destination,
    control_dir: ControlDir,
    /// It is a connection that the user had open already (ControlMaster): ours to use, not to end.
    borrowed: bool,
    timeout: Duration,
    forwards: std::sync::Mutex<Vec<(ForwardType, Socket<'static>, Socket<'static>)>>,
}

impl Ssh {
    /// Logs in, or uses the connection that the user's ControlMaster has open already.
    pub async fn connect(to: &Destination) -> Result<Ssh, SshError> {
        let settings = HostConfig::of(to).await?;
        let control_dir = ControlDir::create()?;
        let timeout = settings.connect_timeout.unwrap_or(CONNECT);
        let new = |session: Session, borrowed: bool, control_dir: ControlDir| Ssh {
            session: Some(Arc::new(session)),
            to: to.clone(),
            control_dir,
            borrowed,
            timeout,
            forwards: Default::default(),
        };
        if let Some(path) = settings.control_path.filter(|path| path.exists()) {
            let session = Session::resume_mux(path.into_boxed_path(), None);
            if matches!(tokio::time::timeout(timeout, session.check()).await, Ok(Ok(()))) {
                return Ok(new(session, true, control_dir));
            }
        }
        let mut builder = SessionBuilder::default();
        builder
            .control_directory(control_dir.path())
            .connect_timeout(timeout)
            .known_hosts_check(match settings.host_keys {
                HostKeys::Strict => KnownHosts::Strict,
                HostKeys::AcceptNew => KnownHosts::Add,
                HostKeys::Unchecked => KnownHosts::Accept,
            });
        if settings.alive_every.is_none() {
            builder.server_alive_interval(ALIVE_EVERY);
        }
        // A jump host has its own time to connect.
        let all = timeout * 2 + LOG_IN;
        let connecting = tokio::time::timeout(all, builder.connect_mux(to.as_str()));
        let connected = tokio::select! {
            connected = connecting => connected,
            never = record_proxies(&control_dir) => match never {},
        };
        match connected {
            Ok(Ok(session)) => {
                control_dir.record_proxies();
                Ok(new(session, false, control_dir))
            }
            Ok(Err(error)) => Err(SshError::of_connecting(to.as_str(), &error)),
            Err(_) => Err(SshError::Silent {
                to: to.to_string(),
                doing: "logging in",
                seconds: all.as_secs(),
            }),
        }
    }

    pub fn destination(&self) -> &Destination {
        &self.to
    }

    /// Whether it is a connection that the user had open already.
    pub fn is_borrowed(&self) -> bool {
        self.borrowed
    }

    /// The directory of this connection's sockets; private, gone with the connection.
    pub fn control_dir(&self) -> &Path {
        self.control_dir.path()
    }

    /// What the ssh process has said last, about channels that could not be opened for instance.
    pub fn log_tail(&self) -> String {
        let log = self.session.as_ref().and_then(|s| Some(s.control_socket().parent()?.join("log")));
        let text = log
            .filter(|_| !self.borrowed)
            .and_then(|log| std::fs::read_to_string(log).ok())
            .unwrap_or_default();
        let mut lines: Vec<&str> = text.lines().rev().map(str::trim).filter(|l| !l.is_empty()).take(2).collect();
        lines.dedup();
        lines.reverse();
        lines.join("\n")
    }

    fn session(&self) -> Result<&Arc<Session>, SshError> {
        self.session.as_ref().ok_or_else(|| self.lost("it is closed"))
    }

    fn lost(&self, why: impl std::fmt::Display) -> SshError {
        SshError::Lost {
            to: self.to.to_string(),
            why: why.to_string(),
        }
    }

    /// Whether the local end still holds the connection; says nothing of the other end.
    pub async fn check(&self) -> Result<(), SshError> {
        match tokio::time::timeout(self.timeout, self.session()?.check()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(self.lost(error::chain(&e))),
            Err(_) => Err(self.lost("the ssh process does not answer")),
        }
    }

    /// Starts a command; each word reaches it as it is.
    pub async fn spawn(&self, words: &[&str]) -> Result<RemoteCommand, SshError> {
        let Some((program, arguments)) = words.split_first() else {
            return Err(self.lost("there is no command to run"));
        };
        let mut command = self.session()?.clone().arc_command(*program);
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match tokio::time::timeout(self.timeout, command.spawn()).await {
            Ok(Ok(child)) => Ok(RemoteCommand {
                child,
                to: self.to.to_string(),
            }),
            Ok(Err(e)) => Err(self.lost(error::chain(&e))),
            Err(_) => Err(SshError::Silent {
                to: self.to.to_string(),
                doing: "starting a command",
                seconds: self.timeout.as_secs(),
            }),
        }
    }

    /// Runs a command with something to read, to its end.
    pub async fn run(&self, words: &[&str], input: &[u8], timeout: Duration) -> Result<Output, SshError> {
        let running = self.spawn(words).await?;
        match tokio::time::timeout(timeout, running.finish(input, &mut |_| {})).await {
            Ok(output) => output,
            Err(_) => Err(SshError::Silent {
                to: self.to.to_string(),
                doing: "running a command",
                seconds: timeout.as_secs(),
            }),
        }
    }

    /// Runs a script of the POSIX shell, whatever the user's login shell is.
    pub async fn script(&self, script: &str, timeout: Duration) -> Result<Output, SshError> {
        self.run(&["sh", "-s"], script.as_bytes(), timeout).await
    }

    /// Runs a script of the POSIX shell to its end; what it printed, without what the shell's start-up files print.
    pub async fn ask(&self, script: &str, timeout: Duration) -> Result<String, SshError> {
        let output = self.script(&marked(script), timeout).await?;
        match between_marks(&output.stdout_text()) {
            Some(printed) => Ok(printed.to_string()),
            None => Err(SshError::Unexpected {
                to: self.to.to_string(),
                printed: output.last_lines(),
            }),
        }
    }

    /// Writes a file there: born private, complete before it has its name, its length checked. `path` is absolute;
    /// directories that are missing are made, for their owner only.
    pub async fn put(&self, bytes: &[u8], path: &str, executable: bool, timeout: Duration) -> Result<(), SshError> {
        let mode = if executable { "755" } else { "600" };
        // One line: not every login shell lets a quoted text go over several.
        let script = format!(
            "umask 077; p={}; d=$(dirname \"$p\"); mkdir -p \"$d\" && t=$(mktemp \"$d/.pcluster.XXXXXX\") || exit 1; \
             if cat >\"$t\" && [ \"$(wc -c <\"$t\")\" -eq {} ] && chmod {mode} \"$t\" && mv -f \"$t\" \"$p\"; then exit 0; \
             else rm -f \"$t\"; echo \"$p was not written\" >&2; exit 1; fi",
            quoted(path),
            bytes.len(),
        );
        let output = self.run(&["sh", "-c", &script], bytes, timeout).await?;
        match output.ok() {
            true => Ok(()),
            false => Err(SshError::Put {
                to: self.to.to_string(),
                path: path.into(),
                said: output.last_lines(),
            }),
        }
    }

    /// A socket here that leads to an address as the other host sees it. The socket is a file in [`Ssh::control_dir`]: nobody
    /// else can use it, and it takes no port.
    pub async fn forward_local(&self, name: &str, host: &str, port: u16) -> Result<PathBuf, SshError> {
        let path = self.control_dir.path().join(name);
        let listen = Socket::UnixSocket {
            path: Cow::Owned(path.clone()),
        };
        self.forward(ForwardType::Local, listen, tcp(host, port)).await?;
        Ok(path)
    }

    /// The reverse: connections to `there_port` on the other host's loopback come to a socket here.
    pub async fn forward_remote(&self, there_port: u16, path: &Path) -> Result<(), SshError> {
        let connect = Socket::UnixSocket {
            path: Cow::Owned(path.to_path_buf()),
        };
        self.forward(ForwardType::Remote, tcp("127.0.0.1", there_port), connect).await
    }

    async fn forward(&self, way: ForwardType, listen: Socket<'static>, connect: Socket<'static>) -> Result<(), SshError> {
        let asked = self.session()?.request_port_forward(way, listen.clone(), connect.clone());
        let failed = |why: String| SshError::Forward {
            to: self.to.to_string(),
            from: listen.to_string(),
            target: connect.to_string(),
            why,
        };
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(Ok(())) => {}
            Ok(Err(openssh::Error::Disconnected)) => return Err(self.lost("the connection was terminated")),
            Ok(Err(e)) => return Err(failed(error::chain(&e))),
            Err(_) => return Err(failed("no answer".into())),
        }
        if self.borrowed {
            let mut forwards = self.forwards.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            forwards.push((way, listen, connect));
        }
        Ok(())
    }

    /// Takes back forwards, ends the connection if it is ours, and removes its files.
    pub async fn close(mut self) {
        if !self.borrowed {
            return;
        }
        let forwards = std::mem::take(&mut *self.forwards.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        let Ok(session) = self.session().cloned() else { return };
        for (way, listen, connect) in forwards {
            let closing = session.close_port_forward(way, listen, connect);
            if !matches!(tokio::time::timeout(self.timeout, closing).await, Ok(Ok(()))) {
                break;
            }
        }
        self.session = None;
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        // `control_dir` ends the ssh process, whatever it is doing; asking it politely could wait for ever.
        if let Some(Ok(session)) = self.session.take().map(Arc::try_unwrap) {
            let _ = session.detach();
        }
    }
}

impl RemoteCommand {
    /// Gives it its input, reads all that it says until it ends. `line` gets each line of stderr as it comes.
    pub async fn finish(mut self, input: &[u8], line: &mut impl FnMut(&str)) -> Result<Output, SshError> {
        let lost = |why: String| SshError::Lost { to: self.to.clone(), why };
        let (stdin, stdout, stderr) = (self.child.stdin().take(), self.child.stdout().take(), self.child.stderr().take());
        let feed = async move {
            if let Some(mut stdin) = stdin {
                // A command that does not read to the end says itself what it thinks of that.
                let _ = stdin.write_all(input).await;
                let _ = stdin.shutdown().await;
            }
        };
        let ((), stdout, stderr) = tokio::join!(feed, read_all(stdout, None::<&mut fn(&str)>), read_all(stderr, Some(line)));
        let code = match self.child.wait().await {
            Ok(status) => status.code().or(status.signal().map(|s| 128 + s)),
            // The crate's word for exit code 127.
            Err(openssh::Error::Remote(_)) => Some(127),
            Err(openssh::Error::RemoteProcessTerminated) => None,
            Err(e) => return Err(lost(error::chain(&e))),
        };
        Ok(Output { code, stdout, stderr })
    }
}

/// While a connection is being made.
async fn record_proxies(control_dir: &ControlDir) -> Infallible {
    loop {
        tokio::time::sleep(NOTE_EVERY).await;
        control_dir.record_child_proxies();
    }
}

async fn read_all<L: FnMut(&str)>(from: Option<impl AsyncRead + Unpin>, mut line: Option<&mut L>) -> Vec<u8> {
    let mut all = Vec::new();
    let Some(from) = from else { return all };
    let mut from = from.take(MAX_OUTPUT);
    let (mut buffer, mut told) = (vec![0; 16 << 10], 0);
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        all.extend_from_slice(&buffer[..n]);
        let Some(line) = line.as_mut() else { continue };
        while let Some(end) = all[told..].iter().position(|b| *b == b'\n') {
            line(String::from_utf8_lossy(&all[told..told + end]).trim_end());
            told += end + 1;
        }
    }
    if let Some(line) = line
        && told < all.len()
    {
        line(String::from_utf8_lossy(&all[told..]).trim_end());
    }
    all
}

fn tcp(host: &str, port: u16) -> Socket<'static> {
    Socket::TcpSocket {
        host: Cow::Owned(host.to_string()),
        port,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_long_talk_the_end_counts() {
        let stderr = (1..=9).map(|n| format!("line {n}\n")).collect::<String>().into_bytes();
        let output = Output {
            code: Some(1),
            stdout: b"x".to_vec(),
            stderr,
        };
        assert_eq!(output.last_lines(), "line 4\nline 5\nline 6\nline 7\nline 8\nline 9");
    }
}

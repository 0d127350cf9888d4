//! One connection to one host over ssh: commands, files, forwards. It runs the user's own OpenSSH (crate `openssh`), with
//! the user's configuration, agent, jump hosts and known hosts. It never prompts: a prompt becomes an error
//! with the host's own text.
use super::config::{HostConfig, HostKeys};
use super::control_dir::ControlDir;
use super::destination::Destination;
use super::error::{self, SshError};
use super::shell::{between_marks, marked};
use crate::model::shell::quoted;
use openssh::{ForwardType, KnownHosts, Session, SessionBuilder, Socket, Stdio};
use std::borrow::Cow;
use std::convert::Infallible;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// The timeout of the network and the key exchange, unless the user's configuration sets another.
const CONNECT: Duration = Duration::from_secs(15);
/// The timeout of the login after that.
const LOG_IN: Duration = Duration::from_secs(20);
/// The interval at which the proxy processes of a connection that is being established are recorded.
const NOTE_EVERY: Duration = Duration::from_millis(200);
/// The keepalive interval of a silent connection, which is closed after three missing
/// answers, unless the user's configuration sets another.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// The maximum number of bytes kept of a command's output.
const MAX_OUTPUT: u64 = 64 << 20;

/// The result of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    /// None if a signal ended it.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    pub(crate) fn ok(&self) -> bool {
        self.code == Some(0)
    }
    pub(crate) fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    /// The last lines of its output, for an error.
    pub(crate) fn last_lines(&self) -> String {
        let printed = if self.stderr.is_empty() { &self.stdout } else { &self.stderr };
        let text = String::from_utf8_lossy(printed);
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
        lines[lines.len().saturating_sub(6)..].join("\n")
    }
}

/// A running remote command. Dropping this stops reading its output, but does not end the command.
pub(crate) struct RemoteCommand {
    child: openssh::Child<Arc<Session>>,
    to: String,
}

/// A live connection. It is closed on drop, unless it is the user's own.
pub(crate) struct Ssh {
    session: Option<Arc<Session>>,
    to: Destination,
    control_dir: ControlDir,
    /// It is a connection that the user had already open (ControlMaster): not closed by pcluster.
    borrowed: bool,
    timeout: Duration,
    forwards: std::sync::Mutex<Vec<(ForwardType, Socket<'static>, Socket<'static>)>>,
}

impl Ssh {
    pub(crate) async fn connect_to(destination: &str) -> Result<Ssh, SshError> {
        Ssh::connect(&Destination::parse(destination)?).await
    }

    /// Logs in, or uses the connection that the user's ControlMaster already has open.
    pub(crate) async fn connect(to: &Destination) -> Result<Ssh, SshError> {
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
        // A jump host has its own connect timeout.
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

    pub(crate) fn destination(&self) -> &Destination {
        &self.to
    }

    /// Whether the user had this connection already open.
    pub(crate) fn is_borrowed(&self) -> bool {
        self.borrowed
    }

    /// The private directory of this connection's sockets, removed with the connection.
    pub(crate) fn control_dir(&self) -> &Path {
        self.control_dir.path()
    }

    /// The last output of the ssh process, for example about channels that could not be opened.
    pub(crate) fn log_tail(&self) -> String {
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

    /// Checks that the local ssh process still holds the connection; it does not check the remote end.
    pub(crate) async fn check(&self) -> Result<(), SshError> {
        match tokio::time::timeout(self.timeout, self.session()?.check()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(self.lost(error::chain(&e))),
            Err(_) => Err(self.lost("the ssh process does not answer")),
        }
    }

    /// Starts a command; its arguments are passed unchanged.
    pub(crate) async fn spawn(&self, words: &[&str]) -> Result<RemoteCommand, SshError> {
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

    /// Runs a command with this input, to its end.
    pub(crate) async fn run(&self, words: &[&str], input: &[u8], timeout: Duration) -> Result<Output, SshError> {
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
    pub(crate) async fn script(&self, script: &str, timeout: Duration) -> Result<Output, SshError> {
        self.run(&["sh", "-s"], script.as_bytes(), timeout).await
    }

    /// Runs a POSIX shell script to its end; returns its output, without that of the shell's start-up files.
    pub(crate) async fn ask(&self, script: &str, timeout: Duration) -> Result<String, SshError> {
        let output = self.script(&marked(script), timeout).await?;
        match between_marks(&output.stdout_text()) {
            Some(printed) => Ok(printed.to_string()),
            None => Err(SshError::Unexpected {
                to: self.to.to_string(),
                printed: output.last_lines(),
            }),
        }
    }

    /// The same on a new connection, which is closed afterwards.
    pub(crate) async fn ask_host(host: &str, script: &str, timeout: Duration) -> Result<String, SshError> {
        let ssh = Ssh::connect_to(host).await?;
        let printed = ssh.ask(script, timeout).await;
        ssh.close().await;
        printed
    }

    /// Writes a remote file: created private, renamed when complete, its length checked. `path` is absolute;
    /// missing directories are created, accessible only to their owner.
    pub(crate) async fn put(&self, bytes: &[u8], path: &str, executable: bool, timeout: Duration) -> Result<(), SshError> {
        let mode = if executable { "755" } else { "600" };
        // One line: not every login shell accepts a quoted text of several lines.
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
                output: output.last_lines(),
            }),
        }
    }

    /// Forwards a local socket to an address as the other host sees it. The socket is a file in [`Ssh::control_dir`]: no other user
    /// can use it, and it takes no port.
    pub(crate) async fn forward_local(&self, name: &str, host: &str, port: u16) -> Result<PathBuf, SshError> {
        let path = self.control_dir.path().join(name);
        let listen = Socket::UnixSocket {
            path: Cow::Owned(path.clone()),
        };
        self.forward(ForwardType::Local, listen, tcp(host, port)).await?;
        Ok(path)
    }

    /// The reverse: forwards connections to `remote_port` on the other host's loopback to a local socket.
    pub(crate) async fn forward_remote(&self, remote_port: u16, path: &Path) -> Result<(), SshError> {
        let connect = Socket::UnixSocket {
            path: Cow::Owned(path.to_path_buf()),
        };
        self.forward(ForwardType::Remote, tcp("127.0.0.1", remote_port), connect).await
    }

    async fn forward(&self, forward_type: ForwardType, listen: Socket<'static>, connect: Socket<'static>) -> Result<(), SshError> {
        let asked = self.session()?.request_port_forward(forward_type, listen.clone(), connect.clone());
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
            forwards.push((forward_type, listen, connect));
        }
        Ok(())
    }

    /// Cancels forwards, closes the connection if it is ours, and removes its files.
    pub(crate) async fn close(mut self) {
        if !self.borrowed {
            return;
        }
        let forwards = std::mem::take(&mut *self.forwards.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        let Ok(session) = self.session().cloned() else { return };
        for (forward_type, listen, connect) in forwards {
            let closing = session.close_port_forward(forward_type, listen, connect);
            if !matches!(tokio::time::timeout(self.timeout, closing).await, Ok(Ok(()))) {
                break;
            }
        }
        self.session = None;
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        // `control_dir` ends the ssh process, whatever it is doing; a clean shutdown could wait forever.
        if let Some(Ok(session)) = self.session.take().map(Arc::try_unwrap) {
            let _ = session.detach();
        }
    }
}

impl RemoteCommand {
    /// Sends its input and reads its output until it ends. `line` receives each line of stderr as it arrives.
    pub(crate) async fn finish(mut self, input: &[u8], line: &mut impl FnMut(&str)) -> Result<Output, SshError> {
        let lost = |why: String| SshError::Lost { to: self.to.clone(), why };
        let (stdin, stdout, stderr) = (self.child.stdin().take(), self.child.stdout().take(), self.child.stderr().take());
        let feed = async move {
            if let Some(mut stdin) = stdin {
                // A command that does not read all its input reports that itself if it is an error.
                let _ = stdin.write_all(input).await;
                let _ = stdin.shutdown().await;
            }
        };
        let ((), stdout, stderr) = tokio::join!(feed, read_all(stdout, None::<&mut fn(&str)>), read_all(stderr, Some(line)));
        let code = match self.child.wait().await {
            Ok(status) => status.code().or(status.signal().map(|s| 128 + s)),
            // The crate's error for exit code 127.
            Err(openssh::Error::Remote(_)) => Some(127),
            Err(openssh::Error::RemoteProcessTerminated) => None,
            Err(e) => return Err(lost(error::chain(&e))),
        };
        Ok(Output { code, stdout, stderr })
    }
}

/// Runs while a connection is being established.
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
    let (mut buffer, mut reported) = (vec![0; 16 << 10], 0);
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        all.extend_from_slice(&buffer[..n]);
        let Some(line) = line.as_mut() else { continue };
        while let Some(end) = all[reported..].iter().position(|b| *b == b'\n') {
            line(String::from_utf8_lossy(&all[reported..reported + end]).trim_end());
            reported += end + 1;
        }
    }
    if let Some(line) = line
        && reported < all.len()
    {
        line(String::from_utf8_lossy(&all[reported..]).trim_end());
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
    fn long_output_keeps_its_end() {
        let stderr = (1..=9).map(|n| format!("line {n}\n")).collect::<String>().into_bytes();
        let output = Output {
            code: Some(1),
            stdout: b"x".to_vec(),
            stderr,
        };
        assert_eq!(output.last_lines(), "line 4\nline 5\nline 6\nline 7\nline 8\nline 9");
    }
}

//! Running commands with an end: none outlives its patience.
use super::normalise::normalised;
use super::wait::wait_until;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

/// A command that runs; its output is read as it comes.
pub struct Running {
    spelled: String,
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ended {
    pub spelled: String,
    /// None when it ended by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Running {
    pub fn spawn(command: &mut Command, stdin: &str) -> Running {
        let spelled = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().rsplit('/').next().unwrap_or_default().to_string())
            .collect::<Vec<_>>()
            .join(" ");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let text = stdin.to_string();
        thread::spawn(move || {
            // A command that does not read what it is given is no failure of the test.
            let _ = input.write_all(text.as_bytes());
        });
        let stdout = collect(child.stdout.take().unwrap());
        let stderr = collect(child.stderr.take().unwrap());
        Running {
            spelled,
            child,
            stdout,
            stderr,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let status = wait_until(&format!("the end of {}", self.spelled), || self.child.try_wait().unwrap());
        let text = |receiver: &Receiver<String>| receiver.recv().unwrap_or_default();
        Ended {
            code: status.code(),
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
            spelled: self.spelled.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn collect(mut from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

impl Ended {
    /// Its stdout; anything but exit code 0 fails the test.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.story());
        self.stdout
    }

    /// Fails unless it ended with this code, and stderr says each of `words` somewhere.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Ended {
        assert_eq!(self.code, Some(code), "{}", self.story());
        for word in words {
            assert!(self.stderr.contains(word), "stderr does not say {word:?}\n{}", self.story());
        }
        self
    }

    /// Everything, for a failure's message and for snapshots.
    pub fn story(&self) -> String {
        let code = self.code.map_or("by a signal".to_string(), |code| code.to_string());
        format!("$ {}\n{}{}[exit {code}]", self.spelled, self.stdout, self.stderr)
    }

    /// The same without what differs from run to run.
    pub fn snapshot(&self) -> String {
        normalised(&self.story())
    }
}

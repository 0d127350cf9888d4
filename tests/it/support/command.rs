//! Runs commands with a timeout.
use super::normalise::normalised;
use super::wait::wait_until;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// A running command, whose output is collected.
pub struct Running {
    spelled: String,
    child: Child,
    stdout: Output,
    stderr: Output,
}

/// A finished command.
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
            // A command may ignore its stdin.
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

    /// Waits until stderr contains `words`.
    pub fn wait_for_stderr(&self, words: &str) {
        wait_until(&format!("{words:?} of {}", self.spelled), || {
            self.stderr.so_far().contains(words).then_some(())
        });
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let status = wait_until(&format!("the end of {}", self.spelled), || self.child.try_wait().unwrap());
        Ended {
            code: status.code(),
            stdout: self.stdout.whole(),
            stderr: self.stderr.whole(),
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

/// The output of a pipe, read by a thread.
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// Waits for the end of the pipe.
    fn whole(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.so_far()
    }
}

fn collect(mut from: impl Read + Send + 'static) -> Output {
    let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
    let into = Arc::clone(&bytes);
    let reader = thread::spawn(move || {
        let mut portion = [0; 8192];
        while let Ok(read @ 1..) = from.read(&mut portion) {
            into.lock().unwrap().extend_from_slice(&portion[..read]);
        }
    });
    Output {
        bytes,
        reader: Some(reader),
    }
}

impl Ended {
    /// Its stdout; anything but exit code 0 fails the test.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.transcript());
        self.stdout
    }

    /// Fails unless the exit code is `code` and stderr contains each of `words`.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Ended {
        assert_eq!(self.code, Some(code), "{}", self.transcript());
        for word in words {
            assert!(self.stderr.contains(word), "stderr does not say {word:?}\n{}", self.transcript());
        }
        self
    }

    /// The complete transcript, for failure messages and snapshots.
    pub fn transcript(&self) -> String {
        let code = self.code.map_or("by a signal".to_string(), |code| code.to_string());
        format!("$ {}\n{}{}[exit {code}]", self.spelled, self.stdout, self.stderr)
    }

    /// The same with varying parts replaced.
    pub fn snapshot(&self) -> String {
        normalised(&self.transcript())
    }
}

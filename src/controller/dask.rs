//! Dask's scheduler as a child process of the controller: ipyparallel's clients turn a cluster into a Dask cluster with
//! `become_dask`. The process exits when its stdin closes, so also when the controller is killed.
use super::core::Event;
use crate::wire::content::error::ErrorContent;
use bytes::Bytes;
use serde_json::{Map, Value};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, mpsc};

const PROGRAM: &str = include_str!("dask_scheduler.py");
/// From its start to the line with its address.
const START: Duration = Duration::from_secs(60);
/// From the end of its stdin to its kill.
const END: Duration = Duration::from_secs(5);

pub(super) struct Dask {
    python: String,
    /// The address that the controller listens on: Dask's scheduler must not be reachable from elsewhere.
    host: String,
    running: Arc<Mutex<Option<SchedulerProcess>>>,
    events: mpsc::UnboundedSender<Event>,
}

struct SchedulerProcess {
    process: Child,
    /// The address for clients: ip, port, address.
    address: Value,
}

impl Dask {
    pub(super) fn new(python: &str, ip: &str, events: mpsc::UnboundedSender<Event>) -> Dask {
        Dask {
            python: python.to_string(),
            host: if ip == "*" { "0.0.0.0" } else { ip }.to_string(),
            running: Arc::default(),
            events,
        }
    }

    /// Starts the scheduler unless it is running. The answer arrives as an event.
    pub(super) fn start(&self, client: Bytes, parent: Bytes, arguments: Value) {
        let (running, events) = (self.running.clone(), self.events.clone());
        let python = self.python.clone();
        let mut arguments: Map<String, Value> = arguments.as_object().cloned().unwrap_or_default();
        arguments.entry("host").or_insert_with(|| self.host.clone().into());
        tokio::spawn(async move {
            let mut running = running.lock().await;
            if running.as_mut().is_some_and(|r| !matches!(r.process.try_wait(), Ok(None))) {
                *running = None;
            }
            let address = match running.as_ref() {
                Some(process) => Ok(process.address.clone()),
                None => match start(&python, &arguments).await {
                    Ok(started) => {
                        tracing::info!(address = %started.address, "Dask's scheduler is ready");
                        Ok(running.insert(started).address.clone())
                    }
                    Err(error) => Err(error),
                },
            };
            let _ = events.send(Event::DaskStarted { client, parent, address });
        });
    }

    pub(super) fn stop(&self) {
        let running = self.running.clone();
        tokio::spawn(async move {
            let Some(mut scheduler) = running.lock().await.take() else { return };
            drop(scheduler.process.stdin.take());
            // Dropped, it is killed.
            let _ = tokio::time::timeout(END, scheduler.process.wait()).await;
            tracing::info!("Dask's scheduler stopped");
        });
    }
}

async fn start(python: &str, arguments: &Map<String, Value>) -> Result<SchedulerProcess, ErrorContent> {
    let failed = |why: String| {
        ErrorContent::new(
            "RuntimeError",
            format!("Dask's scheduler could not be started with {python}: {why}"),
        )
    };
    let mut command = Command::new(python);
    command.arg("-c").arg(PROGRAM).kill_on_drop(true);
    // It logs to the controller's log.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
    let mut process = command.spawn().map_err(|e| failed(e.to_string()))?;
    let (Some(stdin), Some(stdout)) = (process.stdin.as_mut(), process.stdout.take()) else {
        return Err(failed("it has no pipes".into()));
    };
    let input = format!("{}\n", Value::from(arguments.clone()));
    let mut lines = BufReader::new(stdout).lines();
    let output = tokio::time::timeout(START, async {
        stdin.write_all(input.as_bytes()).await?;
        lines.next_line().await
    });
    let line = match output.await {
        Err(_) => return Err(failed(format!("it reported no address within {} s", START.as_secs()))),
        Ok(Err(e)) => return Err(failed(e.to_string())),
        Ok(Ok(None)) => return Err(failed("it exited immediately; see the controller's log".into())),
        Ok(Ok(Some(line))) => line,
    };
    let address: Value = serde_json::from_str(&line).map_err(|_| failed(format!("unexpected output {line:?}")))?;
    if address["status"] != "ok" {
        let field = |key: &str| address[key].as_str().unwrap_or_default().to_string();
        return Err(ErrorContent::new(&field("ename"), field("evalue")));
    }
    // Drain further output, so that the process does not block.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok(SchedulerProcess { process, address })
}

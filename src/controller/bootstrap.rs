//! The start of a controller: keys and ports (those of the previous run if it was killed, so that its engines and
//! clients reconnect), connection files, and the recorded state.
use super::core::dependency::Dependency;
use super::core::event::{FoundClient, FoundMap, FoundReply, FoundTask, Restored, UnfinishedRequest};
use super::sockets::Ports;
use super::{ControllerError, ControllerSettings};
use crate::connection::ConnectionFile;
use crate::connection::file::{BroadcastPorts, PclusterKeys};
use crate::db::{Reader, RequestRecord};
use crate::model::buffer_file::BufferFile;
use crate::model::definition::Work;
use crate::model::engine::EngineFacts;
use crate::model::query::{MapQuery, TaskQuery};
use crate::model::task::INPUTS_MISSING;
use crate::model::{EngineId, EngineUuid, MapId, TaskId};
use crate::sys::directory_id::DirectoryId;
use crate::sys::lock::{Lock, NotLocked};
use crate::sys::{private_file, process};
use crate::transport::KeyPair;
use crate::wire::Message;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The controller's secrets, in a private file while it runs. If the next start finds the file, the previous run was killed.
#[derive(Serialize, Deserialize)]
pub(super) struct Secrets {
    /// Separate HMAC keys for clients and engines: an engine's file cannot sign as a client.
    pub client_key: String,
    pub engine_key: String,
    client_public: String,
    client_secret: String,
    engine_public: String,
    engine_secret: String,
    pub ports: Ports,
    /// The previous run shut down cleanly and left them to this one (`--reuse`).
    #[serde(default)]
    ended: bool,
}

impl Secrets {
    fn new() -> Secrets {
        let (client, engine) = (KeyPair::generate(), KeyPair::generate());
        Secrets {
            client_key: uuid::Uuid::new_v4().to_string(),
            engine_key: uuid::Uuid::new_v4().to_string(),
            client_public: client.public,
            client_secret: client.secret,
            engine_public: engine.public,
            engine_secret: engine.secret,
            ports: Ports::default(),
            ended: false,
        }
    }
    pub(super) fn client_pair(&self) -> KeyPair {
        KeyPair {
            public: self.client_public.clone(),
            secret: self.client_secret.clone(),
        }
    }
    pub(super) fn engine_pair(&self) -> KeyPair {
        KeyPair {
            public: self.engine_public.clone(),
            secret: self.engine_secret.clone(),
        }
    }
}

/// Takes the lock that ensures a single controller per cluster.
pub(super) fn take_controller_lock(settings: &ControllerSettings) -> Result<Option<Lock>, ControllerError> {
    let path = settings.profile.controller_lock(&settings.cluster_id);
    match Lock::take(path.clone()) {
        Ok(lock) => Ok(Some(lock)),
        Err(NotLocked::Held(holder)) => {
            let (host, pid) = holder.map_or(("some host".into(), 0), |holder| (holder.process.host, holder.process.pid));
            let file = path.display().to_string();
            Err(ControllerError::Running { pid, host, file })
        }
        // A network file system may have no locks.
        Err(NotLocked::Failed(error)) => {
            tracing::warn!(path = %path.display(), %error, "cannot lock the cluster; a second controller would not be detected");
            Ok(None)
        }
    }
}

/// Returns the secrets, and true if they are those of a killed run.
pub(super) fn secrets(settings: &ControllerSettings) -> Result<(Secrets, bool), ControllerError> {
    let client_file = settings.profile.client_file(&settings.cluster_id);
    if let Ok(file) = ConnectionFile::read(&client_file)
        && let Some(keys) = &file.pcluster
        && keys.process.pid != std::process::id()
        && keys.process.runs()
    {
        let file = client_file.display().to_string();
        return Err(ControllerError::Running {
            pid: keys.process.pid,
            host: keys.process.host.clone(),
            file,
        });
    }
    let path = settings.profile.controller_file(&settings.cluster_id);
    match std::fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice::<Secrets>(&bytes) {
            Ok(secrets) if secrets.ended && !settings.reuse => Ok((Secrets::new(), false)),
            Ok(mut secrets) => {
                let killed = !std::mem::take(&mut secrets.ended);
                Ok((secrets, killed))
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read the keys of the previous run; generating new ones");
                Ok((Secrets::new(), false))
            }
        },
        Err(_) => Ok((Secrets::new(), false)),
    }
}

/// Writes the private file and both connection files.
pub(super) fn write_files(settings: &ControllerSettings, secrets: &Secrets) -> Result<(), ControllerError> {
    write_secrets(settings, secrets)?;
    engine_file(settings, secrets).write(&settings.profile.engine_file(&settings.cluster_id))?;
    client_file(settings, secrets).write(&settings.profile.client_file(&settings.cluster_id))?;
    Ok(())
}

fn write_secrets(settings: &ControllerSettings, secrets: &Secrets) -> Result<(), ControllerError> {
    let failed = |path: &PathBuf, source| ControllerError::System {
        what: path.display().to_string(),
        source,
    };
    let path = settings.profile.controller_file(&settings.cluster_id);
    let text = serde_json::to_vec_pretty(secrets).map_err(|e| failed(&path, e.into()))?;
    private_file::write(&path, &text).map_err(|e| failed(&path, e))
}

/// After a clean shutdown, removes the files, or leaves them to the next controller (`--reuse`).
pub(super) fn retire_files(settings: &ControllerSettings, secrets: &mut Secrets) {
    if settings.reuse {
        secrets.ended = true;
        if let Err(error) = write_secrets(settings, secrets) {
            tracing::warn!(%error, "cannot record the clean shutdown; the next controller will assume that this one was killed");
        }
        return;
    }
    let (profile, id) = (&settings.profile, &settings.cluster_id);
    for path in [
        profile.client_file(id),
        profile.engine_file(id),
        settings.profile.controller_file(&settings.cluster_id),
    ] {
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a connection file");
        }
    }
}

fn location(settings: &ControllerSettings) -> String {
    let listening = &settings.config.ip;
    let address = || PclusterKeys::of_this_process("", listening, None).addresses.into_iter().next();
    // A loopback address does not identify the host; with its name, remote ipyparallel clients can report what is missing.
    let elsewhere = |address: &String| !address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let found = settings.config.location.clone().or_else(|| address().filter(elsewhere));
    found.unwrap_or_else(process::host)
}

fn base(settings: &ControllerSettings, key: &str, public: &str) -> ConnectionFile {
    let config = &settings.config;
    ConnectionFile {
        ssh: String::new(),
        interface: format!("tcp://{}", if config.ip == "*" { "0.0.0.0" } else { &config.ip }),
        registration: 0,
        control: 0,
        mux: 0,
        task: 0,
        iopub: 0,
        notification: None,
        task_scheme: None,
        hb_ping: None,
        hb_pong: None,
        broadcast: BroadcastPorts::One(0),
        key: key.into(),
        curve_serverkey: config.curve.then(|| public.into()),
        location: location(settings),
        pack: "json".into(),
        unpack: "json".into(),
        signature_scheme: "hmac-sha256".into(),
        pcluster: Some(PclusterKeys::of_this_process(&settings.cluster_id, &config.ip, None)),
    }
}

pub(super) fn client_file(settings: &ControllerSettings, secrets: &Secrets) -> ConnectionFile {
    let ports = &secrets.ports.client;
    ConnectionFile {
        registration: ports.registration,
        control: ports.control,
        mux: ports.mux,
        task: ports.task,
        iopub: ports.iopub,
        notification: Some(ports.notification),
        task_scheme: Some(settings.config.task_scheme.clone()),
        broadcast: BroadcastPorts::One(ports.broadcast),
        ssh: settings.ssh.clone(),
        ..base(settings, &secrets.client_key, &secrets.client_public)
    }
}

pub(super) fn engine_file(settings: &ControllerSettings, secrets: &Secrets) -> ConnectionFile {
    let ports = &secrets.ports.engine;
    ConnectionFile {
        registration: ports.registration,
        control: ports.control,
        mux: ports.mux,
        task: ports.task,
        iopub: ports.iopub,
        hb_ping: Some(ports.hb_ping),
        hb_pong: Some(ports.hb_pong),
        broadcast: BroadcastPorts::Leaves(vec![ports.broadcast]),
        ssh: settings.engine_ssh.clone(),
        pcluster: Some(PclusterKeys {
            buffers: buffers_directory(settings),
            ..PclusterKeys::of_this_process(&settings.cluster_id, &settings.config.ip, Some(ports.native))
        }),
        ..base(settings, &secrets.engine_key, &secrets.engine_public)
    }
}

/// Creates the directory for large buffers; it is optional for engines.
fn buffers_directory(settings: &ControllerSettings) -> Option<DirectoryId> {
    let made = crate::db::made_buffers_directory(&settings.profile.database_file(&settings.cluster_id));
    made.inspect_err(|error| tracing::warn!(%error, "cannot create the directory for large buffers"))
        .ok()
        .and_then(|path| DirectoryId::of(&path))
}

/// True if the map's last task represents missing inputs.
fn is_abandoned(reader: &Reader, map: MapId, total: u64) -> Result<bool, ControllerError> {
    let Some(last) = total.checked_sub(1) else { return Ok(false) };
    let query = TaskQuery {
        tasks: vec![TaskId::new(map, last as u32)],
        brief: true,
        ..TaskQuery::default()
    };
    let (rows, _) = reader.tasks(&query)?;
    Ok(rows
        .iter()
        .filter_map(|row| row.error.as_ref())
        .any(|error| error.ename == INPUTS_MISSING))
}

pub(super) fn restored(reader: &Reader, killed: bool) -> Result<Restored, ControllerError> {
    let state = reader.restart_state()?;
    let mut restored = Restored {
        next_map: state.next_map.0,
        retention_clock: state.retention_clock,
        next_engine: if killed { state.next_engine.0 } else { 0 },
        ..Restored::default()
    };
    if killed {
        // An engine of this host whose process is gone cannot reconnect.
        let is_gone = |facts: &EngineFacts| facts.pid > 0 && facts.host == process::host() && !process::exists(facts.pid);
        for engine in state.engines {
            match is_gone(&engine.facts) {
                true => restored.departed.push((engine.id, engine.facts.uuid)),
                false => restored.engines.push((engine.id, engine.facts, engine.registered)),
            }
        }
    } else {
        restored.departed = state.engines.into_iter().map(|e| (e.id, e.facts.uuid)).collect();
    }
    let mut open: Vec<MapId> = Vec::new();
    for map in state.maps {
        open.push(map.map);
        if let Work::Client { curve_key } = map.definition.work {
            let (client, depends_on) = found_client(reader, map.map, map.client, curve_key, killed)?;
            restored.outcomes.extend(outcomes(reader, &depends_on)?);
            restored.clients.push(client);
            continue;
        }
        let mut tasks = Vec::new();
        reader.unfinished_tasks(map.map, &mut |task| {
            tasks.push(FoundTask {
                index: task.index,
                run: task.run,
                attempts: task.attempts,
                state: task.state,
                engine: task.engine.filter(|_| killed),
                used: task.used,
                ask: task.ask,
                cancelled: task.cancelled,
                written: task.written,
                input: task.input,
            });
        })?;
        restored.maps.push(FoundMap {
            abandoned: map.closed && is_abandoned(reader, map.map, map.counts.total)?,
            map: map.map,
            definition: reader.with_bundle(map.definition)?,
            key: map.client,
            closed: map.closed,
            counts: map.counts,
            tasks,
        });
    }
    let all = reader.maps(&MapQuery::default())?;
    restored.finished = all
        .iter()
        .filter(|m| !open.contains(&m.map))
        .map(|m| (m.map, m.counts.failed() > 0))
        .collect();
    Ok(restored)
}

/// A client's unfinished requests, and the requests that they depend on. After a clean shutdown, clients and
/// engines are gone, too, and no client waits for these requests: they end as `lost`.
fn found_client(
    reader: &Reader,
    map: MapId,
    session: String,
    key: Option<String>,
    killed: bool,
) -> Result<(FoundClient, Vec<String>), ControllerError> {
    let mut depends_on = Vec::new();
    let mut requests = Vec::new();
    reader.unfinished_requests(map, &mut |found| {
        let metadata: serde_json::Value = serde_json::from_slice(&found.request.metadata).unwrap_or_default();
        for name in ["after", "follow"] {
            depends_on.extend(metadata.get(name).map(Dependency::from_json).unwrap_or_default().ids);
        }
        // An engine that never reconnects, so that the request ends.
        let nowhere = (!killed).then_some(EngineId(u32::MAX));
        requests.push(UnfinishedRequest {
            task: found.task,
            run: found.run,
            engine: found.engine.or(nowhere),
            request: found.request,
        });
    })?;
    let mut undelivered = Vec::new();
    if killed && key.is_some() {
        let records = reader.requests(&reader.undelivered_replies(map)?)?;
        undelivered.extend(records.into_iter().filter_map(found_reply));
        undelivered.sort_by_key(|reply: &FoundReply| reply.task);
    }
    let client = FoundClient {
        session,
        key,
        map,
        next_index: reader.next_index(map)?,
        requests,
        undelivered,
    };
    Ok((client, depends_on))
}

fn found_reply(record: RequestRecord) -> Option<FoundReply> {
    let header_json = record.result_header?;
    Some(FoundReply {
        task: record.task?,
        msg_id: record.msg_id,
        queue: record.queue.unwrap_or_default(),
        metadata: record.metadata.unwrap_or_default(),
        engine: record.engine_uuid,
        reply: Message {
            identities: Vec::new(),
            header: serde_json::from_slice(&header_json).unwrap_or_default(),
            header_json,
            parent_json: record.header.unwrap_or_default(),
            metadata_json: record.result_metadata.unwrap_or_default(),
            content_json: record.result_content.unwrap_or_default(),
            buffers: record.result_buffers,
            buffer_file: BufferFile::default(),
        },
    })
}

fn outcomes(reader: &Reader, msg_ids: &[String]) -> Result<Vec<(String, bool, Option<EngineUuid>)>, ControllerError> {
    let ok = |record: &RequestRecord| {
        let content = record.result_content.as_ref();
        let content: Option<serde_json::Value> = content.and_then(|c| serde_json::from_slice(c).ok());
        content.is_some_and(|c| c["status"] == "ok")
    };
    let records = reader.requests(msg_ids)?;
    let finished = records.iter().filter(|r| r.completed.is_some());
    Ok(finished
        .map(|r| (r.msg_id.clone(), ok(r), r.engine_uuid.as_deref().map(EngineUuid::from)))
        .collect())
}

/// Raises the open-file limit: a thousand engines need several thousand sockets.
pub(super) fn raise_open_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(%error, soft, hard, "cannot raise the open-file limit");
    }
}

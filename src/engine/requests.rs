//! Replies and iopub messages to ipyparallel clients, in the format of ipyparallel's own engine.
use super::core::event::{Parent, Published};
use super::core::outbox::too_large;
use super::core::{Request, RequestReply};
use super::link::Link;
use crate::model::{EngineUuid, UnixTime};
use crate::wire::Message;
use crate::wire::content::engine::Channel;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Publishes `status: busy` on iopub. The controller publishes `idle` when it has the reply.
pub(super) fn busy(link: &mut Link, request: &Request) {
    iopub(link, request, "status", "status", &json!({ "execution_state": "busy" }));
}

pub(super) fn stream(link: &mut Link, request: &Request, stderr: bool, text: &str) {
    let name = if stderr { "stderr" } else { "stdout" };
    iopub(link, request, "stream", name, &json!({ "name": name, "text": text }));
}

/// Publishes a message of IPython for the request with the header `parent`.
pub(super) fn publish(link: &mut Link, parent: Option<&Bytes>, published: Published) {
    let Published {
        kind,
        topic,
        metadata,
        content,
        buffers,
        ..
    } = published;
    let mut message = link.message(&kind, parent, &());
    if !metadata.is_empty() {
        let mut all: Map<String, Value> = message.metadata().unwrap_or_default();
        for (name, value) in metadata {
            all.entry(name).or_insert(value);
        }
        message.metadata_json = to_json(&all);
    }
    message.content_json = content;
    message.buffers = buffers;
    if link.is_too_large(&message) {
        let max = link.max_message;
        let of = message.parent().map(|parent| parent.msg_id).unwrap_or_default();
        return tracing::warn!(
            msg_id = of,
            kind,
            "not published: the message exceeds the controller's limit of {max} bytes"
        );
    }
    let topic = Bytes::from(format!("engine.{}.{topic}", link.id));
    link.send(Channel::Iopub, &[topic], &message);
}

fn iopub(link: &mut Link, request: &Request, kind: &str, topic: &str, content: &Value) {
    let published = Published {
        parent: Parent::Running,
        kind: kind.into(),
        topic: topic.into(),
        metadata: Default::default(),
        content: to_json(content),
        buffers: Vec::new(),
    };
    publish(link, Some(&request.message.header_json), published);
}

/// Sends `apply_reply` or `execute_reply`, with the metadata that ipyparallel's schedulers and clients use.
pub(super) fn reply(link: &mut Link, request: &Request, started: UnixTime, reply: RequestReply, uuid: &EngineUuid) {
    let mut message = reply_message(link, request, started, reply, uuid);
    if link.is_too_large(&message) {
        let bytes = message.content_json.len() + message.buffers.iter().map(Bytes::len).sum::<usize>();
        let evalue = too_large("the reply", bytes, link.max_message);
        tracing::warn!(msg_id = request.msg_id(), "{evalue}");
        let reply = RequestReply::Failed {
            ename: "ResultTooLarge".into(),
            evalue,
        };
        message = reply_message(link, request, started, reply, uuid);
    }
    link.reply(request.msg_id(), request.channel, &request.client, message);
}

fn reply_message(link: &mut Link, request: &Request, started: UnixTime, reply: RequestReply, uuid: &EngineUuid) -> Message {
    let engine_info = json!({ "engine_uuid": uuid, "engine_id": link.id });
    let (status, ename, content, buffers) = match reply {
        RequestReply::Completed {
            status,
            ename,
            content,
            buffers,
        } => (status, ename, content, buffers),
        RequestReply::Aborted => (
            "aborted".to_string(),
            String::new(),
            to_json(&json!({ "status": "aborted" })),
            Vec::new(),
        ),
        RequestReply::Failed { ename, evalue } => {
            let mut info = engine_info.clone();
            info["method"] = request.method.name().into();
            let content = json!({
                "status": "error", "ename": ename, "evalue": evalue, "traceback": [format!("{ename}: {evalue}")], "engine_info": info,
            });
            ("error".to_string(), ename, to_json(&content), Vec::new())
        }
    };
    let requested: Map<String, Value> = request.message.metadata().unwrap_or_default();
    let value_of = |name: &str, otherwise: Value| requested.get(name).cloned().unwrap_or(otherwise);
    let mut metadata = json!({
        "started": started.to_iso(),
        "dependencies_met": ename != "UnmetDependency",
        "engine": uuid,
        "is_broadcast": value_of("is_broadcast", false.into()),
        "is_coalescing": value_of("is_coalescing", false.into()),
        "original_msg_id": value_of("original_msg_id", "".into()),
        "label": value_of("label", Value::Null),
        "status": status,
    });
    if status == "error" {
        metadata["engine_info"] = engine_info;
    }
    let kind = format!("{}_reply", request.method.name());
    let mut message = link.message(&kind, Some(&request.message.header_json), &());
    message.content_json = content;
    message.metadata_json = to_json(&metadata);
    message.buffers = buffers;
    message
}

/// Answers a successful control request.
pub(super) fn control_reply(link: &mut Link, kind: &str, request: &Message) {
    let message = link.message(kind, Some(&request.header_json), &json!({ "status": "ok" }));
    link.send(Channel::Control, request.identities.get(1..).unwrap_or_default(), &message);
}

/// The requests that an `abort_request` names; None: all.
pub(super) fn abort_ids(message: &Message) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ids {
        One(String),
        Many(Vec<String>),
    }
    #[derive(Deserialize)]
    struct Abort {
        #[serde(default)]
        msg_ids: Option<Ids>,
    }
    match message.content::<Abort>().ok()?.msg_ids? {
        Ids::One(id) => Some(vec![id]),
        Ids::Many(ids) if ids.is_empty() => None,
        Ids::Many(ids) => Some(ids),
    }
}

/// The signal of a `signal_request`: a number, or a name such as `SIGINT`.
pub(super) fn signal_number(message: &Message) -> Option<i32> {
    let content: Value = message.content().ok()?;
    match content.get("sig")? {
        Value::Number(number) => number.as_i64().and_then(|number| i32::try_from(number).ok()),
        Value::String(name) => name.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32),
        _ => None,
    }
}

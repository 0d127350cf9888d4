//! Output of ipyparallel's tasks (iopub): recorded with the request, and published to every subscribed client.
use super::Core;
use super::effect::Effect;
use crate::model::EngineUuid;
use crate::model::change::{Change, RequestOutput};
use crate::wire::Message;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::Value;

impl Core {
    pub(super) fn iopub(&mut self, engine: &EngineUuid, topic: Bytes, message: Message) {
        if message.msg_type() == "shutdown_reply" {
            return self.engine_gone(engine, "it was shut down");
        }
        if let Some(parent) = message.parent()
            && let Some(output) = output_of(&message)
        {
            self.out.record(Change::RequestOutput {
                msg_id: parent.msg_id,
                output,
            });
        }
        self.out.push(Effect::Iopub { topic, message });
    }
}

fn output_of(message: &Message) -> Option<RequestOutput> {
    let content: Value = message.content().ok()?;
    let json = |kind: &'static str| {
        Some(RequestOutput::Json {
            kind,
            content: message.content_json.clone(),
        })
    };
    match message.msg_type() {
        "stream" => Some(RequestOutput::Stream {
            stderr: content.get("name").and_then(Value::as_str) == Some("stderr"),
            text: content.get("text").and_then(Value::as_str)?.to_string(),
        }),
        "execute_input" => Some(RequestOutput::Json {
            kind: "execute_input",
            content: to_json(content.get("code")?),
        }),
        "execute_result" => json("execute_result"),
        "error" => json("error"),
        _ => None,
    }
}

//! Tests of requests of ipyparallel clients with a Python that has ipyparallel (PCLUSTER_TEST_PYTHON), and of the error without it.
use super::TestController;
use super::skip::skip;
use crate::wire::content::engine::Channel;
use crate::wire::{Message, Session};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

/// Runs Python code with ipyparallel: encodes the buffers of an `apply_request`, or decodes those of a reply.
fn python(code: &str, argument: &str) -> Option<String> {
    let Ok(python) = std::env::var("PCLUSTER_TEST_PYTHON") else {
        skip("PCLUSTER_TEST_PYTHON does not name a Python with ipyparallel");
        return None;
    };
    let output = std::process::Command::new(python).args(["-c", code, argument]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

fn packed(function: &str) -> Option<Vec<Bytes>> {
    let code = "import sys, json, base64; from ipyparallel.serialize import pack_apply_message; \
        bufs = pack_apply_message(eval(sys.argv[1]), (2,), {}); print(json.dumps([base64.b64encode(bytes(b)).decode() for b in bufs]))";
    let texts: Vec<String> = serde_json::from_str(&python(code, function)?).unwrap();
    Some(texts.iter().map(|text| STANDARD.decode(text).unwrap().into()).collect())
}

fn unpacked(buffers: &[Bytes]) -> String {
    let code = "import sys, json, base64; from ipyparallel.serialize import deserialize_object; \
        print(repr(deserialize_object([base64.b64decode(b) for b in json.loads(sys.argv[1])])[0]), end='')";
    let texts: Vec<String> = buffers.iter().map(|buffer| STANDARD.encode(buffer)).collect();
    python(code, &serde_json::to_string(&texts).unwrap()).unwrap()
}

fn request(client: &mut Session, kind: &str, content: Value, buffers: Vec<Bytes>) -> Message {
    let mut message = client.message("2026-11-20T00:00:00Z", kind, None, &content);
    message.metadata_json = Bytes::from_static(br#"{"label": "mine"}"#);
    message.buffers = buffers;
    message
}

fn execute(client: &mut Session, code: &str) -> Message {
    let content = json!({ "code": code, "silent": false, "store_history": false, "user_expressions": {"e": "1+1"} });
    request(client, "execute_request", content, Vec::new())
}

/// All messages up to the reply, which is the last one: (channel, type or state, content, message).
async fn collect_reply(c: &mut TestController, parent: &str) -> Vec<(Channel, String, Value, Message)> {
    let mut messages = Vec::new();
    loop {
        let (channel, message) = c.next().await;
        if message.parent().is_none_or(|header| header.msg_id != parent) {
            continue;
        }
        let content: Value = message.content().unwrap();
        let metadata: Value = message.metadata().unwrap();
        assert!(metadata["engine"].is_string(), "{metadata}");
        let label = match content["execution_state"].as_str() {
            Some(state) => state.to_string(),
            None => message.msg_type().to_string(),
        };
        messages.push((channel, label, content, message));
        if messages.last().is_some_and(|last| last.1.ends_with("_reply")) {
            return messages;
        }
    }
}

fn labels(messages: &[(Channel, String, Value, Message)]) -> Vec<&str> {
    messages.iter().map(|(_, label, _, _)| label.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_share_the_namespace_and_reply_with_buffers() {
    let Some(buffers) = packed("lambda x: (print('hi'), x + base)[1]") else {
        return;
    };
    let mut c = TestController::new().await;
    assert!(c.register.facts.capabilities.contains(&"apply".to_string()));
    let mut client = Session::new(b"key", "client", "me");
    let set = execute(&mut client, "base = 40");
    c.send(Channel::Mux, &[Bytes::from_static(b"client")], &set);
    collect_reply(&mut c, &set.header.msg_id).await;
    let apply = request(&mut client, "apply_request", json!({}), buffers);
    c.send(Channel::Task, &[Bytes::from_static(b"client")], &apply);
    let messages = collect_reply(&mut c, &apply.header.msg_id).await;
    assert_eq!(labels(&messages), ["busy", "stream", "apply_reply"]);
    assert_eq!(messages[1].2, json!({ "name": "stdout", "text": "hi\n" }));
    assert_eq!(messages[1].3.identities[2], "engine.3.stdout");
    let (channel, _, content, reply) = &messages[2];
    assert_eq!((*channel, content), (Channel::Task, &json!({ "status": "ok" })));
    assert_eq!(reply.identities[2], "client");
    let metadata: Value = reply.metadata().unwrap();
    assert_eq!(
        (&metadata["status"], &metadata["label"], &metadata["dependencies_met"]),
        (&json!("ok"), &json!("mine"), &json!(true))
    );
    assert_eq!(unpacked(&reply.buffers), "42");
    // An error, which names the engine.
    let apply = request(&mut client, "apply_request", json!({}), packed("lambda x: x / 0").unwrap());
    c.send(Channel::Mux, &[Bytes::from_static(b"client")], &apply);
    let messages = collect_reply(&mut c, &apply.header.msg_id).await;
    assert_eq!(labels(&messages), ["busy", "error", "apply_reply"]);
    let content = &messages[2].2;
    assert_eq!(
        (&content["ename"], &content["evalue"]),
        (&json!("ZeroDivisionError"), &json!("division by zero"))
    );
    assert_eq!(
        (&content["engine_info"]["engine_id"], &content["engine_info"]["method"]),
        (&json!(3), &json!("apply"))
    );
    assert!(content["traceback"].as_array().is_some_and(|lines| !lines.is_empty()));
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn executions_publish_output_and_displays() {
    if python("pass", "").is_none() {
        return;
    }
    let mut c = TestController::new().await;
    let mut client = Session::new(b"key", "client", "me");
    let code =
        "import sys\nprint('a')\nprint('b', file=sys.stderr)\nfrom IPython.display import display, HTML\ndisplay(HTML('<b>'))\n6 * 7";
    let run = execute(&mut client, code);
    c.send(Channel::Mux, &[Bytes::from_static(b"client")], &run);
    let messages = collect_reply(&mut c, &run.header.msg_id).await;
    assert_eq!(
        labels(&messages),
        [
            "busy",
            "execute_input",
            "stream",
            "stream",
            "display_data",
            "execute_result",
            "execute_reply"
        ]
    );
    assert_eq!(messages[4].2["data"]["text/html"], "<b>");
    assert_eq!(messages[5].2["data"]["text/plain"], "42");
    assert_eq!(messages[5].3.identities[2], "engine.3.execute_result");
    let reply = &messages[6].2;
    assert_eq!(
        (&reply["status"], &reply["user_expressions"]["e"]["data"]["text/plain"]),
        (&json!("ok"), &json!("2"))
    );
    assert_eq!(reply["payload"], json!([]));

    // A failure aborts the executions queued behind it.
    let wait = execute(&mut client, "import time; time.sleep(0.2); 1 / 0");
    let (second, third) = (execute(&mut client, "2"), execute(&mut client, "3"));
    for message in [&wait, &second, &third] {
        c.send(Channel::Mux, &[Bytes::from_static(b"client")], message);
    }
    let messages = collect_reply(&mut c, &wait.header.msg_id).await;
    assert_eq!(labels(&messages), ["busy", "execute_input", "error", "execute_reply"]);
    assert_eq!(messages[3].2["ename"], "ZeroDivisionError");
    for message in [&second, &third] {
        let messages = collect_reply(&mut c, &message.header.msg_id).await;
        assert_eq!(labels(&messages), ["execute_reply"]);
        assert_eq!(messages[0].2, json!({ "status": "aborted" }));
        assert_eq!(messages[0].3.metadata::<Value>().unwrap()["status"], "aborted");
    }
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_requests_are_answered_while_code_runs() {
    if python("pass", "").is_none() {
        return;
    }
    let mut c = TestController::new().await;
    let mut client = Session::new(b"key", "client", "me");
    let (long, queued) = (execute(&mut client, "import time; time.sleep(600)"), execute(&mut client, "1"));
    for message in [&long, &queued] {
        c.send(Channel::Mux, &[Bytes::from_static(b"client")], message);
    }
    // Wait until it has started.
    while c.next().await.1.msg_type() != "execute_input" {}
    let abort = request(
        &mut client,
        "abort_request",
        json!({ "msg_ids": [queued.header.msg_id] }),
        Vec::new(),
    );
    c.send(Channel::Control, &[Bytes::from_static(b"client")], &abort);
    let messages = collect_reply(&mut c, &queued.header.msg_id).await;
    assert_eq!(messages[0].2, json!({ "status": "aborted" }));
    let interrupt = request(&mut client, "signal_request", json!({ "sig": "SIGINT" }), Vec::new());
    c.send(Channel::Control, &[Bytes::from_static(b"client")], &interrupt);
    let messages = collect_reply(&mut c, &long.header.msg_id).await;
    assert_eq!(messages[messages.len() - 1].2["ename"], "KeyboardInterrupt");
    let stop = request(&mut client, "shutdown_request", json!({ "restart": false }), Vec::new());
    c.send(Channel::Control, &[Bytes::from_static(b"client")], &stop);
    loop {
        let (channel, message) = c.next().await;
        if channel == Channel::Control && message.msg_type() == "shutdown_reply" {
            break;
        }
    }
    c.process.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_ipyparallel_the_reply_names_the_missing_package() {
    let mut c = TestController::with(|settings| {
        // An empty virtual environment.
        let dir = Box::leak(Box::new(tempfile::tempdir().unwrap()));
        let made = std::process::Command::new("python3")
            .args(["-m", "venv", "--without-pip"])
            .arg(dir.path())
            .status();
        assert!(made.unwrap().success());
        settings.python = Some(dir.path().join("bin/python").to_string_lossy().into_owned());
    })
    .await;
    let mut client = Session::new(b"key", "client", "me");
    let run = execute(&mut client, "1");
    c.send(Channel::Mux, &[Bytes::from_static(b"client")], &run);
    let messages = collect_reply(&mut c, &run.header.msg_id).await;
    let reply = &messages[messages.len() - 1].2;
    assert_eq!(reply["ename"], "ImportError");
    assert!(
        reply["evalue"]
            .as_str()
            .is_some_and(|text| text.contains("pip install ipyparallel")),
        "{reply}"
    );
    c.end().await;
}

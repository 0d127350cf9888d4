//! The client against a fake controller: real sockets and CURVE, canned replies.
use super::submit::Input;
use super::*;
use crate::connection::ConnectionFile;
use crate::model::definition::{MapDefinition, MapOptions, Work};
use crate::model::query::TaskQuery;
use crate::model::{MapId, PROTOCOL_VERSION, VERSION};
use crate::transport::{KeyPair, Security, Socket, SocketKind};
use crate::wire::{Message, Session};
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(20);

/// The requests that a controller received: message type and content, in order.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// A controller that replies with the result of `answer`; None means no reply. It replies to Hello unless `answer` does.
async fn controller(answer: impl FnMut(&Message) -> Option<Value> + Send + 'static) -> (ConnectionFile, Asked) {
    controller_with_key("key", answer).await
}

async fn controller_with_key(key: &str, mut answer: impl FnMut(&Message) -> Option<Value> + Send + 'static) -> (ConnectionFile, Asked) {
    let keys = KeyPair::generate();
    let socket = Socket::new(SocketKind::Router, None, &Security::Server(keys.clone())).unwrap();
    let port = socket.bind("127.0.0.1", 0).await.unwrap();
    let asked = Asked::default();
    let mut session = Session::new(key.as_bytes(), "controller", "test");
    let heard = asked.clone();
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok(frames) = socket.receive().await {
            let message = session.open(frames).unwrap();
            heard
                .lock()
                .unwrap()
                .push((message.msg_type().to_string(), message.content().unwrap()));
            let hello = message.msg_type() == "hello_request";
            let Some(reply) = answer(&message).or_else(|| hello.then(greeting)) else {
                continue;
            };
            number += 1;
            let msg_type = crate::wire::content::client::reply_type(message.msg_type());
            let reply = session.message(&number.to_string(), &msg_type, Some(&message.header_json), &reply);
            socket.send(session.seal(&[message.sender()], &reply)).unwrap();
        }
    });
    (file(port, Some(keys.public)), asked)
}

fn file(port: u16, server_key: Option<String>) -> ConnectionFile {
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let file = json!({
        "interface": "tcp://127.0.0.1", "registration": port, "control": 1, "mux": 1, "task": 1, "iopub": 1, "broadcast": 1,
        "key": "key", "curve_serverkey": server_key, "location": "127.0.0.1", "pack": "json", "unpack": "json",
        "signature_scheme": "hmac-sha256",
        "pcluster": {"version": VERSION, "protocol": PROTOCOL_VERSION, "cluster_id": "", "addresses": ["127.0.0.1"],
                     "pid": 4711, "host": host, "started": 1.0},
    });
    serde_json::from_value(file).unwrap()
}

fn greeting() -> Value {
    json!({"status": "ok", "protocol": PROTOCOL_VERSION, "version": VERSION, "cluster_id": "", "pid": 1, "host": "h", "started": 1.0})
}

fn of_type(asked: &Asked, msg_type: &str) -> Vec<Value> {
    let asked = asked.lock().unwrap();
    asked
        .iter()
        .filter(|(t, _)| t == msg_type)
        .map(|(_, content)| content.clone())
        .collect()
}

#[tokio::test]
async fn a_request_gets_its_reply() {
    let (file, asked) =
        controller(|m| (m.msg_type() == "tasks_request").then(|| json!({"status": "ok", "tasks": [], "matching": 7}))).await;
    let client = Client::connect(&file, LONG).await.unwrap();
    assert_eq!(client.hello().version, VERSION);
    assert_eq!(client.tasks(TaskQuery::default()).await.unwrap().1, 7);
    assert_eq!(
        of_type(&asked, "hello_request"),
        [json!({"protocol": PROTOCOL_VERSION, "version": VERSION})]
    );
}

#[tokio::test]
async fn concurrent_requests_get_their_own_replies() {
    let (file, _) = controller(|m| {
        let content: Value = m.content().unwrap();
        (m.msg_type() == "tasks_request").then(|| json!({"status": "ok", "tasks": [], "matching": content["query"]["offset"]}))
    })
    .await;
    let client = Client::connect(&file, LONG).await.unwrap();
    let mut all = tokio::task::JoinSet::new();
    for offset in 0..200 {
        let client = client.clone();
        all.spawn(async move {
            let query = TaskQuery {
                offset,
                ..TaskQuery::default()
            };
            (offset, client.tasks(query).await.unwrap().1)
        });
    }
    while let Some(answered) = all.join_next().await {
        let (offset, matching) = answered.unwrap();
        assert_eq!(offset, matching);
    }
}

#[tokio::test]
async fn a_request_is_resent_after_a_lost_reply() {
    let mut lost = 0;
    let (file, asked) = controller(move |m| {
        if m.msg_type() != "cancel_request" {
            return None;
        }
        lost += 1;
        (lost == 2).then(|| json!({"status": "ok", "changed": 2, "unchanged": 0, "maps": [1]}))
    })
    .await;
    let client = Client::connect(&file, LONG).await.unwrap().with_timeout(Duration::from_secs(3));
    assert_eq!(client.cancel(Default::default()).await.unwrap().changed, 2);
    assert_eq!(of_type(&asked, "cancel_request").len(), 2);
}

#[tokio::test]
async fn a_silent_controller_times_out_with_a_reason() {
    let (file, _) = controller(|_| None).await;
    let client = Client::connect(&file, LONG).await.unwrap().with_timeout(Duration::from_millis(300));
    let began = Instant::now();
    let error = client.status().await.unwrap_err();
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(error.is_unreachable());
    let text = error.to_string();
    assert!(
        text.starts_with("the controller at tcp://127.0.0.1:") && text.contains("has not answered status_request for 0 s (last message"),
        "{text}"
    );
    assert!(error.hints().iter().any(|h| h.contains("pcluster logs")));
}

#[tokio::test]
async fn a_dead_controller_is_reported_at_once() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let error = Client::connect(&file(port, None), LONG).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        format!("no controller listens at tcp://127.0.0.1:{port}: connection refused")
    );
    assert!(error.hints()[0].contains("process 4711 on "), "{:?}", error.hints());
    assert!(error.is_unreachable());
}

#[tokio::test]
async fn a_server_that_is_not_a_controller_times_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = Client::connect(&file(port, None), Duration::from_millis(400)).await.err().unwrap();
    assert!(error.to_string().contains("(no message received)"), "{error}");
}

#[tokio::test]
async fn a_wrong_key_is_reported_as_the_reason() {
    // Its replies are signed with another key than the file's.
    let (mut file, _) = controller_with_key("", |_| None).await;
    file.key = "other".into();
    let error = Client::connect(&file, Duration::from_millis(400)).await.err().unwrap();
    assert!(error.to_string().contains("invalid signature"), "{error}");
}

#[tokio::test]
async fn a_rejection_comes_with_its_hint() {
    let (file, _) = controller(|m| {
        (m.msg_type() == "status_request")
            .then(|| json!({"status": "error", "ename": "NoMap", "evalue": "there is no map 7", "hint": "pcluster results"}))
    })
    .await;
    let client = Client::connect(&file, LONG).await.unwrap();
    let error = client.status().await.unwrap_err();
    assert_eq!(error.to_string(), "there is no map 7");
    assert_eq!(error.hints(), ["pcluster results"]);
    assert!(!error.is_unreachable());
}

#[tokio::test]
async fn versions_are_compared() {
    for (status, protocol, newer) in [("error", 99, "this pcluster"), ("ok", 0, "the controller's pcluster")] {
        let (file, _) = controller(move |_| {
            let mut greeting = greeting();
            greeting["status"] = status.into();
            greeting["protocol"] = protocol.into();
            greeting["version"] = "9.9.9".into();
            Some(greeting)
        })
        .await;
        let error = Client::connect(&file, LONG).await.err().unwrap();
        let text = error.to_string();
        assert!(
            text.contains(VERSION) && text.contains("9.9.9") && text.contains(&format!("protocol {protocol}")),
            "{text}"
        );
        assert!(error.hints()[0].contains(newer), "{:?}", error.hints());
    }
}

#[tokio::test]
async fn ipyparallels_own_hub_is_recognized() {
    let (file, _) =
        controller(|_| Some(json!({"status": "error", "ename": "AssertionError", "evalue": "Bad Message", "traceback": []}))).await;
    let error = Client::connect(&file, LONG).await.err().unwrap();
    assert!(
        error
            .to_string()
            .contains("is not pcluster's controller: AssertionError: Bad Message"),
        "{error}"
    );
}

#[tokio::test]
async fn a_malformed_reply_is_an_error() {
    let (file, _) = controller(|m| (m.msg_type() == "status_request").then(|| json!({"status": "ok"}))).await;
    let client = Client::connect(&file, LONG).await.unwrap();
    assert!(matches!(client.status().await.unwrap_err(), ClientError::BadReply { request, .. } if request == "status_request"));
}

fn definition() -> MapDefinition {
    let work = Work::Command { argv: vec!["true".into()] };
    MapDefinition {
        work,
        options: MapOptions::default(),
    }
}

/// Accepts inputs like a controller: it ignores duplicates and rejects gaps. `drops` replies to inputs are lost.
fn taking_inputs(taken: Arc<Mutex<Vec<String>>>, drops: usize) -> impl FnMut(&Message) -> Option<Value> + Send {
    let mut seen = 0;
    move |m| match m.msg_type() {
        "map_request" => Some(json!({"status": "ok", "map": 3})),
        "cancel_request" => Some(json!({"status": "ok", "changed": 0, "unchanged": 0, "maps": [3]})),
        "inputs_request" => {
            seen += 1;
            let content: Value = m.content().unwrap();
            let first = content["first"].as_u64().unwrap() as usize;
            let mut taken = taken.lock().unwrap();
            let lines = m.buffers[0].split(|b| *b == b'\n').filter(|l| !l.is_empty());
            for (i, line) in lines.enumerate() {
                if first + i == taken.len() && seen != 1 {
                    taken.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            (seen > drops).then(|| json!({"status": "ok", "total": taken.len()}))
        }
        _ => None,
    }
}

#[tokio::test]
async fn inputs_arrive_once_and_in_order_despite_lost_messages() {
    let taken = Arc::default();
    let (file, asked) = controller(taking_inputs(Arc::clone(&taken), 2)).await;
    let client = Client::connect(&file, LONG).await.unwrap().with_timeout(Duration::from_secs(6));
    let inputs: Vec<Input> = (0..12_000).map(|i| Ok(Bytes::from(format!("[{i}]")))).collect();
    assert_eq!(client.submit(definition(), inputs).await.unwrap(), MapId(3));
    let expected: Vec<String> = (0..12_000).map(|i| format!("[{i}]")).collect();
    assert_eq!(*taken.lock().unwrap(), expected);
    let requests = of_type(&asked, "inputs_request");
    assert_eq!(requests.iter().filter(|r| r["last"] == true).count(), 1);
    assert!(requests.last().unwrap()["last"] == true);
    let keys = of_type(&asked, "map_request");
    assert!(keys[0]["key"].as_str().unwrap().len() >= 32);
}

#[tokio::test]
async fn batches_are_bounded_by_bytes() {
    let taken = Arc::default();
    let (file, asked) = controller(taking_inputs(Arc::clone(&taken), 0)).await;
    let client = Client::connect(&file, LONG).await.unwrap();
    let input = format!("[\"{}\"]", "x".repeat(400_000));
    let inputs: Vec<Input> = (0..10).map(|_| Ok(Bytes::from(input.clone()))).collect();
    client.submit(definition(), inputs).await.unwrap();
    assert_eq!(taken.lock().unwrap().len(), 10);
    assert!(of_type(&asked, "inputs_request").len() >= 4);
}

#[tokio::test]
async fn inputs_of_a_slow_stream_are_sent_immediately() {
    let taken: Arc<Mutex<Vec<String>>> = Arc::default();
    let (file, _) = controller(taking_inputs(Arc::clone(&taken), 0)).await;
    let client = Client::connect(&file, LONG).await.unwrap();
    let map = client.begin(definition()).await.unwrap().map;
    let (sender, receiver) = std::sync::mpsc::channel::<Input>();
    let (feeder, feeding) = (client.clone(), Feeding::default());
    let state = feeding.clone();
    let feed = tokio::spawn(async move { feeder.feed(map, receiver, state).await });
    for count in 1..4usize {
        sender.send(Ok(Bytes::from("[1]"))).unwrap();
        tokio::time::timeout(LONG, async {
            while feeding.submitted() < count as u32 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        assert_eq!(taken.lock().unwrap().len(), count);
    }
    // The stream continues, but is stopped.
    feeding.stop();
    assert_eq!(feed.await.unwrap().unwrap(), 3);
}

#[tokio::test]
async fn a_bad_input_cancels_the_map() {
    let (file, asked) = controller(taking_inputs(Arc::default(), 0)).await;
    let client = Client::connect(&file, LONG).await.unwrap();
    let inputs: Vec<Input> = vec![
        Ok(Bytes::from("[1]")),
        Err("stdin, line 2: not JSON".into()),
        Ok(Bytes::from("[2]")),
    ];
    let error = client.submit(definition(), inputs).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "stdin, line 2: not JSON; map 3 is cancelled (inputs submitted before: 1)"
    );
    let last = of_type(&asked, "inputs_request").pop().unwrap();
    assert_eq!(
        (&last["last"], &last["first"], &last["abandoned"]),
        (&json!(true), &json!(1), &json!("stdin, line 2: not JSON"))
    );
    assert_eq!(of_type(&asked, "cancel_request").len(), 1);
}

fn task(index: u64) -> Value {
    json!({"task": format!("3.{index}"), "state": "ok", "input": [index], "value": index, "attempts": 1, "run": 1, "submitted": 1.0})
}

#[tokio::test]
async fn a_watch_delivers_each_result_once_in_order() {
    let mut calls = 0;
    let (file, _) = controller(move |m| {
        let content: Value = m.content().unwrap();
        let from = content["from"].as_u64().filter(|_| m.msg_type() == "watch_request")?;
        calls += 1;
        // Nothing at first, then three by three; complete before all have been fetched.
        let results: Vec<Value> = if calls == 1 {
            vec![]
        } else {
            (from..(from + 3).min(10)).map(task).collect()
        };
        Some(json!({"status": "ok", "counts": {"total": 10, "ok": 10}, "complete": calls > 2, "engines": 2, "results": results}))
    })
    .await;
    let client = Client::connect(&file, LONG).await.unwrap();
    let mut watch = client.watch(MapId(3), Duration::from_millis(10));
    let mut values = Vec::new();
    while let Some(update) = watch.next().await.unwrap() {
        values.extend(update.results.iter().map(|row| row.value.as_ref().unwrap().get().to_string()));
    }
    assert_eq!(values, (0..10).map(|i| i.to_string()).collect::<Vec<_>>());
    assert!(watch.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_direct_view_gives_each_engine_its_input() {
    let taken: Arc<Mutex<Vec<String>>> = Arc::default();
    let mut inputs = taking_inputs(Arc::clone(&taken), 0);
    let (file, asked) = controller(move |m| match m.msg_type() {
        "map_request" => Some(json!({"status": "ok", "map": 3, "engines": [0, 2, 5]})),
        "watch_request" => {
            let results: Vec<Value> = (0..3).map(task).collect();
            Some(json!({"status": "ok", "counts": {"total": 3, "ok": 3}, "complete": true, "engines": 3, "results": results}))
        }
        _ => inputs(m),
    })
    .await;
    let client = Client::connect(&file, LONG).await.unwrap();
    let view = client.direct("all".parse().unwrap());
    let result = view
        .for_each_engine(definition().work, |engines| {
            engines
                .iter()
                .map(|e| -> Input { Ok(Bytes::from(format!("[{e}]"))) })
                .collect::<Vec<_>>()
        })
        .await
        .unwrap();
    assert_eq!(*taken.lock().unwrap(), ["[0]", "[2]", "[5]"]);
    assert_eq!(of_type(&asked, "map_request")[0]["options"]["targets"], "all");
    assert_eq!(result.get().await.unwrap().len(), 3);
    assert!(result.ready().await.unwrap());
}

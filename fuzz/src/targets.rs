//! What reads foreign bytes, one function each. An error is fine; a panic is not.
use bytes::Bytes;
use pcluster::testing::Config;
use pcluster::testing::ConnectionFile;
use pcluster::testing::cli::Ids;
use pcluster::testing::cli::Range;
use pcluster::testing::cli::{Shape, csv, rows};
use pcluster::testing::client::candidates;
use pcluster::testing::controller::Dependency;
use pcluster::testing::engine::{RECORD_HEAD, parts, record_head};
use pcluster::testing::model::Targets;
use pcluster::testing::model::{MapId, TaskId};
use pcluster::testing::model::{parse_conditions, parse_duration};
use pcluster::testing::wire::content::{client, engine, error, hub};
use pcluster::testing::wire::{Frames, Session};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::Cursor;
use std::str::FromStr;

pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

pub const TARGETS: &[Target] = &[
    Target { name: "wire", run: wire },
    Target {
        name: "content",
        run: content,
    },
    Target {
        name: "core",
        run: crate::controller::run,
    },
    Target {
        name: "engine",
        run: crate::engine::run,
    },
    Target {
        name: "connection",
        run: connection,
    },
    Target {
        name: "config",
        run: config,
    },
    Target { name: "words", run: words },
    Target {
        name: "inputs",
        run: inputs,
    },
    Target {
        name: "worker",
        run: worker,
    },
];

/// Frames are lines. What opens must be sealed to something that opens to the same.
fn wire(input: &[u8]) {
    let frames: Frames = input.split(|b| *b == b'\n').map(Bytes::copy_from_slice).collect();
    let count = frames.len();
    // Signatures cannot be guessed.
    assert!(
        Session::new(b"an unknown key", "a", "b").open(frames.clone()).is_err(),
        "opened without the key"
    );
    let Ok(message) = Session::new(b"", "a", "b").open(frames) else {
        return;
    };
    let _ = (message.parent(), message.metadata::<Value>(), message.content::<Value>());
    let mut signing = Session::new(b"key", "a", "b");
    let sealed = signing.seal(&message.identities, &message);
    assert_eq!(sealed.len(), count, "a frame was lost");
    match signing.open(sealed) {
        Ok(again) => assert_eq!((again.header, again.buffers), (message.header, message.buffers)),
        Err(error) => panic!("{error}"),
    }
}

fn reads<T: DeserializeOwned>(input: &[u8]) {
    let _ = serde_json::from_slice::<T>(input);
}

fn content(input: &[u8]) {
    reads::<client::Hello>(input);
    reads::<client::MapRequest>(input);
    reads::<client::MapReply>(input);
    reads::<client::InputsRequest>(input);
    reads::<client::WatchRequest>(input);
    reads::<client::WatchReply>(input);
    reads::<client::MapsRequest>(input);
    reads::<client::MapsReply>(input);
    reads::<client::TasksRequest>(input);
    reads::<client::TasksReply>(input);
    reads::<client::DetailsRequest>(input);
    reads::<client::DetailsReply>(input);
    reads::<client::SelectionRequest>(input);
    reads::<client::StatusReply>(input);
    reads::<client::StopRequest>(input);
    reads::<client::StopEnginesRequest>(input);
    reads::<client::PurgeRequest>(input);
    reads::<engine::Register>(input);
    reads::<engine::Registered>(input);
    reads::<engine::Results>(input);
    reads::<engine::Progress>(input);
    reads::<engine::Returned>(input);
    reads::<engine::Unregister>(input);
    reads::<engine::Definition>(input);
    reads::<engine::Tasks>(input);
    reads::<engine::Cancel>(input);
    reads::<engine::Signal>(input);
    reads::<hub::Registration>(input);
    reads::<hub::Unregistration>(input);
    reads::<hub::TargetsRequest>(input);
    reads::<hub::ResultRequest>(input);
    reads::<error::ErrorContent>(input);
    if let Ok(value) = serde_json::from_slice::<Value>(input) {
        let dependency = Dependency::from_json(&value);
        let _ = (dependency.is_met(|_| Some(true)), dependency.is_unreachable(|_| None));
    }
}

fn connection(input: &[u8]) {
    let Ok(file) = serde_json::from_slice::<ConnectionFile>(input) else {
        return;
    };
    let _ = (file.is_stale(), candidates(&file, "here"));
    let again = serde_json::to_vec(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
    assert_eq!(again, Some(file), "it is not what it was written as");
}

/// The first line is a `--set key=value`, the rest the file.
fn config(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    if let Err(error) = Config::parse(rest, &[]) {
        let _ = error.to_string();
    }
    if let Some((key, value)) = first.split_once('=') {
        let _ = Config::parse("", &[(key.into(), value.into())]);
    }
}

/// What stands on the command line.
fn words(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let text = text.trim();
    if let Ok(id) = TaskId::from_str(text) {
        assert_eq!(TaskId::from_str(&id.to_string()).ok(), Some(id));
    }
    let _ = (MapId::from_str(text), Ids::from_str(text), parse_duration(text));
    if let Ok(targets) = Targets::from_str(text) {
        assert_eq!(Targets::from_str(&targets.to_string()).ok().as_ref(), Some(&targets), "{text}");
    }
    if let Ok(range) = Range::from_str(text) {
        let _ = (range.len(), range.is_empty());
    }
    let _ = parse_conditions(text);
}

fn inputs(input: &[u8]) {
    let place = || "-".to_string();
    // Far more rows than the input has bytes would be rows without end.
    let most = input.len() + 2;
    let ended = |count: usize| assert!(count <= most, "rows without end");
    ended(rows::lines(place(), Cursor::new(input)).take(most + 1).count());
    ended(rows::json_lines(place(), Cursor::new(input), Shape::Call).take(most + 1).count());
    for header in [false, true] {
        ended(csv::records(place(), Cursor::new(input), header).take(most + 1).count());
    }
}

/// Records as a worker writes them, one behind the other.
fn worker(input: &[u8]) {
    let mut rest = input;
    while let Some((head, behind)) = rest.split_first_chunk::<RECORD_HEAD>() {
        let head = record_head(head);
        let length = head.length.min(behind.len());
        let whole = length == head.length;
        if let Some(record) = head.with(Bytes::copy_from_slice(&behind[..length])) {
            let _ = parts(record.body);
        }
        rest = if whole { &behind[length..] } else { &[] };
    }
    let _ = parts(Bytes::copy_from_slice(input));
}

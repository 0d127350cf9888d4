//! Which records expire, and which are kept.
use super::super::ClientChannel;
use super::super::effect::{Effect, QueryKind};
use super::super::event::{Event, Expired};
use super::harness::*;
use super::requests;
use crate::model::MapId;
use crate::model::change::Purge;
use crate::model::definition::MapOptions;
use crate::profile::config::ControllerConfig;
use crate::wire::content::client;
use crate::wire::content::engine::Channel;
use serde_json::json;
use std::time::Duration;

fn harness() -> Harness {
    let mut w = Harness::with(ControllerConfig {
        retention_days: Some(1.0),
        ..config()
    });
    w.register("a");
    w
}

fn run(w: &mut Harness, options: MapOptions) -> MapId {
    let map = w.submit(1, options);
    let outcome = w.ok();
    w.finish_one("a", outcome).unwrap();
    map
}

/// The expiry queries since the last call: their number and time limits.
fn asked(w: &mut Harness) -> Vec<f64> {
    let asked = |effect: &Effect| match effect {
        Effect::Query(query) => match query.kind {
            QueryKind::Expired { before } => Some(before.0),
            _ => None,
        },
        _ => None,
    };
    let found = w.other.iter().filter_map(asked).collect();
    w.other.clear();
    found
}

fn found(w: &mut Harness, maps: &[MapId]) {
    w.event(Event::ExpiredFound(Expired {
        maps: maps.to_vec(),
        ..Expired::default()
    }));
}

#[test]
fn expired_records_are_deleted_step_by_step() {
    let mut w = harness();
    let map = run(&mut w, MapOptions::default());
    w.pass(Duration::from_secs(1));
    assert_eq!(asked(&mut w), [1e9 + 1.0 - 86_400.0], "soon after the start");
    w.pass(Duration::from_secs(3600));
    assert_eq!(asked(&mut w), [] as [f64; 0], "one question at a time");
    found(&mut w, &[map]);
    assert_eq!(w.ledger.purged, [Purge::Map(map)]);
    w.pass(Duration::from_secs(1));
    assert_eq!(asked(&mut w).len(), 1, "there may be more");
    found(&mut w, &[]);
    w.pass(Duration::from_secs(599));
    assert_eq!(asked(&mut w).len(), 0);
    w.pass(Duration::from_secs(2));
    assert_eq!(asked(&mut w).len(), 1);
    let watch = client::WatchRequest {
        map,
        from: 0,
        limit: 10,
        wait_ms: 0,
        done: None,
        without_inputs: false,
    };
    w.ask(client::WATCH, &watch, vec![]);
    assert_eq!(w.reply()["ename"], "NoSuchMap");
}

#[test]
fn records_in_use_are_kept() {
    let mut w = harness();
    let (followed, read, over) = (
        run(&mut w, MapOptions::default()),
        run(&mut w, MapOptions::default()),
        run(&mut w, MapOptions::default()),
    );
    let open = w.open_map(MapOptions {
        after: Some(followed),
        ..MapOptions::default()
    });
    w.ask(
        client::WATCH,
        &client::WatchRequest {
            map: read,
            from: 0,
            limit: 10,
            wait_ms: 0,
            done: None,
            without_inputs: false,
        },
        vec![],
    );
    found(&mut w, &[followed, read, over, open]);
    assert_eq!(w.ledger.purged, [Purge::Map(over)]);
    for _ in 0..20 {
        w.pass(Duration::from_millis(30_050));
        // Its client is connected.
        w.inputs(open, 0, 0, false);
    }
    found(&mut w, &[followed, read]);
    assert_eq!(w.ledger.purged[1..], [Purge::Map(read)]);
}

#[test]
fn without_the_setting_nothing_expires() {
    let mut w = Harness::new();
    w.register("a");
    w.pass(Duration::from_secs(100_000));
    assert_eq!(asked(&mut w).len(), 0);
}

#[test]
fn a_client_whose_submission_expired_gets_a_new_one() {
    let mut w = Harness::with(ControllerConfig {
        retention_days: Some(1.0),
        ..config()
    });
    requests::stock(&mut w, "e");
    let msg_id = requests::request(&mut w, ClientChannel::Task, None, json!({}));
    let (_, message) = requests::sent(&mut w).remove(0);
    let map = w.ledger.tasks.keys().last().unwrap().map;
    let expired = |requests: Vec<String>| Expired {
        requests,
        empty: vec![map],
        ..Expired::default()
    };
    // It is running, even if the records listed it as expired a moment ago.
    w.event(Event::ExpiredFound(expired(vec![msg_id])));
    assert_eq!(w.ledger.purged, []);
    requests::reply(&mut w, "e", Channel::Task, &message, requests::ok(), json!({}));
    w.event(Event::ExpiredFound(expired(vec!["old".into()])));
    assert_eq!(w.ledger.purged, [Purge::Requests(vec!["old".into()]), Purge::EmptySession(map)]);
    requests::request(&mut w, ClientChannel::Task, None, json!({}));
    assert_eq!(w.ledger.tasks.keys().last().unwrap().map, MapId(map.0 + 1));
}

#[test]
fn clock_jumps_expire_no_records() {
    const YEARS: f64 = 10.0 * 365.0 * 86_400.0;
    let mut w = harness();
    run(&mut w, MapOptions::default());
    // The time limit of the query after this many seconds at this wall-clock time.
    let asked = |w: &mut Harness, second: f64, unix: f64| {
        let now = super::super::EventTime {
            since_start: Duration::from_secs_f64(second),
            unix: crate::model::UnixTime(unix),
        };
        let mut effects = Vec::new();
        w.core.handle(now, super::super::Event::TimePassed, &mut effects);
        effects.iter().find_map(|effect| match effect {
            Effect::Query(query) => match query.kind {
                QueryKind::Expired { before } => Some(before.0),
                _ => None,
            },
            _ => None,
        })
    };
    let first = asked(&mut w, 1.5, 1e9 + 1.5).unwrap();
    found(&mut w, &[]);
    let later = asked(&mut w, 20_000.0, 1e9 + YEARS).unwrap();
    assert!(later - first < 20_000.0, "ten years have not passed, but {} s", later - first);
    // A controller that is started then continues from that state.
    let mut restored = w.ledger.restored();
    restored.retention_clock = Some(crate::model::UnixTime(1e9 + 20_000.0));
    let mut other = Harness::with(crate::profile::config::ControllerConfig {
        retention_days: Some(1.0),
        ..config()
    });
    let now = super::super::EventTime {
        since_start: Duration::ZERO,
        unix: crate::model::UnixTime(1e9 + YEARS),
    };
    other.core.restore(now, restored, &mut Vec::new());
    let after = asked(&mut other, 2.0, 1e9 + YEARS).unwrap();
    assert!(after <= 1e9 + 20_002.0 - 86_400.0, "{after}");
}

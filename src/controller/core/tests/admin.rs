//! Administrative requests to engines, and reports of batch jobs.
use super::super::QueryKind;
use super::super::effect::Effect;
use super::harness::*;
use super::requests::stock;
use crate::model::targets::Targets;
use crate::wire::content::client;
use crate::wire::content::engine::Channel;
use serde_json::{Value, json};

fn signal(w: &mut Harness, targets: &str) -> Value {
    let targets: Targets = targets.parse().unwrap();
    w.try_ask(
        client::SIGNAL_ENGINES,
        &client::SignalEnginesRequest { targets, signal: 10 },
        Vec::new(),
    )
    .unwrap()
}

/// The control requests sent to ipengines.
fn controls(w: &mut Harness) -> Vec<(String, Value)> {
    let reported = std::mem::take(&mut w.other).into_iter().filter_map(|effect| match effect {
        Effect::ToEngine {
            engine,
            channel: Channel::Control,
            message,
            ..
        } => Some((format!("{engine} {}", message.msg_type()), message.content().unwrap())),
        _ => None,
    });
    reported.collect()
}

#[test]
fn a_signal_is_sent_to_its_targets_in_each_engines_protocol() {
    let mut w = Harness::new();
    w.register("a");
    w.register("b");
    stock(&mut w, "s");
    w.other.clear();
    assert_eq!(signal(&mut w, "1")["engines"], json!([1]));
    let reported = |w: &Harness, name: &str| w.engines[name].signals.clone();
    assert_eq!((reported(&w, "a"), reported(&w, "b"), controls(&mut w)), (vec![], vec![10], vec![]));
    assert_eq!(signal(&mut w, "all")["engines"], json!([0, 1, 2]));
    assert_eq!((reported(&w, "a"), reported(&w, "b")), (vec![10], vec![10, 10]));
    assert_eq!(controls(&mut w), [("s signal_request".to_string(), json!({"sig": 10}))]);
    // No engine is signalled if one of them does not exist.
    assert_eq!(signal(&mut w, "0,7")["ename"], "NoSuchEngine");
    assert_eq!((reported(&w, "a"), controls(&mut w)), (vec![10], vec![]));
}

#[test]
fn reported_jobs_are_recorded_before_the_query_and_not_broadcast() {
    let mut w = Harness::new();
    w.register("a");
    w.other.clear();
    let row = json!({"launcher": "slurm", "job": "18", "name": "pcluster-x-k3x9", "element": 1, "engines": 1, "submitted": 1000.0,
        "state": "timed out (TIMEOUT)", "over": true, "since": 1060.0});
    w.ask(client::JOBS, &json!({"jobs": [row], "gone_since": 900.0}), Vec::new());
    assert_eq!((w.ledger.jobs.len(), w.ledger.jobs[0].state.as_str()), (1, "timed out (TIMEOUT)"));
    let asked: Vec<_> = std::mem::take(&mut w.other);
    match &asked[..] {
        [Effect::Query(query)] => {
            assert!(matches!(query.kind, QueryKind::Jobs { list: false, gone_since: Some(since) } if since.0 == 900.0));
        }
        other => panic!("{other:?}"),
    }
    // A query records nothing, and a malformed one is answered.
    w.ask(client::JOBS, &json!({"list": true}), Vec::new());
    assert!(matches!(&w.other[..], [Effect::Query(query)] if matches!(query.kind, QueryKind::Jobs { list: true, gone_since: None })));
    assert_eq!(w.ledger.jobs.len(), 1);
    assert_eq!(
        w.try_ask(client::JOBS, &json!({"jobs": 4}), Vec::new()).unwrap()["ename"],
        "BadRequest"
    );
}

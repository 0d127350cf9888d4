//! What waits for an engine.
use super::harness::*;
use crate::model::definition::MapOptions;
use crate::wire::content::client;
use serde_json::json;

#[test]
fn waiting_work_is_reported_by_map_and_request() {
    let mut w = Harness::new();
    let empty = json!({"status": "ok", "work": []});
    w.ask(client::WORK, &json!({}), vec![]);
    assert_eq!(w.reply(), empty);
    let mut options = MapOptions::default();
    options.resources.cpus = 4;
    options.time_s = Some(600.0);
    options.wait_for_resources = true;
    let (plain, wide) = (w.submit(3, MapOptions::default()), w.submit(2, options));
    // Waits for another map.
    let after = MapOptions {
        after: Some(plain),
        ..MapOptions::default()
    };
    w.submit(5, after);
    w.ask(client::WORK, &json!({}), vec![]);
    let reply: client::WorkReply = serde_json::from_value(w.reply()).unwrap();
    let seen: Vec<_> = reply
        .work
        .iter()
        .map(|kind| (kind.map, kind.units, kind.request.resources.cpus, kind.limit_s, kind.ended))
        .collect();
    assert_eq!(seen, [(Some(plain), 3, 1, None, 0), (Some(wide), 2, 4, Some(600.0), 0)]);
    assert!(w.other.is_empty(), "and nothing else");
}

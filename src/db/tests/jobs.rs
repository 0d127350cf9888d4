//! Batch jobs as they are seen, and engines that leave theirs.
use super::*;
use crate::model::EngineUuid;
use crate::model::job::{Departure, JobRow, LeaveReason};
use crate::model::query::EngineQuery;

fn seen(element: u32, state: &str, over: bool, at: f64) -> JobRow {
    JobRow {
        launcher: "slurm".into(),
        job: "18".into(),
        name: "pcluster-x-k3x9".into(),
        element,
        engines: 1,
        replaces: 0,
        submitted: UnixTime(1000.0),
        state: state.into(),
        reason: String::new(),
        over,
        out_of_memory: false,
        since: UnixTime(at),
    }
}

fn record(db: &mut Db, jobs: Vec<JobRow>) -> Vec<JobRow> {
    db.apply(&[Change::JobsSeen { jobs }]);
    db.reader().jobs().unwrap()
}

#[test]
fn a_job_has_its_latest_state_and_the_time_it_was_first_seen() {
    let mut db = Db::new();
    assert_eq!(db.reader().jobs().unwrap(), []);
    let (first, second) = (seen(1, "queued", false, 1001.0), seen(2, "queued", false, 1001.0));
    assert_eq!(
        record(&mut db, vec![second.clone(), first.clone()]),
        [first.clone(), second.clone()]
    );
    assert_eq!(record(&mut db, vec![seen(1, "queued", false, 1002.0)])[0], first, "unchanged");
    let ended = seen(1, "timed out (TIMEOUT)", true, 1060.0);
    assert_eq!(record(&mut db, vec![ended.clone()]), [ended, second]);
    // Its number was reused for a job of another name.
    let other = JobRow {
        name: "pcluster-x-abcd".into(),
        submitted: UnixTime(2000.0),
        ..seen(1, "running", false, 2001.0)
    };
    assert_eq!(record(&mut db, vec![other.clone()])[2], other);
}

#[test]
fn engines_that_left_their_job_are_reported_with_the_reason() {
    let mut db = Db::new();
    let facts = |uuid: &str, job: &str| {
        let facts = serde_json::json!({"uuid": uuid, "job": job, "ends": 1060.0});
        Box::new(serde_json::from_value::<EngineFacts>(facts).unwrap())
    };
    let mut changes = Vec::new();
    for (id, uuid, job) in [(0, "a", "18.1"), (1, "b", "18.2"), (2, "c", "")] {
        let (id, at) = (EngineId(id), UnixTime(1001.0));
        changes.push(Change::EngineRegistered {
            id,
            facts: facts(uuid, job),
            at,
        });
        if uuid != "b" {
            changes.push(Change::EngineGone {
                id,
                uuid: EngineUuid::from(uuid),
                at: UnixTime(1050.0),
                reason: "why".into(),
            });
        }
    }
    db.apply(&changes);
    let gone = Departure {
        job: "18.1".into(),
        reason: LeaveReason::Unknown("why".into()),
        registered: UnixTime(1001.0),
        gone: UnixTime(1050.0),
        ends: Some(UnixTime(1060.0)),
    };
    assert_eq!(db.reader().departures(UnixTime(0.0)).unwrap(), [gone]);
    assert_eq!(db.reader().departures(UnixTime(1051.0)).unwrap(), []);

    let ids = |query: EngineQuery| -> Vec<u32> { db.reader().engines(&query).unwrap().iter().map(|engine| engine.id.0).collect() };
    assert_eq!(ids(EngineQuery::OfJob("18".into())), [0, 1]);
    assert_eq!(ids(EngineQuery::OfJob("18.2".into())), [1]);
    assert_eq!(ids(EngineQuery::OfJob("1".into())), [0; 0]);
    let engine = db.reader().engines(&EngineQuery::Id(EngineId(0))).unwrap().remove(0);
    assert_eq!((engine.gone, engine.reason.as_deref()), (Some(UnixTime(1050.0)), Some("why")));
    assert_eq!((engine.facts.job.as_str(), engine.facts.ends), ("18.1", Some(UnixTime(1060.0))));
}

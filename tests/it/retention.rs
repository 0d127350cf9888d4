//! `controller.retention_days`: old records are deleted, and the file shrinks.
use super::support::{Cluster, Home, wait_until};

#[test]
fn old_finished_maps_are_deleted_and_open_ones_kept() {
    // Less than a second.
    let cluster = Cluster::start_in(Home::new(), 2, &["--set", "controller.retention_days=0.00001"]);
    cluster.file(
        "work.py",
        "import os, time\n\ndef long(x):\n    return 'x' * 1000\n\ndef held(x):\n    while not os.path.exists('go'):\n        time.sleep(0.02)\n    return x\n",
    );
    cluster
        .run(&["map", "--name", "held", "--detach", "work.py:held", "--range", "0..1"])
        .ok();
    cluster
        .run(&["map", "--name", "long", "--detach", "work.py:long", "--range", "0..3000"])
        .ok();
    let names = || -> Vec<String> {
        let maps = cluster.json(&["results"]);
        let maps = maps["maps"].as_array().unwrap();
        maps.iter().map(|map| map["name"].as_str().unwrap().to_string()).collect()
    };
    wait_until("the end of the finished map", || (names() == ["held"]).then_some(()));
    let file = cluster.profile().join("pcluster.db");
    // The log is checkpointed from time to time; the file must be small in the end.
    cluster.file("go", "");
    wait_until("the end of the other", || names().is_empty().then_some(()));
    cluster.run(&["stop"]).ok();
    let size = std::fs::metadata(file).unwrap().len();
    assert!(size < 400_000, "{size} bytes for nothing; 3000 results of 1000 bytes were in it");
}

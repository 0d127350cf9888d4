//! Order, shares and waits in a simulated cluster, counted by a ledger that knows nothing of the scheduler.
#[path = "../../benches/simulation/mod.rs"]
mod simulation;

use pcluster::testing::ControllerConfig;
use pcluster::testing::model::*;
use simulation::Simulation;

fn node(cpus: u32) -> NodeFacts {
    NodeFacts {
        cpus,
        ..NodeFacts::default()
    }
}

fn cpus(cpus: u32) -> MapOptions {
    MapOptions {
        resources: TaskResources {
            cpus,
            ..TaskResources::default()
        },
        ..MapOptions::default()
    }
}

fn simulation(seed: u64) -> Simulation {
    Simulation::new(seed, ControllerConfig::default())
}

const SECOND: u64 = 1_000_000;

#[test]
fn maps_of_equal_priority_get_equal_shares_whatever_their_tasks_take() {
    for seed in 0..3 {
        let mut s = simulation(seed);
        (0..4).for_each(|_| s.add_node(node(4), 4));
        let ranges = [(1_000, 5_000), (200_000, 400_000), (3 * SECOND, 10 * SECOND)];
        let maps = ranges.map(|takes| s.submit(200_000, MapOptions::default(), takes));
        while s.now < 90 * SECOND {
            assert!(s.step());
        }
        let shares = maps.map(|map| s.account(map).cpu_s);
        let fair = shares.iter().sum::<f64>() / 3.0;
        assert!(
            shares.iter().all(|share| (share / fair - 1.0).abs() < 0.1),
            "seed {seed}: {shares:?}"
        );
    }
}

#[test]
fn shares_are_counted_in_processors() {
    for seed in 0..8 {
        let mut s = simulation(seed);
        (0..4).for_each(|_| s.add_node(node(16), 16));
        let maps = [1, 2, 4].map(|n| s.submit(200_000, cpus(n), (SECOND, 3 * SECOND)));
        while s.now < 200 * SECOND {
            assert!(s.step());
        }
        let shares = maps.map(|map| s.account(map).cpu_s);
        let fair = shares.iter().sum::<f64>() / 3.0;
        assert!(
            shares.iter().all(|share| (share / fair - 1.0).abs() < 0.1),
            "seed {seed}: {shares:?}"
        );
    }
}

#[test]
fn a_node_is_busy_although_its_tasks_differ_in_width() {
    for seed in 0..8 {
        let mut s = simulation(seed);
        s.add_node(node(64), 64);
        for n in [1, 4, 16] {
            s.submit(100_000, cpus(n), (SECOND, 10 * SECOND));
        }
        let (begin, end) = (60 * SECOND, 360 * SECOND);
        while s.now < begin {
            assert!(s.step());
        }
        let before = s.busy_cpu_us();
        while s.now < end {
            assert!(s.step());
        }
        let busy = (s.busy_cpu_us() - before) as f64 / (64.0 * (s.now - begin) as f64);
        assert!(busy >= 0.95, "seed {seed}: {busy:.3} of the node was busy");
    }
}

#[test]
fn the_widest_task_waits_no_longer_than_what_runs_there_when_it_comes() {
    for seed in 0..12 {
        let mut s = simulation(seed);
        s.add_node(node(16), 16);
        s.add_node(node(16), 16);
        let longest = 10 * SECOND;
        s.submit(100_000, cpus(1), (SECOND, longest));
        s.submit(100_000, cpus(3), (SECOND, longest));
        while s.now < 30 * SECOND {
            assert!(s.step());
        }
        let wide = s.submit(5, cpus(16), (SECOND, 2 * SECOND));
        while s.account(wide).done < 5 {
            assert!(s.step());
        }
        let waited = s.account(wide).longest_wait_us;
        // Others may begin tasks in its first five seconds, and one of theirs may be queued behind each that runs.
        assert!(waited <= 2 * longest + 5 * SECOND, "seed {seed}: it waited {} s", waited / SECOND);
    }
}

#[test]
fn no_task_starts_while_one_with_a_higher_priority_could() {
    for seed in 0..20 {
        let mut s = simulation(seed);
        (0..4).for_each(|_| s.add_node(node(4), 4));
        let with_priority = |priority: i32| MapOptions {
            priority,
            ..MapOptions::default()
        };
        let low = s.submit(50_000, with_priority(0), (10_000, SECOND));
        for _ in 0..500 {
            s.step();
        }
        let high = s.submit(2_000, with_priority(3), (10_000, SECOND));
        s.starts.clear();
        while s.account(high).ready() > 0 {
            assert!(s.step());
            let of_low: usize = s.starts.drain(..).filter(|(map, _)| *map == low).map(|(_, n)| n).sum();
            assert!(
                of_low == 0 || s.account(high).ready() == 0,
                "seed {seed}: {of_low} tasks of the lower priority"
            );
        }
    }
}

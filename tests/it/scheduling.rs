//! Order, shares and waits in a simulated cluster, counted by a ledger that knows nothing of the scheduler.
#[path = "../../benches/simulation/mod.rs"]
mod simulation;

use pcluster::testing::ControllerConfig;
use pcluster::testing::model::*;
use simulation::{Change, Simulation};

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
            let of_low: usize = s.starts.drain(..).filter(|start| start.map == low).map(|start| start.tasks).sum();
            assert!(
                of_low == 0 || s.account(high).ready() == 0,
                "seed {seed}: {of_low} tasks of the lower priority"
            );
        }
    }
}

/// Engines come, are lost, and return, while maps of all kinds arrive. The simulation asserts that no processor and no GPU is given
/// out twice. 300 clusters, or a twentieth of `PCLUSTER_SEEDS`.
#[test]
fn whatever_happens_to_engines_each_task_runs_in_its_turn() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seeds = match number("PCLUSTER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PCLUSTER_SEEDS").map_or(300, |seeds| seeds / 20),
    };
    let mut worst = 0.0f64;
    for seed in seeds {
        worst = worst.max(one_cluster(seed));
    }
    println!("the longest wait was {worst:.2} of what is allowed");
}

fn one_cluster(seed: u64) -> f64 {
    let mut s = simulation(seed);
    // Without a delay, an endless exchange ends here.
    s.network_us *= seed % 2;
    let nodes = 1 + s.rng.roll(3) as usize;
    for _ in 0..nodes {
        let cpus = 4 + s.rng.roll(5) as u32;
        let gpu = |index: u64| Gpu {
            vendor: GpuVendor::Nvidia,
            name: index.to_string(),
            model: String::new(),
            numa: None,
        };
        let has = NodeFacts {
            gpus: (0..2).map(gpu).collect(),
            ..node(cpus)
        };
        s.add_node(has, cpus);
    }
    let same_priority = s.rng.roll(2) == 0;
    let mut to_submit: Vec<u64> = (0..2 + s.rng.roll(3)).map(|_| s.rng.roll(20) * SECOND).collect();
    to_submit.sort_unstable_by(|a, b| b.cmp(a));
    for _ in 0..s.rng.roll(8) {
        let at = s.rng.roll(60) * SECOND;
        let engine = s.rng.roll(s.engines() as u64) as usize;
        let change = match s.rng.roll(3) {
            0 => Change::Lost(engine),
            // The controller waits 5 s for an engine whose connection closed.
            1 => Change::Away(engine, at + (1 + s.rng.roll(4)) * SECOND),
            _ => Change::Joins(s.rng.roll(nodes as u64) as usize),
        };
        s.plan(at, change);
    }
    // Enough to finish.
    (0..nodes).for_each(|node| s.plan(60 * SECOND, Change::Joins(node)));
    (0..nodes * 3).for_each(|i| s.plan(61 * SECOND, Change::Joins(i % nodes)));
    let (mut maps, mut longest) = (Vec::new(), 0);
    loop {
        while to_submit.last().is_some_and(|at| *at <= s.now) {
            to_submit.pop();
            let mut options = cpus(1 + s.rng.roll(4) as u32);
            options.max_crashes = 1000;
            options.priority = if same_priority { 0 } else { s.rng.roll(3) as i32 };
            options.resources.gpus.thousandths = [0, 0, 0, 500, 1000][s.rng.roll(5) as usize];
            let most = [10_000, SECOND, 8 * SECOND][s.rng.roll(3) as usize];
            let count = 2 + s.rng.roll(60) as u32;
            longest = longest.max(most);
            maps.push(s.submit(count, options, (most / 4, most)));
            check_priorities(&mut s, &maps, seed);
        }
        if !s.step() {
            break;
        }
        check_priorities(&mut s, &maps, seed);
        let tasks: u32 = maps.iter().map(|map| s.account(*map).count).sum();
        assert!(
            s.given_back <= 2 * tasks + 10,
            "seed {seed}: {} requests to return tasks, of {tasks}",
            s.given_back
        );
    }
    assert!(to_submit.is_empty());
    for map in &maps {
        let account = s.account(*map);
        assert_eq!(account.done, account.count, "seed {seed}: all tasks of {map:?} end exactly once");
    }
    // Time away, in which what an engine holds goes on, and one of each map before the one that waits.
    let allowed = 20 * SECOND + longest * 2 * (maps.len() as u64 + 2);
    let waits = maps.iter().map(|map| s.account(*map).longest_wait_us);
    let longest_wait = waits.max().filter(|_| same_priority).unwrap_or_default();
    longest_wait as f64 / allowed as f64
}

fn check_priorities(s: &mut Simulation, maps: &[MapId], seed: u64) {
    for start in std::mem::take(&mut s.starts).into_iter().filter(|start| start.was_idle) {
        let started = s.account(start.map);
        let free = s.free_cpus(start.node) + started.options.resources.cpus;
        // Others of the same priority may have reserved what it needs.
        let reserves = |map: &MapId| {
            let other = s.account(*map);
            let resources = &other.options.resources;
            other.ready() > 0 && (resources.cpus > 1 || !resources.gpus.is_zero())
        };
        let could = |map: &&MapId| {
            let waits = s.account(**map);
            let resources = &waits.options.resources;
            waits.ready() > 0
                && waits.options.priority > started.options.priority
                && resources.gpus.is_zero()
                && resources.cpus <= free
                && !maps.iter().any(|other| other != *map && reserves(other))
        };
        let before = maps.iter().find(could);
        assert!(before.is_none(), "seed {seed}: {start:?} although {before:?} has a higher priority");
    }
}

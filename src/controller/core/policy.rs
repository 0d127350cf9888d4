//! ipyparallel's schemes for scheduling a balanced task (`task_scheme`) on the engines with a free slot.
use super::engines::{Engines, Unit};
use super::event::EventTime;
use crate::model::EngineUuid;
use crate::profile::config::ControllerConfig;

/// A small seeded generator (xorshift64*): good enough for scheduling, and reproducible in tests.
#[derive(Debug)]
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Rng {
        Rng(seed | 1)
    }
    /// A number below `sides`, which must not be 0.
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides.max(1) as u64) as usize
    }
}

/// The configured scheme.
#[derive(Debug)]
pub(super) struct Policy {
    scheme: String,
    hwm: u32,
    rng: Rng,
}

impl Policy {
    pub(super) fn new(config: &ControllerConfig, seed: u64) -> Policy {
        Policy {
            scheme: config.task_scheme.clone(),
            hwm: config.hwm,
            rng: Rng::new(seed),
        }
    }

    /// An engine with a free slot for one of ipyparallel's tasks, among those that `may` run it.
    pub(super) fn choose(
        &mut self,
        engines: &Engines,
        unit: &Unit,
        now: EventTime,
        may: &dyn Fn(&EngineUuid) -> bool,
    ) -> Option<EngineUuid> {
        let with_room = engines.by_load().take_while(|(_, e)| self.hwm == 0 || e.load() < self.hwm);
        let mut with_room = with_room.filter(|(uuid, e)| engines.why_not(e, unit, now).is_none() && may(uuid));
        if self.scheme == "leastload" {
            return with_room.next().map(|(uuid, _)| uuid.clone());
        }
        let candidates: Vec<(EngineUuid, u32, u64)> = with_room.map(|(uuid, e)| (uuid.clone(), e.load(), e.turn())).collect();
        let chosen = choose(&self.scheme, &candidates, &mut self.rng)?;
        candidates.get(chosen).map(|(uuid, _, _)| uuid.clone())
    }
}

/// Chooses among engines in ascending load order, each with the turn of its last assignment.
fn choose(scheme: &str, candidates: &[(EngineUuid, u32, u64)], rng: &mut Rng) -> Option<usize> {
    let n = candidates.len();
    if n == 0 {
        return None;
    }
    match scheme {
        "lru" => (0..n).min_by_key(|i| candidates[*i].2),
        "plainrandom" => Some(rng.roll(n)),
        // Two at random; of these, the one that has waited longer.
        "twobin" => [rng.roll(n), rng.roll(n)].into_iter().min_by_key(|i| candidates[*i].2),
        // Two at random, weighted towards low load; of these, the less loaded one.
        "weighted" => {
            let weight = |load: u32| 1_000_000 / (load as usize + 1);
            let total: usize = candidates.iter().map(|(_, load, _)| weight(*load)).sum();
            let mut draw = || {
                let mut at = rng.roll(total);
                candidates.iter().position(|(_, load, _)| {
                    let hit = at < weight(*load);
                    at = at.saturating_sub(weight(*load));
                    hit
                })
            };
            [draw(), draw()].into_iter().flatten().min_by_key(|i| candidates[*i].1)
        }
        _ => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scheduling_scheme_follows_its_definition() {
        let engines: Vec<(EngineUuid, u32, u64)> = vec![("a".into(), 0, 30), ("b".into(), 1, 10), ("c".into(), 9, 20)];
        let mut rng = Rng::new(7);
        assert_eq!(choose("leastload", &engines, &mut rng), Some(0));
        assert_eq!(choose("lru", &engines, &mut rng), Some(1));
        let mut tally = |scheme: &str| {
            let mut counts = [0; 3];
            (0..3000).for_each(|_| counts[choose(scheme, &engines, &mut rng).unwrap()] += 1);
            counts
        };
        let [a, b, c] = tally("plainrandom");
        assert!([a, b, c].iter().all(|n| (800..1200).contains(n)), "{a} {b} {c}");
        let [a, b, c] = tally("twobin");
        assert!(b > c && c > a, "{a} {b} {c}");
        let [a, b, c] = tally("weighted");
        assert!(a > b && b > c, "{a} {b} {c}");
        for scheme in ["leastload", "lru", "plainrandom", "twobin", "weighted"] {
            assert_eq!(choose(scheme, &[], &mut rng), None);
        }
    }
}

//! ipyparallel's schemes for placing a balanced task (`task_scheme`), over the engines that have room for it.
use super::Core;
use crate::model::EngineUuid;

/// A small seeded generator (xorshift64*): placements need no more, and tests need the same ones again.
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice(seed | 1)
    }
    /// Below `sides`, which is not 0.
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides.max(1) as u64) as usize
    }
}

impl Core {
    /// An engine with room for one more of ipyparallel's tasks, of those that `may` run it.
    pub(super) fn engine_with_room(&mut self, may: &dyn Fn(&EngineUuid) -> bool) -> Option<EngineUuid> {
        let hwm = self.config.hwm;
        let with_room = self
            .engines
            .by_load()
            .take_while(|(_, e)| hwm == 0 || e.load() < hwm)
            .filter(|(uuid, _)| may(uuid));
        if self.config.task_scheme == "leastload" {
            return with_room.map(|(uuid, _)| uuid.clone()).next();
        }
        let candidates: Vec<(EngineUuid, u32, u64)> = with_room.map(|(uuid, e)| (uuid.clone(), e.load(), e.turn())).collect();
        let chosen = choose(&self.config.task_scheme, &candidates, &mut self.dice)?;
        candidates.get(chosen).map(|(uuid, _, _)| uuid.clone())
    }
}

/// Of engines by ascending load, each with when it was last given something.
fn choose(scheme: &str, candidates: &[(EngineUuid, u32, u64)], dice: &mut Dice) -> Option<usize> {
    let n = candidates.len();
    if n == 0 {
        return None;
    }
    match scheme {
        "lru" => (0..n).min_by_key(|i| candidates[*i].2),
        "plainrandom" => Some(dice.roll(n)),
        // Two at random, of these the one that waited longer.
        "twobin" => [dice.roll(n), dice.roll(n)].into_iter().min_by_key(|i| candidates[*i].2),
        // Two at random, each the likelier the less it has; of these the less loaded.
        "weighted" => {
            let weight = |load: u32| 1_000_000 / (load as usize + 1);
            let total: usize = candidates.iter().map(|(_, load, _)| weight(*load)).sum();
            let mut draw = || {
                let mut at = dice.roll(total);
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
    fn each_scheme_chooses_as_it_says() {
        let engines: Vec<(EngineUuid, u32, u64)> = vec![("a".into(), 0, 30), ("b".into(), 1, 10), ("c".into(), 9, 20)];
        let mut dice = Dice::new(7);
        assert_eq!(choose("leastload", &engines, &mut dice), Some(0));
        assert_eq!(choose("lru", &engines, &mut dice), Some(1));
        let mut tally = |scheme: &str| {
            let mut counts = [0; 3];
            (0..3000).for_each(|_| counts[choose(scheme, &engines, &mut dice).unwrap()] += 1);
            counts
        };
        let [a, b, c] = tally("plainrandom");
        assert!([a, b, c].iter().all(|n| (800..1200).contains(n)), "{a} {b} {c}");
        let [a, b, c] = tally("twobin");
        assert!(b > c && c > a, "{a} {b} {c}");
        let [a, b, c] = tally("weighted");
        assert!(a > b && b > c, "{a} {b} {c}");
        for scheme in ["leastload", "lru", "plainrandom", "twobin", "weighted"] {
            assert_eq!(choose(scheme, &[], &mut dice), None);
        }
    }
}

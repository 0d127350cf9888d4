//! Processors of a node that pinned tasks have.
use crate::model::cores::CoreSet;
use crate::model::node::NumaCores;
use std::collections::BTreeMap;

/// How many shares have each processor: at most one, unless reconnected engines report otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CoresInUse {
    shares: BTreeMap<u16, u32>,
}

impl CoresInUse {
    pub(super) fn add(&mut self, cores: &CoreSet) {
        cores.iter().for_each(|core| *self.shares.entry(core).or_default() += 1);
    }

    pub(super) fn remove(&mut self, cores: &CoreSet) {
        for core in cores.iter() {
            if let Some(count) = self.shares.get_mut(&core) {
                *count -= 1;
                if *count == 0 {
                    self.shares.remove(&core);
                }
            }
        }
    }

    /// The free processors of these groups.
    pub(super) fn free(&self, groups: &[NumaCores]) -> u32 {
        groups.iter().map(|group| self.free_in(group).count() as u32).sum()
    }

    fn free_in<'a>(&'a self, group: &'a NumaCores) -> impl Iterator<Item = u16> + 'a {
        group.cores.iter().filter(|core| !self.shares.contains_key(core))
    }

    /// Free processors of these groups: first those near `near`; of one group if one has enough, the smallest such one; else
    /// of as few groups as possible.
    pub(super) fn choose(&self, groups: &[NumaCores], near: &[u32], count: usize) -> Option<CoreSet> {
        let mut free: Vec<(bool, Vec<u16>)> = groups
            .iter()
            .map(|group| (near.contains(&group.numa), self.free_in(group).collect()))
            .collect();
        free.sort_by_key(|(is_near, cores)| {
            let is_enough = cores.len() >= count;
            let size = cores.len() as isize;
            (!is_near, !is_enough, if is_enough { size } else { -size })
        });
        let chosen: CoreSet = free.into_iter().flat_map(|(_, cores)| cores).take(count).collect();
        (chosen.len() == count).then_some(chosen)
    }
}

/// The groups of two reports about one node: its engines may be bound to different processors.
pub(super) fn united(known: &[NumaCores], more: &[NumaCores]) -> Vec<NumaCores> {
    let mut all: BTreeMap<u32, Vec<u16>> = BTreeMap::new();
    for group in known.iter().chain(more) {
        all.entry(group.numa).or_default().extend(group.cores.iter());
    }
    let group = |(numa, cores): (u32, Vec<u16>)| NumaCores {
        numa,
        cores: cores.into_iter().collect(),
    };
    all.into_iter().map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(lists: &[&str]) -> Vec<NumaCores> {
        let group = |(numa, list): (usize, &&str)| NumaCores {
            numa: numa as u32,
            cores: list.parse().unwrap(),
        };
        lists.iter().enumerate().map(group).collect()
    }

    #[test]
    fn cores_are_near_the_gpu_and_together_if_possible() {
        let groups = groups(&["0-3", "4-7", "8-9"]);
        let mut used = CoresInUse::default();
        let choose = |used: &CoresInUse, near: &[u32], count| used.choose(&groups, near, count).map(|cores| cores.to_string());
        // Two fit into the smallest group; near a device, that one counts.
        assert_eq!(choose(&used, &[], 2).as_deref(), Some("8-9"));
        assert_eq!(choose(&used, &[1], 2).as_deref(), Some("4-5"));
        assert_eq!(choose(&used, &[1], 6).as_deref(), Some("0-1,4-7"));
        used.add(&"1-2,4".parse().unwrap());
        assert_eq!(choose(&used, &[], 3).as_deref(), Some("5-7"));
        assert_eq!(choose(&used, &[0], 2).as_deref(), Some("0,3"));
        assert_eq!((used.free(&groups), choose(&used, &[], 8)), (7, None));
        assert_eq!(choose(&used, &[], 5).as_deref(), Some("0,3,5-7"));
        used.remove(&"1-2,4".parse().unwrap());
        assert_eq!(used, CoresInUse::default());
    }

    #[test]
    fn reports_of_one_node_are_united() {
        assert_eq!(united(&groups(&["0-1", "4"]), &groups(&["1-2"])), groups(&["0-2", "4"]));
    }
}

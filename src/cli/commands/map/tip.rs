//! A tip after a map that asked for memory: its tasks need less, and more of them would run at a time.
use crate::model::definition::MapOptions;
use crate::model::engine::EngineStatus;
use crate::model::memory::Memory;
use crate::model::node::NodeFacts;
use crate::model::resources::{Request, WHOLE_GPU};
use crate::model::task::{Ask, Cause, TaskRow, TaskState};
use std::collections::BTreeMap;

/// Fewer tasks tell too little.
const MIN_TASKS: u64 = 20;
/// This part of the tasks must fit.
const PART: f64 = 0.95;
/// Peaks are counted in this many steps for each power of 2.
const STEPS: f64 = 32.0;

/// How much memory tasks needed, with a precision of 2 %.
#[derive(Debug, Default)]
pub(crate) struct Peaks {
    counts: BTreeMap<u32, u64>,
    total: u64,
}

impl Peaks {
    pub(crate) fn add(&mut self, row: &TaskRow) {
        let had_too_little = row.cause.as_ref().is_some_and(Cause::is_out_of_memory);
        if let Some(bytes) = row.peak_memory.filter(|_| row.state == TaskState::Ok || had_too_little) {
            *self.counts.entry((STEPS * (bytes.max(1) as f64).log2()).ceil() as u32).or_default() += 1;
            self.total += 1;
        }
    }

    /// What this part of the tasks needed at most, in bytes.
    fn of_part(&self, part: f64) -> Option<u64> {
        let mut left = (self.total as f64 * part).ceil() as u64;
        let step = self.counts.iter().find(|(_, count)| {
            let is_reached = left <= **count;
            left = left.saturating_sub(**count);
            is_reached
        });
        step.map(|(step, _)| (f64::from(*step) / STEPS).exp2() as u64)
    }

    /// Whether a tip is possible, so that it is worth asking for the engines.
    pub(crate) fn is_enough(&self, options: &MapOptions) -> bool {
        self.total >= MIN_TASKS && options.mem_bytes.is_some()
    }

    /// The tip, if these engines could run more tasks at a time with less memory for each.
    pub(crate) fn tip(&self, options: &MapOptions, tasks: u64, engines: &[EngineStatus]) -> Option<String> {
        let asked = options.mem_bytes.filter(|_| self.is_enough(options))?;
        let (needed, most) = (self.of_part(PART)?, self.of_part(1.0)?);
        let (suggested, text) = rounded_up(needed + needed / 10);
        let with = |mem_bytes: u64| {
            let ask = Ask {
                mem_bytes: Some(mem_bytes),
                ..Ask::default()
            };
            let max = options.max_running.map_or(u64::MAX, u64::from).min(tasks);
            Some(at_a_time(&options.request_with(&ask)?, engines).min(max))
        };
        let (now, then) = (with(asked)?, with(suggested)?);
        let retry = if most > suggested { " --retry-mem x2" } else { "" };
        (suggested < asked && then > now).then(|| {
            let shown = |bytes: u64| Memory { bytes }.rounded();
            format!(
                "tip: asked for {}, 95 % of tasks needed at most {}: --mem {text}{retry} would fit {then} at a time",
                shown(asked),
                shown(needed)
            )
        })
    }
}

/// A round amount that is not less, and its text.
fn rounded_up(bytes: u64) -> (u64, String) {
    const M: u64 = 1 << 20;
    const G: u64 = 1 << 30;
    let up = |step: u64| bytes.div_ceil(step);
    match bytes {
        _ if bytes > 10 * G => (up(G) * G, format!("{}G", up(G))),
        _ if bytes > G => {
            let tenths = (bytes as f64 / G as f64 * 10.0).ceil() / 10.0;
            ((tenths * G as f64) as u64, format!("{tenths}G"))
        }
        _ if bytes > 100 * M => (up(50 * M) * 50 * M, format!("{}M", up(50 * M) * 50)),
        _ => (up(10 * M) * 10 * M, format!("{}M", up(10 * M) * 10)),
    }
}

/// How many such tasks these engines could run at a time if they ran nothing else.
fn at_a_time(request: &Request, engines: &[EngineStatus]) -> u64 {
    let mut nodes: BTreeMap<(&str, &str), (u64, &NodeFacts)> = BTreeMap::new();
    for engine in engines {
        let facts = &engine.facts;
        nodes.entry((&facts.host, &facts.job)).or_insert((0, &facts.node)).0 += 1;
    }
    let fit = |has: u64, needs: u64| has.checked_div(needs).filter(|_| has > 0).unwrap_or(u64::MAX);
    let of_node = |(engines, node): &(u64, &NodeFacts)| {
        let needs = &request.resources;
        let named = needs.named.iter().map(|(name, count)| match node.named.get(name) {
            Some(has) => has.checked_div(*count).unwrap_or(u64::MAX),
            None => 0,
        });
        let gpus = match needs.gpus.thousandths {
            0 => u64::MAX,
            each @ 1..WHOLE_GPU => node.gpus.len() as u64 * u64::from(WHOLE_GPU / each),
            many => node.gpus.len() as u64 / u64::from(many / WHOLE_GPU),
        };
        // Tasks that need no more than an engine may be as many as engines.
        let cpus = match needs.cpus {
            0..=1 => u64::MAX,
            cpus => fit(u64::from(node.cpus), u64::from(cpus)),
        };
        let memory = fit(node.mem_bytes, request.mem_bytes);
        named.chain([*engines, gpus, cpus, memory]).min().unwrap_or_default()
    };
    nodes.values().map(of_node).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::values::tests::row;
    use crate::model::resources::TaskResources;

    const G: u64 = 1 << 30;

    fn options(mem_bytes: u64) -> MapOptions {
        MapOptions {
            mem_bytes: Some(mem_bytes),
            ..MapOptions::default()
        }
    }

    fn engines(count: u32, node: &NodeFacts) -> Vec<EngineStatus> {
        let engine = |id: u32| {
            let mut engine: EngineStatus = serde_json::from_value(serde_json::json!({
                "id": id, "uuid": format!("e{id}"), "host": "node1", "pid": 1, "state": "idle", "assigned": 0, "finished": 0, "registered": 1.0,
            }))
            .unwrap();
            engine.facts.node = node.clone();
            engine
        };
        (0..count).map(engine).collect()
    }

    fn peaks(of: impl Iterator<Item = u64>) -> Peaks {
        let mut peaks = Peaks::default();
        for (index, bytes) in of.enumerate() {
            peaks.add(&TaskRow {
                peak_memory: Some(bytes),
                ..row(index as u32, Some("1"))
            });
        }
        peaks
    }

    #[test]
    fn the_tip_says_what_would_fit() {
        let node = NodeFacts {
            cpus: 16,
            mem_bytes: 16 * G,
            ..NodeFacts::default()
        };
        let many = peaks((0..100).map(|n| (12 + n / 50) * G / 10));
        let tip = |peaks: &Peaks, options: &MapOptions, count: u32| peaks.tip(options, 100, &engines(count, &node));
        insta::assert_snapshot!(tip(&many, &options(8 * G), 16).unwrap(), @"tip: asked for 8G, 95 % of tasks needed at most 1.3G: --mem 1.5G would fit 10 at a time");
        let some_need_more = peaks((0..100).map(|n| if n < 97 { G / 2 } else { 4 * G }));
        insta::assert_snapshot!(tip(&some_need_more, &options(8 * G), 16).unwrap(), @"tip: asked for 8G, 95 % of tasks needed at most 512M: --mem 600M --retry-mem x2 would fit 16 at a time");
        // Nothing to gain: as many engines as fit now, or hardly less memory, or too few tasks, or none asked for.
        assert_eq!(tip(&many, &options(8 * G), 2), None);
        assert_eq!(tip(&many, &options(15 * G / 10), 16), None);
        assert_eq!(tip(&many, &options(G), 16), None);
        assert_eq!(tip(&peaks((0..19).map(|_| G)), &options(8 * G), 16), None);
        assert_eq!(tip(&many, &MapOptions::default(), 16), None);
        let limited = |of: MapOptions| tip(&many, &of, 16);
        let cpus = TaskResources {
            cpus: 8,
            ..TaskResources::default()
        };
        assert_eq!(
            limited(MapOptions {
                resources: cpus,
                ..options(8 * G)
            }),
            None
        );
        assert_eq!(
            limited(MapOptions {
                max_running: Some(2),
                ..options(8 * G)
            }),
            None
        );
        let few_cpus = NodeFacts { cpus: 2, ..node.clone() };
        assert!(
            many.tip(&options(8 * G), 100, &engines(4, &few_cpus))
                .unwrap()
                .ends_with("fit 4 at a time")
        );
        assert_eq!(
            many.tip(&options(8 * G), 2, &engines(16, &node)),
            None,
            "all tasks run at a time already"
        );
        assert_eq!(many.tip(&options(8 * G), 100, &engines(16, &NodeFacts::default())), None);
    }

    #[test]
    fn amounts_are_rounded_up_to_a_text_that_parses_again() {
        for bytes in [
            1,
            5 << 20,
            99 << 20,
            101 << 20,
            700 << 20,
            G - 1,
            G + 1,
            13 * G / 10,
            9 * G + 7,
            10 * G + 1,
            999 * G,
        ] {
            let (up, text) = rounded_up(bytes);
            assert!(up >= bytes && up <= 2 * bytes.max(10 << 20), "{bytes} {text}");
            let parsed = text.parse::<Memory>().unwrap().bytes;
            assert!(parsed.abs_diff(up) <= 1, "{text} {up}");
        }
    }
}

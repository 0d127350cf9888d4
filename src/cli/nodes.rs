//! Nodes in listings: what they have, by host and job.
use crate::cli::output::table::{Cell, Table};
use crate::model::engine::EngineStatus;
use crate::model::memory::Memory;
use crate::model::node::{Gpu, NodeFacts};
use crate::model::resources::{GpuAmount, WHOLE_GPU};
use serde::Serialize;
use std::collections::BTreeMap;

/// A node as `--json` shows it.
#[derive(Serialize)]
pub(crate) struct NodeView<'a> {
    host: &'a str,
    /// The batch job whose share of the host this is.
    job: Option<&'a str>,
    engines: u32,
    cpus: Option<u32>,
    mem_bytes: Option<u64>,
    gpus: &'a [Gpu],
    named: &'a BTreeMap<String, u64>,
    used: Used,
}

/// What tasks use of a node.
#[derive(Default, Serialize)]
struct Used {
    cpus: u32,
    mem_bytes: u64,
    /// Of all GPUs together, for example 1.5.
    #[serde(serialize_with = "as_number")]
    gpus: GpuAmount,
    named: BTreeMap<String, u64>,
}

fn as_number<S: serde::Serializer>(gpus: &GpuAmount, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(f64::from(gpus.thousandths) / f64::from(WHOLE_GPU))
}

/// The nodes of engines that report resources, in the order of their first engines.
pub(crate) fn nodes(engines: &[EngineStatus]) -> Vec<NodeView<'_>> {
    let mut nodes: Vec<NodeView> = Vec::new();
    for engine in engines {
        let facts = &engine.facts;
        let job = Some(facts.job.as_str()).filter(|job| !job.is_empty());
        let known = nodes.iter().position(|node| node.host == facts.host && node.job == job);
        let index = match known {
            Some(index) => index,
            None if facts.node.is_empty() => continue,
            None => {
                nodes.push(NodeView::new(&facts.host, job, &facts.node));
                nodes.len() - 1
            }
        };
        nodes[index].add(engine);
    }
    nodes
}

impl<'a> NodeView<'a> {
    fn new(host: &'a str, job: Option<&'a str>, node: &'a NodeFacts) -> NodeView<'a> {
        NodeView {
            host,
            job,
            engines: 0,
            cpus: Some(node.cpus).filter(|cpus| *cpus > 0),
            mem_bytes: Some(node.mem_bytes).filter(|bytes| *bytes > 0),
            gpus: &node.gpus,
            named: &node.named,
            used: Used::default(),
        }
    }

    fn add(&mut self, engine: &EngineStatus) {
        self.engines += 1;
        let used = &mut self.used;
        let Some(uses) = &engine.uses else {
            used.cpus += u32::from(engine.assigned > 0);
            return;
        };
        used.cpus = used.cpus.saturating_add(uses.resources.cpus);
        used.mem_bytes = used.mem_bytes.saturating_add(uses.mem_bytes);
        used.gpus.thousandths = used.gpus.thousandths.saturating_add(uses.resources.gpus.thousandths);
        for (name, count) in &uses.resources.named {
            *used.named.entry(name.clone()).or_default() += count;
        }
    }
}

/// `2, in use: 3/20 cpus, 8G/94.1G, 1/2 gpus`; empty without nodes.
pub(crate) fn summary(nodes: &[NodeView]) -> String {
    let (mut has, mut used) = (NodeFacts::default(), Used::default());
    let add = |sums: &mut BTreeMap<String, u64>, more: &BTreeMap<String, u64>| {
        for (name, count) in more {
            let sum = sums.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    };
    for node in nodes {
        has.cpus = has.cpus.saturating_add(node.cpus.unwrap_or_default());
        has.mem_bytes = has.mem_bytes.saturating_add(node.mem_bytes.unwrap_or_default());
        has.gpus.extend_from_slice(node.gpus);
        used.cpus = used.cpus.saturating_add(node.used.cpus);
        used.mem_bytes = used.mem_bytes.saturating_add(node.used.mem_bytes);
        used.gpus.thousandths = used.gpus.thousandths.saturating_add(node.used.gpus.thousandths);
        add(&mut has.named, node.named);
        add(&mut used.named, &node.used.named);
    }
    if nodes.is_empty() {
        return String::new();
    }
    let size = |bytes| Memory { bytes }.rounded();
    let mut parts = vec![
        format!("{}/{} cpus", used.cpus, has.cpus),
        match used.mem_bytes {
            0 => format!("0/{}", size(has.mem_bytes)),
            in_use => format!("{}/{}", size(in_use), size(has.mem_bytes)),
        },
    ];
    if !has.gpus.is_empty() {
        parts.push(format!("{}/{} gpus", used.gpus, has.gpus.len()));
    }
    let of = |name: &str| used.named.get(name).copied().unwrap_or_default();
    parts.extend(has.named.iter().map(|(name, count)| format!("{}/{count} {name}", of(name))));
    format!("{}, in use: {}", nodes.len(), parts.join(", "))
}

pub(crate) fn table(nodes: &[NodeView]) -> Table {
    let mut table = Table::new()
        .column("NODE")
        .column("JOB")
        .number("ENGINES")
        .number("CPUS")
        .number("MEMORY")
        .text("GPUS")
        .column("OTHER");
    for node in nodes {
        let used = &node.used;
        let of = |name: &String| used.named.get(name).copied().unwrap_or_default();
        let named: Vec<String> = node
            .named
            .iter()
            .map(|(name, count)| format!("{}/{count} {name}", of(name)))
            .collect();
        let size = |bytes| Memory { bytes }.rounded();
        let memory = |bytes| match used.mem_bytes {
            0 => format!("0/{}", size(bytes)),
            in_use => format!("{}/{}", size(in_use), size(bytes)),
        };
        table.row(vec![
            Cell::new(node.host),
            Cell::or_dash(node.job),
            Cell::new(node.engines),
            Cell::or_dash(node.cpus.map(|cpus| format!("{}/{cpus}", used.cpus))),
            Cell::or_dash(node.mem_bytes.map(memory)),
            Cell::or_dash((!node.gpus.is_empty()).then(|| format!("{}/{}", used.gpus, gpus(node.gpus)))),
            Cell::or_dash((!named.is_empty()).then(|| named.join(", "))),
        ]);
    }
    table
}

/// `2 NVIDIA A100`, `1 A100, 1 H100`.
fn gpus(gpus: &[Gpu]) -> String {
    let mut models: Vec<(&str, u32)> = Vec::new();
    for gpu in gpus {
        match models.iter_mut().find(|(model, _)| *model == gpu.model) {
            Some((_, count)) => *count += 1,
            None => models.push((&gpu.model, 1)),
        }
    }
    let shown: Vec<String> = models
        .iter()
        .map(|(model, count)| format!("{count} {model}").trim_end().to_string())
        .collect();
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::context::Terminal;
    use serde_json::json;

    #[test]
    fn engines_of_one_host_and_job_share_a_node() {
        let gpus =
            json!([{"vendor": "nvidia", "name": "0", "model": "NVIDIA A100"}, {"vendor": "nvidia", "name": "1", "model": "NVIDIA A100"}]);
        let node = json!({"cpus": 16, "mem_bytes": 67_321_741_312u64, "gpus": gpus, "named": {"licence": 2}});
        let engine = |id: u32, host: &str, job: &str, node: &serde_json::Value| {
            let status = json!({"id": id, "uuid": format!("u{id}"), "host": host, "job": job, "state": "idle", "assigned": 0, "finished": 0,
                "registered": 0.0, "node": node});
            serde_json::from_value::<EngineStatus>(status).unwrap()
        };
        let mut engines = [
            engine(0, "n1", "", &node),
            engine(1, "n2", "47.1", &json!({"cpus": 4})),
            engine(2, "n1", "", &node),
            engine(3, "n2", "47.2", &json!({"cpus": 1})),
            // An ipengine.
            engine(4, "n3", "", &json!({})),
        ];
        engines[0].uses =
            serde_json::from_value(json!({"resources": {"cpus": 4, "gpus": 500, "named": {"licence": 1}}, "mem_bytes": 4u64 << 30}))
                .unwrap();
        engines[2].assigned = 1;
        assert_eq!(summary(&nodes(&engines)), "3, in use: 5/21 cpus, 4G/62.7G, 0.5/2 gpus, 1/2 licence");
        insta::assert_snapshot!(table(&nodes(&engines)).render(&Terminal::NONE), @r"
        NODE  JOB   ENGINES  CPUS    MEMORY  GPUS               OTHER
        n1    -           2  5/16  4G/62.7G  0.5/2 NVIDIA A100  1/2 licence
        n2    47.1        1   0/4         -  -                  -
        n2    47.2        1   0/1         -  -                  -
        ");
        for engine in &mut engines {
            let named = (0..8).map(|n| (format!("resource-{n}"), 1));
            engine.facts.node.named = named.collect();
        }
        let narrow = Terminal {
            stdout: true,
            width: 60,
            ..Terminal::NONE
        };
        let shown = table(&nodes(&engines)).render(&narrow);
        assert!(shown.contains("0/1 resource-7"), "nothing is cut: {shown}");
    }
}

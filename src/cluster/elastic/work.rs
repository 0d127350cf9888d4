//! Ready work, counted for the cheapest shape that can run it.
use super::settings::{ElasticSettings, EngineShape};
use crate::model::node::NodeFacts;
use crate::model::resources::{Request, WHOLE_GPU};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Assumed of a unit until [`ENOUGH_ENDED`] of its kind have ended.
pub(crate) const ASSUMED_S: f64 = 60.0;
pub(crate) const ENOUGH_ENDED: u64 = 10;
/// Of a job's walltime, what its engines need to start: units that need more than the rest do not fit.
const START_S: f64 = 60.0;

/// Units of one kind that could start if there were engines, such as those of one map: not those beyond its `--max-running`, and not
/// those that only certain engines may run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ReadyWork {
    /// For people: `map 12`.
    pub name: String,
    pub request: Request,
    pub units: u64,
    /// Units of this kind that have ended, and their mean duration.
    pub ended: u64,
    pub mean_s: f64,
    /// The time limit of each unit. An engine with a known end takes it only if this time is left.
    pub limit_s: Option<f64>,
}

impl ReadyWork {
    /// What one unit is expected to take.
    pub(crate) fn expected_s(&self) -> f64 {
        match self.ended >= ENOUGH_ENDED && self.mean_s.is_finite() {
            true => self.mean_s.max(0.0),
            false => self.limit_s.map_or(ASSUMED_S, |limit| limit.min(ASSUMED_S)),
        }
    }
}

/// The work that is counted for one shape. In engines: a unit that needs the processors of four engines counts as four.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ShapeWork {
    pub units: u64,
    /// The number of engines that the units could use at the same time.
    pub engines: u64,
    /// What all units take on one engine.
    pub engine_s: f64,
    /// The engines of one job that the widest unit needs; 0 without work.
    pub widest: u32,
}

/// Units that no shape can run, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Unfit {
    pub name: String,
    pub units: u64,
    pub why: String,
}

/// What is counted for each shape (in the order of the settings), and what fits none. `nodes`: what the nodes of shapes have, where
/// it is known better than from the settings.
pub(crate) fn group(settings: &ElasticSettings, nodes: &BTreeMap<&str, &NodeFacts>, work: &[ReadyWork]) -> (Vec<ShapeWork>, Vec<Unfit>) {
    let mut order: Vec<usize> = (0..settings.shapes.len()).collect();
    order.sort_by(|a, b| settings.shapes[*a].cost.total_cmp(&settings.shapes[*b].cost));
    let mut counted = vec![ShapeWork::default(); settings.shapes.len()];
    let mut unfit = Vec::new();
    for kind in work.iter().filter(|kind| kind.units > 0) {
        let mut misfits = Vec::new();
        let found = order.iter().find_map(|at| {
            let shape = &settings.shapes[*at];
            let node = nodes.get(shape.name.as_str()).copied().unwrap_or(&shape.node);
            match engines_per_unit(shape, node, kind) {
                Ok(width) => Some((*at, width)),
                Err(misfit) => {
                    misfits.push(format!("{}: {misfit}", shape.name));
                    None
                }
            }
        });
        let Some((at, width)) = found else {
            unfit.push(Unfit {
                name: kind.name.clone(),
                units: kind.units,
                why: misfits.join("; "),
            });
            continue;
        };
        let total = &mut counted[at];
        total.units += kind.units;
        total.engines += kind.units.saturating_mul(width.into());
        total.engine_s += kind.units as f64 * kind.expected_s() * f64::from(width);
        total.widest = total.widest.max(width);
    }
    (counted, unfit)
}

/// How many engines' share of a job one unit takes, or why it does not fit.
fn engines_per_unit(shape: &EngineShape, node: &NodeFacts, kind: &ReadyWork) -> Result<u32, String> {
    let engines = shape.full_job();
    let mut node = node.clone();
    if node.cpus == 0 {
        node.cpus = engines.saturating_mul(shape.cpus_per_engine.max(1));
    }
    // Whether units can be bound to processors is known only on the node.
    let mut request = kind.request.clone();
    request.resources.pin &= !node.cores.is_empty();
    if !request.fits(&node, engines) {
        return Err(format!("a job has {node}, a unit needs {request}"));
    }
    let needed = kind.limit_s.unwrap_or_else(|| kind.expected_s());
    if let Some(walltime) = shape.walltime_s.filter(|walltime| needed > walltime - START_S) {
        return Err(format!("a unit needs {needed:.0} s, a job has {walltime:.0} s"));
    }
    Ok(engines.div_ceil(at_once(&request, &node, engines).max(1)))
}

/// How many such units run on a node at the same time.
fn at_once(request: &Request, node: &NodeFacts, engines: u32) -> u32 {
    let of = |has: u64, needs: u64| has.checked_div(needs).unwrap_or(u64::MAX);
    let resources = &request.resources;
    let mut units = u64::from(engines).min(of(node.cpus.into(), resources.cpus.into()).max(1));
    if node.mem_bytes > 0 {
        units = units.min(of(node.mem_bytes, request.mem_bytes));
    }
    let gpus = node.gpus.len() as u64;
    units = units.min(match resources.gpus.thousandths {
        0 => u64::MAX,
        part if part < WHOLE_GPU => gpus * u64::from(WHOLE_GPU / part),
        whole => gpus / u64::from(whole.div_ceil(WHOLE_GPU)),
    });
    for (name, count) in &resources.named {
        units = units.min(of(node.named.get(name).copied().unwrap_or(0), *count));
    }
    units as u32
}

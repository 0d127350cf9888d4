//! What users set: limits, and the shapes of engines that may be submitted.
use crate::model::node::NodeFacts;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ElasticSettings {
    pub shapes: Vec<EngineShape>,
    /// Core-hours that all jobs together may be granted.
    pub budget_core_h: Option<f64>,
    /// A new engine has at least this much to do.
    pub work_per_engine_s: f64,
    /// The time between two decisions when nothing happens.
    pub interval_s: f64,
}

/// One kind of job, and how many of its engines there may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct EngineShape {
    pub name: String,
    pub min: u32,
    pub max: u32,
    /// Engines that are idle for longer are retired.
    pub idle_s: f64,
    /// Jobs that may wait in the queue at the same time.
    pub max_queued: u32,
    pub engines_per_job: u32,
    /// The time limit of a job; needed for a budget.
    pub walltime_s: Option<f64>,
    pub cpus_per_engine: u32,
    /// Cores that a job is granted whatever its engines use, such as those of a whole node.
    pub cores_per_job: Option<u32>,
    /// Work goes to the shape with the lowest cost that can run it; of equal ones, to the first.
    pub cost: f64,
    /// What the node of a job with [`EngineShape::engines_per_job`] engines has. Zero processors: as many as its engines use.
    pub node: NodeFacts,
}

impl Default for ElasticSettings {
    fn default() -> Self {
        ElasticSettings {
            shapes: Vec::new(),
            budget_core_h: None,
            work_per_engine_s: 600.0,
            interval_s: 10.0,
        }
    }
}

impl EngineShape {
    pub(crate) fn new(name: &str, min: u32, max: u32) -> EngineShape {
        EngineShape {
            name: name.into(),
            min,
            max,
            idle_s: 300.0,
            max_queued: 4,
            engines_per_job: 1,
            walltime_s: None,
            cpus_per_engine: 1,
            cores_per_job: None,
            cost: 1.0,
            node: NodeFacts::default(),
        }
    }

    /// The engines of a full job, at most `max`.
    pub(crate) fn full_job(&self) -> u32 {
        self.engines_per_job.clamp(1, self.max.max(1))
    }

    /// The cores that a job with this many engines is granted.
    pub(crate) fn cores(&self, engines: u32) -> u32 {
        self.cores_per_job.unwrap_or(engines.saturating_mul(self.cpus_per_engine.max(1)))
    }
}

/// Why settings cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum InvalidSettings {
    #[error("elastic shape {0:?}: min ({1}) is greater than max ({2})")]
    MinAboveMax(String, u32, u32),
    #[error("elastic shape {0:?}: max must be greater than 0")]
    NoMax(String),
    #[error("elastic shape {0:?}: max_queued must be greater than 0")]
    NoQueue(String),
    #[error("two elastic shapes are named {0:?}")]
    SameName(String),
    #[error("elastic shape {0:?} has no walltime: a budget counts the time that jobs are granted")]
    BudgetWithoutWalltime(String),
    #[error("{0} must be greater than 0")]
    NotPositive(&'static str),
}

impl ElasticSettings {
    pub(crate) fn shape(&self, name: &str) -> Option<&EngineShape> {
        self.shapes.iter().find(|shape| shape.name == name)
    }

    pub(crate) fn check(&self) -> Result<(), InvalidSettings> {
        use InvalidSettings::*;
        for (at, shape) in self.shapes.iter().enumerate() {
            let name = || shape.name.clone();
            match shape {
                _ if self.shapes[..at].iter().any(|other| other.name == shape.name) => return Err(SameName(name())),
                EngineShape { max: 0, .. } => return Err(NoMax(name())),
                EngineShape { max_queued: 0, .. } => return Err(NoQueue(name())),
                EngineShape { min, max, .. } if min > max => return Err(MinAboveMax(name(), *min, *max)),
                EngineShape { walltime_s: None, .. } if self.budget_core_h.is_some() => return Err(BudgetWithoutWalltime(name())),
                EngineShape { engines_per_job: 0, .. } => return Err(NotPositive("engines_per_job")),
                _ => {}
            }
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        match self {
            _ if !positive(self.work_per_engine_s) => Err(NotPositive("work_per_engine")),
            _ if !positive(self.interval_s) => Err(NotPositive("the interval of decisions")),
            _ if self.budget_core_h.is_some_and(|budget| !positive(budget)) => Err(NotPositive("the budget")),
            _ => Ok(()),
        }
    }
}

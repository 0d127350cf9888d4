//! Parts that fuzz targets, benches and integration tests use. No interface of pcluster: it changes without notice.
pub mod cli {
    pub use crate::cli::ids::Ids;
    pub use crate::cli::inputs::range::Range;
    pub use crate::cli::inputs::{Shape, csv, rows};
}

pub mod client {
    pub use crate::client::Client;
    pub use crate::client::address::candidates;
}

pub use crate::connection::ConnectionFile;

pub mod controller {
    pub use crate::controller::core::dependency::Dependency;
    pub use crate::controller::core::{ClientChannel, Core, Effect, Event, EventTime, Facts};
}

pub mod engine {
    pub use crate::engine::core::event::{Parent, Published};
    pub use crate::engine::core::unit::{CommandEnd, CommandExit, Method, WorkerKey, WorkerResult};
    pub use crate::engine::core::{Core, CoreSettings, Effect, Event, Now, Request};
    pub use crate::engine::worker::protocol::{RECORD_HEAD, parts, record_head};
}

pub mod model {
    pub use crate::model::change::Change;
    pub use crate::model::definition::{CallSource, MapDefinition, MapOptions, Work};
    pub use crate::model::engine::EngineFacts;
    pub use crate::model::node::{Gpu, GpuVendor, NodeFacts};
    pub use crate::model::query::{parse_conditions, parse_duration};
    pub use crate::model::resources::{Allocation, GpuAmount, TaskResources};
    pub use crate::model::targets::Targets;
    pub use crate::model::task::{Outcome, TaskState};
    pub use crate::model::{EngineUuid, MapId, PROTOCOL_VERSION, TaskId, UnixTime, VERSION};
}

pub use crate::profile::{Config, ControllerConfig};
pub use crate::transport::{Security, Socket, SocketKind};

pub mod wire {
    pub use crate::wire::content;
    pub use crate::wire::message::{EMPTY, to_json};
    pub use crate::wire::{Frames, Header, Message, Session};
}

//! What `start` waits for, and what it reports meanwhile.

/// The number of engines that `start` waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wait {
    #[default]
    All,
    None,
    Some(u32),
}

impl Wait {
    pub(super) fn of(self, all: usize) -> usize {
        match self {
            Wait::All => all,
            Wait::None => 0,
            Wait::Some(n) => all.min(n as usize),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StartProgress {
    /// A message for the user: removed files, a warning.
    Note(String),
    ControllerStarting,
    /// In a batch system's queue.
    ControllerWaits {
        job: String,
        /// `1 queued: Resources`; empty if only known to be submitted.
        state: String,
    },
    ControllerReady {
        pid: u32,
    },
    EnginesStarting {
        n: u32,
    },
    Engines {
        registered: u32,
        n: u32,
        /// `slurm job 4711`, for engines of a batch system.
        job: Option<String>,
        /// `3 queued: Resources`
        left: String,
    },
}

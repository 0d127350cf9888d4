//! Where the log of the daemons goes: stderr, with times, one line an event.
use tracing_subscriber::EnvFilter;

/// `level` is a level (`info`) or a filter (`info,pcluster::controller=debug`).
pub fn start(level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
}

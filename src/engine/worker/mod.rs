//! The Python workers: the interpreter that forks them ([`interpreter`]), their processes ([`process`]), their protocol
//! ([`protocol`]), and their own code (`state.py`, `records.py`, `values.py`, `rendering.py`, `bundle.py`, `code.py`, `frames.py`,
//! `streams.py`, `worker.py`, `interpreter.py`: one script; `origins.py`, `kernel.py`, `ipython.py`: sent when needed).
mod counts;
mod files;
pub(crate) mod interpreter;
pub(crate) mod output;
pub(crate) mod process;
pub(crate) mod protocol;
mod reader;
#[cfg(test)]
mod tests;
pub(crate) mod watch;
mod writer;

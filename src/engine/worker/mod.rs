//! The Python workers: the interpreter that forks them ([`interpreter`]), their processes ([`process`]), their protocol
//! ([`protocol`]), and their own code (`state.py`, `records.py`, `values.py`, `rendering.py`, `bundle.py`, `code.py`, `frames.py`,
//! `streams.py`, `worker.py`, `interpreter.py`: one script; `origins.py`, `kernel.py`, `ipython.py`: sent when needed).
mod counts;
mod files;
pub mod interpreter;
pub mod output;
pub mod process;
pub mod protocol;
mod reader;
#[cfg(test)]
mod tests;
pub mod watch;
mod writer;

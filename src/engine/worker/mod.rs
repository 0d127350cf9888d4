//! The Python workers: the interpreter that forks them ([`interpreter`]), their processes ([`process`]), what is said to them and
//! by them ([`protocol`]), and their own code (`state.py`, `records.py`, `values.py`, `bundle.py`, `code.py`, `frames.py`, `streams.py`, `worker.py`,
//! `interpreter.py`: one
//! script; `ipython.py`).
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

//! The Python worker: its process ([`process`]), what is said to it and by it ([`protocol`]), and its own code
//! (`state.py`, `records.py`, `values.py`, `bundle.py`, `code.py`, `worker.py`: one script; `ipython.py`).
pub mod files;
pub mod process;
pub mod protocol;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

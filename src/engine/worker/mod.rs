//! The Python worker: its process ([`process`]), what is said to it and by it ([`protocol`]), and its own code
//! (`worker.py`, `ipython.py`).
pub mod files;
pub mod process;
pub mod protocol;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

//! Elasticity: as many engines as the ready work needs, within limits, and a reason for each decision.
//!
//! [`decide::decide`] is a function of settings ([`settings`]), the state that survives restarts ([`state`]) and one
//! [`observation`]; it returns [`decision`]s and a [`summary`]. Parts: [`work`] counts each unit of ready work for the cheapest
//! shape that can run it, `track` keeps what was seen of jobs and engines, `down` and `up` decide. Pure: knows no clock, batch
//! system, file or process; the caller stores the state, carries out the decisions and reports what became of them.
pub(crate) mod decide;
pub(crate) mod decision;
mod down;
mod failures;
pub(crate) mod observation;
pub(crate) mod settings;
pub(crate) mod state;
pub(crate) mod summary;
mod tally;
#[cfg(test)]
mod tests;
mod track;
mod up;
pub(crate) mod work;

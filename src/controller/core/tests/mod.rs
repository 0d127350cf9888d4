//! The core without the world: a [`world::World`] of fake engines and clients around it, a ledger that holds every recorded change
//! against the table of transitions, and seeded random lives.
mod ahead;
mod askers;
mod hub;
mod life;
mod malformed;
mod orders;
mod requests;
mod retention;
mod scheduling;
mod serving;
mod world;

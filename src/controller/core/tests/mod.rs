//! The core without the world: a [`harness::Harness`] of fake engines and clients around it, a ledger that holds every recorded change
//! against the table of transitions, and seeded random lives.
mod admin;
mod clients;
mod fake_requests;
mod harness;
mod hub;
mod lifecycle;
mod malformed;
mod prefetch;
mod requests;
mod retention;
mod scheduling;

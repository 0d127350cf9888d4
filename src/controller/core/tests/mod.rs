//! Tests of the core alone: a [`harness::Harness`] of fake engines and clients, a ledger that checks every recorded change
//! against the table of transitions, and seeded random simulations.
mod admin;
mod attempts;
mod clients;
mod explain;
mod fake_requests;
mod harness;
mod hub;
mod level;
mod lifecycle;
mod malformed;
mod order;
mod prefetch;
mod requests;
mod retention;
mod scheduling;
mod work;

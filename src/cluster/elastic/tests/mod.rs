//! Tests of each rule ([`rules`]), and lives with a simulated batch system ([`system`]) under an independent judge ([`judge`]).
mod judge;
mod lives;
mod rules;
mod system;

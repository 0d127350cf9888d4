//! The client against a controller that the test answers for.

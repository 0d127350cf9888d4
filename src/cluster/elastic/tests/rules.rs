//! One test for each rule, in its numbers.

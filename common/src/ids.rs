//! Identifiers of jobs, sessions and phases.

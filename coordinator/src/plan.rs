//! The phases of a job, decided once from its specification and its data.

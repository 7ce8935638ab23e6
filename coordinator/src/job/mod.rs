//! A job's life as a pure state machine.

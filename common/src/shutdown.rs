//! Stopping cleanly on a signal.

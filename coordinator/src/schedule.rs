//! Which rank does what next; pure.

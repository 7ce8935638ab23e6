//! Agents and their devices; pure.

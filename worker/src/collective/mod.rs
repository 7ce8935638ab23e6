//! Process groups for gang phases.

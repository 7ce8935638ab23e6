//! Preference, golden, prompt and demonstration files, and the normal rows they become.

//! Losses: pure functions of log-probabilities and scores.

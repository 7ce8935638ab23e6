//! Metrics and health over plain HTTP.

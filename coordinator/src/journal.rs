//! The durable order of events; it alone writes the log.

//! A rank process: one device, one thread that owns every tensor.

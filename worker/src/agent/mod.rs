//! The agent: registers this host's devices, starts rank processes and supervises them.

//! Sampling answers: continuous batching over a KV cache.

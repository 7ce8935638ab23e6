//! A training step: batches, optimizer, schedule, gradients.

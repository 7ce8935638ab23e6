//! Connecting, deadlines and retries; moving artifacts.

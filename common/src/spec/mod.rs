//! The job file: validated types, made from the wire's `JobSpec`.

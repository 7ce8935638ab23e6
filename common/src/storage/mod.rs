//! The object store: opening it by URL, the create-once log, hashed objects.

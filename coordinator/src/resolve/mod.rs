//! A submitted specification's data, parsed, split and written once.

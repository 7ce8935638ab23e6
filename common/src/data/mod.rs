//! Data sets: files of many formats are parsed into the few row types that every phase reads.

pub mod parse;
pub mod rows;
pub mod split;

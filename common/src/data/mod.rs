//! Data sets: from files of many formats to the few row types that every phase reads.

pub mod parse;
pub mod rows;
pub mod split;

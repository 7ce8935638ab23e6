//! Data sets: files of many formats are parsed into the few row types that every phase reads.

pub mod convert;
pub mod folder;
pub mod mixture;
pub mod near;
pub mod parse;
pub mod row_set;
pub mod rows;
pub mod split;

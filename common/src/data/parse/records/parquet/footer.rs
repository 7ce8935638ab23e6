//! The footer of a Parquet file, which describes its schema and the location of its columns.

use super::super::super::ParseError;
use super::super::super::content::Content;
use super::super::packing::Packing;
use super::super::{format_error, unreadable};
use super::thrift::{Fault, I32, LIST, STRUCT, Walk};
use super::{damaged, too_large};
use bytes::Bytes;

/// Maximum size of a footer in bytes.
const FOOTER_LIMIT: u64 = 16 << 20;

/// Maximum depth of a schema. Each level takes stack of the library.
const DEPTH_LIMIT: usize = 64;

/// The length of the footer's length and the closing magic number.
const TAIL: u64 = 8;

/// The footer, whose structure is sound.
pub(super) fn read(file: &str, content: &Content) -> Result<Bytes, ParseError> {
    let fail = |error| unreadable(file, Packing::Plain, &error);
    let length = content.length().map_err(fail)?;
    let Some(before_tail) = length.checked_sub(TAIL).filter(|before| *before >= TAIL / 2) else {
        return Err(damaged(file, "the file is too short"));
    };
    let tail = content.range(before_tail, TAIL as usize).map_err(fail)?;
    match &tail[4..] {
        super::MAGIC => {}
        b"PARE" => {
            return Err(format_error(file, "an encrypted Parquet file", "write it without encryption"));
        }
        _ => return Err(damaged(file, "the file has no end: it may be cut short")),
    }
    let size = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if size > before_tail {
        return Err(damaged(file, "its footer is longer than the file"));
    }
    if size > FOOTER_LIMIT {
        return Err(too_large(file, &format!("a footer of more than {} MiB", FOOTER_LIMIT >> 20)));
    }
    let footer = content.range(before_tail - size, size as usize).map_err(fail)?;
    check(&footer).map_err(|fault| match fault {
        Fault::End => damaged(file, "its footer is cut short"),
        Fault::Broken(what) => damaged(file, &format!("its footer: {what}")),
    })?;
    Ok(footer)
}

/// Checks the structure of a `FileMetaData`, in which field 2 is the schema.
fn check(footer: &[u8]) -> Result<(), Fault> {
    let mut walk = Walk::new(footer);
    walk.fields(|walk, field| {
        if !field.is(2, LIST)? {
            return Ok(false);
        }
        let mut tree = Tree::default();
        walk.elements(|walk, kind| {
            if kind != STRUCT {
                return Err(Fault::Broken("its schema is no list of elements"));
            }
            let mut children = 0;
            walk.fields(|walk, field| {
                let is_count = field.is(5, I32)?;
                if is_count {
                    children = walk.size()?;
                }
                Ok(is_count)
            })?;
            tree.add(children)
        })?;
        Ok(true)
    })
}

/// The open groups of a schema, whose elements are in depth-first order.
#[derive(Default)]
struct Tree {
    /// Number of children that each of them still lacks.
    open: Vec<u64>,
}

impl Tree {
    fn add(&mut self, children: u64) -> Result<(), Fault> {
        if let Some(left) = self.open.last_mut() {
            *left -= 1;
        }
        self.open.push(children);
        while self.open.last() == Some(&0) {
            self.open.pop();
        }
        match () {
            () if self.open.len() > DEPTH_LIMIT => Err(Fault::Broken("its schema is nested too deep")),
            () if children > super::thrift::LIST_LIMIT => {
                Err(Fault::Broken("its schema has too many fields"))
            }
            () => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_depth_of_a_schema_is_bounded() {
        let chain = |depth: usize| {
            let mut tree = Tree::default();
            (0..depth).try_for_each(|_| tree.add(1))
        };
        assert_eq!(chain(DEPTH_LIMIT), Ok(()));
        assert!(chain(DEPTH_LIMIT + 1).is_err());
        // Groups of a sibling each, closed one after the other.
        let mut tree = Tree::default();
        tree.add(200).unwrap();
        for _ in 0..100 {
            tree.add(1).unwrap();
            tree.add(0).unwrap();
        }
        assert_eq!(tree.open, [100]);
    }
}

//! Thrift's compact protocol, to the extent that Parquet's footers and page headers use it: their structure
//! and sizes are checked before the library reads them, because it trusts them.

/// Maximum nesting depth of structs and lists.
const DEPTH_LIMIT: usize = 16;

/// Maximum number of elements of a list.
pub(super) const LIST_LIMIT: u64 = 1 << 17;

/// The types of values, as the protocol numbers them.
pub(super) const TRUE: u8 = 1;
pub(super) const FALSE: u8 = 2;
pub(super) const I32: u8 = 5;
pub(super) const LIST: u8 = 9;
pub(super) const STRUCT: u8 = 12;

/// The reason why bytes are not a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The bytes end within the value.
    End,
    Broken(&'static str),
}

/// A position in bytes.
pub(super) struct Walk<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
    depth: usize,
}

/// A field of a struct: its number and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) id: i64,
    pub(super) kind: u8,
}

impl Field {
    /// Whether the field has this number.
    ///
    /// # Errors
    /// It has the number but another type. A reader that assumes the type would read wrong values.
    pub(super) fn is(self, id: i64, kind: u8) -> Result<bool, Fault> {
        match (self.id == id, self.kind == kind) {
            (true, false) => Err(Fault::Broken("a field has another type")),
            (same, _) => Ok(same),
        }
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Walk { bytes, at: 0, depth: 0 }
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        let byte = *self.bytes.get(self.at).ok_or(Fault::End)?;
        self.at += 1;
        Ok(byte)
    }

    fn advance(&mut self, count: u64) -> Result<(), Fault> {
        let left = (self.bytes.len() - self.at) as u64;
        let count = usize::try_from(count).ok().filter(|_| count <= left).ok_or(Fault::End)?;
        self.at += count;
        Ok(())
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        match self.byte()? {
            byte @ 0..=1 => Ok(value | u64::from(byte) << 63),
            _ => Err(Fault::Broken("an integer is longer than 64 bits")),
        }
    }

    fn signed(&mut self) -> Result<i64, Fault> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    pub(super) fn i32(&mut self) -> Result<i32, Fault> {
        i32::try_from(self.signed()?).map_err(|_| Fault::Broken("an integer is longer than 32 bits"))
    }

    /// A size or count, which is stored as a signed number.
    pub(super) fn size(&mut self) -> Result<u64, Fault> {
        u64::try_from(self.i32()?).map_err(|_| Fault::Broken("a size is negative"))
    }

    /// Reads a struct. `visit` is called for every field and returns whether it has read the value; an unread
    /// value is skipped.
    pub(super) fn fields(
        &mut self,
        mut visit: impl FnMut(&mut Self, Field) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        self.deeper()?;
        let mut id = 0i64;
        loop {
            let head = self.byte()?;
            let kind = head & 0xf;
            if kind == 0 {
                break;
            }
            let last = id;
            id = match head >> 4 {
                0 => self.signed()?,
                delta => id.saturating_add(delta.into()),
            };
            if id <= last {
                return Err(Fault::Broken("its fields are out of order"));
            }
            if !visit(self, Field { id, kind })? {
                // A boolean's type is its value.
                match kind {
                    TRUE | FALSE => {}
                    _ => self.skip(kind)?,
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads a list: calls `visit` for every element.
    pub(super) fn elements(
        &mut self,
        mut visit: impl FnMut(&mut Self, u8) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.deeper()?;
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.varint()?,
            count => count.into(),
        };
        if count > LIST_LIMIT {
            return Err(Fault::Broken("a list is too long"));
        }
        for _ in 0..count {
            visit(self, head & 0xf)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn deeper(&mut self) -> Result<(), Fault> {
        self.depth += 1;
        if self.depth > DEPTH_LIMIT { Err(Fault::Broken("it is nested too deep")) } else { Ok(()) }
    }

    /// Skips a value. In a list, a boolean takes a byte.
    fn skip(&mut self, kind: u8) -> Result<(), Fault> {
        match kind {
            1..=3 => self.advance(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.advance(8),
            8 => {
                let length = self.varint()?;
                self.advance(length)
            }
            LIST | 10 => self.elements(Self::skip),
            // Parquet has no maps and no identifiers.
            STRUCT => self.fields(|_, _| Ok(false)),
            _ => Err(Fault::Broken("a value has a type that Parquet does not use")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(bytes: &[u8]) -> Result<usize, Fault> {
        let mut walk = Walk::new(bytes);
        walk.fields(|_, _| Ok(false)).map(|()| walk.at)
    }

    #[test]
    fn values_of_every_type_are_skipped() {
        // Fields 1 to 8: true, a byte, i32 300, a double, text "ab", a list of two booleans, a struct, i64
        // −1.
        let bytes = [
            0x11, 0x13, 7, 0x15, 0xd8, 0x04, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0x18, 2, b'a', b'b', 0x19, 0x22,
            1, 2, 0x1c, 0x11, 0, 0x16, 1, 0, 99,
        ];
        assert_eq!(skip(&bytes), Ok(bytes.len() - 1));
        for end in 0..bytes.len() - 1 {
            assert_eq!(skip(&bytes[..end]), Err(Fault::End), "{end}");
        }
    }

    #[test]
    fn hostile_sizes_are_refused() {
        let long = [0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0];
        assert_eq!(skip(&long), Err(Fault::Broken("a list is too long")));
        assert_eq!(
            skip(&[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0]),
            Err(Fault::End)
        );
        let endless = [0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(skip(&endless), Err(Fault::Broken(_))));
        for opener in [0x1c, 0x19] {
            let mut deep = vec![opener; 100_000];
            deep.iter_mut().skip(1).for_each(|byte| *byte = if opener == 0x19 { 0x19 } else { 0x1c });
            assert_eq!(skip(&deep), Err(Fault::Broken("it is nested too deep")), "{opener}");
        }
    }

    #[test]
    fn numbers_are_read_as_they_were_written() {
        let mut walk = Walk::new(&[0x01, 0x00, 0xd8, 0x04, 0xff, 0xff, 0xff, 0xff, 0x0f]);
        let numbers = [walk.i32().unwrap(), walk.i32().unwrap(), walk.i32().unwrap(), walk.i32().unwrap()];
        assert_eq!(numbers, [-1, 0, 300, i32::MIN]);
        assert!(matches!(Walk::new(&[0x01]).size(), Err(Fault::Broken(_))));
    }
}

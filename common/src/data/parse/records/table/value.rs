//! Values of arrays as JSON.

use super::super::{RECORD_LIMIT, VALUE_LIMIT, many_values, overlong};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrowPrimitiveType, StructArray};
use arrow_schema::DataType;
use serde_json::{Map, Value};

/// The remaining size of a record. A few bytes of a file may encode lists of any length.
pub(super) struct Room {
    bytes: usize,
    values: usize,
}

impl Default for Room {
    fn default() -> Self {
        Room { bytes: RECORD_LIMIT, values: VALUE_LIMIT }
    }
}

impl Room {
    fn take_value(&mut self) -> Result<(), String> {
        self.values = self.values.checked_sub(1).ok_or_else(many_values)?;
        Ok(())
    }

    fn take_bytes(&mut self, count: usize) -> Result<(), String> {
        self.bytes = self.bytes.checked_sub(count).ok_or_else(overlong)?;
        Ok(())
    }

    fn take_text(&mut self, text: &str) -> Result<Value, String> {
        self.take_bytes(text.len())?;
        Ok(text.into())
    }
}

/// The value of a row.
///
/// # Errors
/// A float that JSON cannot represent, or more than a record may hold.
pub(super) fn read(array: &dyn Array, row: usize, room: &mut Room) -> Result<Value, String> {
    room.take_value()?;
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    match array.data_type() {
        DataType::Null => Ok(Value::Null),
        DataType::Boolean => Ok(array.as_boolean().value(row).into()),
        DataType::Int8 => Ok(integer::<Int8Type>(array, row)),
        DataType::Int16 => Ok(integer::<Int16Type>(array, row)),
        DataType::Int32 => Ok(integer::<Int32Type>(array, row)),
        DataType::Int64 => Ok(integer::<Int64Type>(array, row)),
        DataType::UInt8 => Ok(integer::<UInt8Type>(array, row)),
        DataType::UInt16 => Ok(integer::<UInt16Type>(array, row)),
        DataType::UInt32 => Ok(integer::<UInt32Type>(array, row)),
        DataType::UInt64 => Ok(integer::<UInt64Type>(array, row)),
        DataType::Float16 => float(array.as_primitive::<Float16Type>().value(row).to_f64()),
        DataType::Float32 => float(array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => room.take_text(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => room.take_text(array.as_string::<i64>().value(row)),
        DataType::Utf8View => room.take_text(array.as_string_view().value(row)),
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            let key = read(dictionary.keys(), row, room)?;
            let key = key.as_u64().and_then(|key| usize::try_from(key).ok());
            let key = key.filter(|key| *key < dictionary.values().len());
            read(dictionary.values(), key.ok_or("its key is not in the dictionary")?, room)
        }
        DataType::List(_) => list(&array.as_list::<i32>().value(row), room),
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row), room),
        DataType::ListView(_) => list(&array.as_list_view::<i32>().value(row), room),
        DataType::LargeListView(_) => list(&array.as_list_view::<i64>().value(row), room),
        DataType::FixedSizeList(_, _) => list(&array.as_fixed_size_list().value(row), room),
        DataType::Struct(_) => fields(array.as_struct(), row, room),
        DataType::Map(_, _) => map(&array.as_map().value(row), room),
        // Columns of these types are read only to know whether they hold anything.
        other => room.take_text(&format!("a value of type {other}")),
    }
}

fn integer<T: ArrowPrimitiveType>(array: &dyn Array, row: usize) -> Value
where
    T::Native: Into<Value>,
{
    array.as_primitive::<T>().value(row).into()
}

fn float(number: f64) -> Result<Value, String> {
    match number.is_finite() {
        true => Ok(number.into()),
        false => Err(format!("found {number}; a finite number or null is expected")),
    }
}

fn list(items: &dyn Array, room: &mut Room) -> Result<Value, String> {
    (0..items.len()).map(|item| read(items, item, room)).collect()
}

fn fields(array: &StructArray, row: usize, room: &mut Room) -> Result<Value, String> {
    let columns = array.fields().iter().zip(array.columns());
    let values = columns.map(|(field, column)| {
        room.take_bytes(field.name().len())?;
        Ok((field.name().clone(), read(column, row, room)?))
    });
    Ok(Value::Object(values.collect::<Result<_, String>>()?))
}

fn map(entries: &StructArray, room: &mut Room) -> Result<Value, String> {
    let mut object = Map::new();
    for entry in 0..entries.len() {
        let key = read(entries.column(0), entry, room)?;
        let key = key.as_str().ok_or("a key of the map is null")?;
        let value = read(entries.column(1), entry, room)?;
        if object.insert(key.to_owned(), value).is_some() {
            return Err(format!("the key {key:?} occurs twice in one map"));
        }
    }
    Ok(Value::Object(object))
}

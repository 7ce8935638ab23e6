//! Types of the columns of records, and arrays of their values.

use std::fmt;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, RecordBatch, StructArray};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_schema::{ArrowError, DataType, Field, Fields, Schema};
use serde_json::Value;

/// Maximum nesting depth of lists and structs.
const DEPTH_LIMIT: usize = 32;
/// Maximum number of columns, including those within structs.
const COLUMN_LIMIT: usize = 10_000;

/// The type of the values of a column, all of which may be null.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Type {
    /// Every value is null; written as text.
    Null,
    Bool,
    Int,
    Float,
    Text,
    List(Box<Type>),
    Struct(Vec<(String, Type)>),
}

impl Type {
    /// # Errors
    /// The value is nested too deep.
    pub(super) fn of(value: &Value) -> Result<Self, String> {
        Self::at_depth(value, 0)
    }

    fn at_depth(value: &Value, depth: usize) -> Result<Self, String> {
        if depth > DEPTH_LIMIT {
            return Err(format!("it is nested more than {DEPTH_LIMIT} deep"));
        }
        Ok(match value {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Bool,
            Value::Number(number) if number.is_i64() => Type::Int,
            Value::Number(_) => Type::Float,
            Value::String(_) => Type::Text,
            Value::Array(items) => {
                let mut item = Type::Null;
                for value in items {
                    item = item
                        .merge(Self::at_depth(value, depth + 1)?)
                        .map_err(|what| format!("[]: {what}"))?;
                }
                Type::List(Box::new(item))
            }
            Value::Object(fields) if fields.is_empty() => Type::Null,
            Value::Object(fields) => {
                let field = |(name, value): (&String, &Value)| {
                    let kind = Self::at_depth(value, depth + 1).map_err(|what| format!("{name}: {what}"))?;
                    Ok((name.clone(), kind))
                };
                Type::Struct(fields.iter().map(field).collect::<Result<_, String>>()?)
            }
        })
    }

    /// The common type of values of both types.
    ///
    /// # Errors
    /// No type holds both. The message begins with the path to the values.
    pub(super) fn merge(self, other: Self) -> Result<Self, String> {
        Ok(match (self, other) {
            (Type::Null, kind) | (kind, Type::Null) => kind,
            (Type::Int, Type::Float) | (Type::Float, Type::Int) => Type::Float,
            (Type::List(one), Type::List(other)) => {
                Type::List(Box::new(one.merge(*other).map_err(|what| format!("[]: {what}"))?))
            }
            (Type::Struct(mut fields), Type::Struct(others)) => {
                for (name, kind) in others {
                    match fields.iter_mut().find(|(known, _)| *known == name) {
                        Some((_, known)) => {
                            let before = std::mem::replace(known, Type::Null);
                            *known = before.merge(kind).map_err(|what| format!("{name}: {what}"))?;
                        }
                        None => fields.push((name, kind)),
                    }
                }
                if fields.len() > COLUMN_LIMIT {
                    return Err(format!("it has more than {COLUMN_LIMIT} fields"));
                }
                Type::Struct(fields)
            }
            (one, other) if one == other => one,
            (one, other) => {
                return Err(format!(
                    "{other} here, and {one} in a row before; a column of a table has one type"
                ));
            }
        })
    }

    fn data_type(&self) -> DataType {
        match self {
            Type::Null | Type::Text => DataType::Utf8,
            Type::Bool => DataType::Boolean,
            Type::Int => DataType::Int64,
            Type::Float => DataType::Float64,
            Type::List(item) => DataType::List(Arc::new(item.field("item"))),
            Type::Struct(fields) => DataType::Struct(arrow_fields(fields)),
        }
    }

    fn field(&self, name: &str) -> Field {
        Field::new(name, self.data_type(), true)
    }

    fn array(&self, values: &[&Value]) -> Result<ArrayRef, ArrowError> {
        let is_there: Vec<bool> = values.iter().map(|value| !value.is_null()).collect();
        Ok(match self {
            Type::Null | Type::Text => {
                let mut texts = StringBuilder::new();
                values.iter().for_each(|value| texts.append_option(value.as_str()));
                Arc::new(texts.finish())
            }
            Type::Bool => Arc::new(values.iter().map(|value| value.as_bool()).collect::<BooleanArray>()),
            Type::Int => Arc::new(values.iter().map(|value| value.as_i64()).collect::<Int64Array>()),
            Type::Float => Arc::new(values.iter().map(|value| value.as_f64()).collect::<Float64Array>()),
            Type::List(item) => {
                let lists =
                    values.iter().map(|value| value.as_array().map(Vec::as_slice).unwrap_or_default());
                let offsets = OffsetBuffer::from_lengths(lists.clone().map(<[Value]>::len));
                let items: Vec<&Value> = lists.flatten().collect();
                let field = Arc::new(item.field("item"));
                Arc::new(ListArray::try_new(
                    field,
                    offsets,
                    item.array(&items)?,
                    Some(NullBuffer::from(is_there)),
                )?)
            }
            Type::Struct(fields) => {
                let columns = fields.iter().map(|(name, kind)| kind.array(&column(values, name)));
                let columns = columns.collect::<Result<Vec<_>, _>>()?;
                Arc::new(StructArray::try_new(
                    arrow_fields(fields),
                    columns,
                    Some(NullBuffer::from(is_there)),
                )?)
            }
        })
    }
}

fn column<'a>(values: &[&'a Value], name: &str) -> Vec<&'a Value> {
    const NULL: &Value = &Value::Null;
    values.iter().map(|value| value.get(name).unwrap_or(NULL)).collect()
}

fn arrow_fields(fields: &[(String, Type)]) -> Fields {
    fields.iter().map(|(name, kind)| kind.field(name)).collect()
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Null => "nothing",
            Type::Bool => "true or false",
            Type::Int => "a whole number",
            Type::Float => "a number",
            Type::Text => "a text",
            Type::List(_) => "a list",
            Type::Struct(_) => "an object",
        })
    }
}

/// The columns of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Columns(pub(super) Vec<(String, Type)>);

impl Columns {
    /// Adds the columns of a record.
    ///
    /// # Errors
    /// A value whose type differs from those before it. The message begins with its path.
    pub(super) fn add(&mut self, record: &Value) -> Result<(), String> {
        let all = Type::Struct(std::mem::take(&mut self.0)).merge(Type::of(record)?)?;
        if let Type::Struct(fields) = all {
            self.0 = fields;
        }
        Ok(())
    }

    pub(super) fn schema(&self) -> Schema {
        Schema::new(arrow_fields(&self.0))
    }

    pub(super) fn batch(&self, schema: &Arc<Schema>, records: &[Value]) -> Result<RecordBatch, ArrowError> {
        let records: Vec<&Value> = records.iter().collect();
        let columns = self.0.iter().map(|(name, kind)| kind.array(&column(&records, name)));
        RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)
    }
}

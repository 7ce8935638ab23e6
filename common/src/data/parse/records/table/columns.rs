//! Selects the columns of a table that rows are read from. Others are never read, whatever they hold.

use super::super::super::ParseError;
use super::super::super::column_names::ColumnNames;
use super::super::super::columns::Kind;
use super::super::super::value::excerpt;
use super::super::format_error;
use arrow_schema::{DataType, Field, Fields, Schema};
use std::collections::HashSet;

/// Maximum nesting depth of lists and structs.
const DEPTH_LIMIT: usize = 32;

/// Maximum number of columns named in a message.
const NAMED: usize = 12;

/// The columns of a table that are read.
#[derive(Debug)]
pub(in super::super) struct Columns {
    /// Their indices in the table, ascending.
    pub(in super::super) indices: Vec<usize>,
    /// Foil's names of them.
    pub(super) names: Vec<String>,
    /// The names of the others.
    pub(super) ignored: Vec<String>,
}

impl Columns {
    /// # Errors
    /// No column is known, one that `columns_of` names is missing, a name occurs twice, or the type of a
    /// known column holds no text and no number.
    pub(in super::super) fn choose(
        file: &str,
        kind: &str,
        schema: &Schema,
        columns_of: &ColumnNames,
    ) -> Result<Self, ParseError> {
        columns_of.require(file, schema.fields().iter().map(|field| field.name().as_str()))?;
        let mut chosen = Columns { indices: Vec::new(), names: Vec::new(), ignored: Vec::new() };
        let mut names = HashSet::new();
        for (index, field) in schema.fields().iter().enumerate() {
            let name = field.name();
            if !names.insert(name) {
                let found = format!("the column {:?} twice", excerpt(name, 64));
                return Err(format_error(file, &found, "rename one of the two"));
            }
            let Some((own, column)) = columns_of.find(name) else {
                chosen.ignored.push(name.clone());
                continue;
            };
            // A column of benchmark parts holds text. A column of another type has another meaning.
            let kind_of = column.map(|column| column.kind);
            if kind_of == Some(Kind::Group) && unreadable(field, 0).is_some() {
                chosen.ignored.push(name.clone());
                continue;
            }
            // For a column that is always refused, it only matters whether it is empty.
            if !matches!(kind_of, Some(Kind::Unsupported(_)))
                && let Some((path, found)) = unreadable(field, 0)
            {
                let found = format!("the column {path} of type {found}");
                let advice =
                    "make it text, a number, true or false, or a list or struct of them; or leave it out";
                return Err(format_error(file, &found, advice));
            }
            chosen.indices.push(index);
            chosen.names.push(own);
        }
        if chosen.indices.is_empty() {
            let shown: Vec<_> = chosen.ignored.iter().take(NAMED).map(|name| excerpt(name, 64)).collect();
            let more = if chosen.ignored.len() > NAMED { ", …" } else { "" };
            let found = match shown.is_empty() {
                true => format!("{kind} without columns"),
                false => {
                    format!("{kind} with no column that rows are read by, but {}{more}", shown.join(", "))
                }
            };
            return Err(format_error(file, &found, "rename its columns as common/README.md lists them"));
        }
        Ok(chosen)
    }
}

/// The part of a column whose type cannot be read: its path and type.
fn unreadable(field: &Field, depth: usize) -> Option<(String, String)> {
    let within = |child: &Field| {
        unreadable(child, depth + 1)
            .map(|(path, found)| (format!("{}.{path}", excerpt(field.name(), 64)), found))
    };
    let itself = |found: String| Some((excerpt(field.name(), 64), found));
    if depth > DEPTH_LIMIT {
        return itself(format!("nested more than {DEPTH_LIMIT} deep"));
    }
    match field.data_type() {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => within(item),
        DataType::Struct(fields) => repeated(fields).map_or_else(
            || fields.iter().find_map(|child| within(child)),
            |name| itself(format!("struct with the field {name:?} twice")),
        ),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) if fields.first().is_some_and(|key| is_text(key.data_type())) => {
                fields.iter().skip(1).find_map(|child| within(child))
            }
            _ => itself("map whose keys are not text".to_owned()),
        },
        DataType::Dictionary(_, value) if is_text(value) => None,
        kind if is_text(kind) || is_scalar(kind) => None,
        other => itself(excerpt(&other.to_string(), 80)),
    }
}

fn repeated(fields: &Fields) -> Option<String> {
    let mut names = HashSet::new();
    let twice = fields.iter().find(|field| !names.insert(field.name()))?;
    Some(excerpt(twice.name(), 64))
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_scalar(kind: &DataType) -> bool {
    matches!(kind, DataType::Null | DataType::Boolean) || kind.is_integer() || kind.is_floating()
}

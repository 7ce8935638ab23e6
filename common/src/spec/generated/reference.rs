//! The reference of the job file, with one table per block.

use std::fmt::Write;

use crate::spec::contract::{self, Field, JOB_SPEC, Kind, Message};

pub(super) fn markdown() -> String {
    let mut text = String::new();
    block(JOB_SPEC, "", &mut text);
    text
}

/// The fields of a message at `place` in the job file, then those of the messages in it.
fn block(name: &str, place: &str, text: &mut String) {
    let message = contract::message(name).unwrap();
    let heading = if place.is_empty() { "the file itself".to_owned() } else { format!("`{place}`") };
    let about = match message.comment.as_str() {
        "" => String::new(),
        comment => format!("{comment}\n\n"),
    };
    if message.fields.is_empty() {
        writeln!(text, "### {heading}\n\n{about}").unwrap();
        return;
    }
    writeln!(text, "### {heading}\n\n{about}| field | type | |\n|---|---|---|").unwrap();
    rows(message, text);
    text.push('\n');
    for field in &message.fields {
        let Kind::Message(inner) = &field.kind else { continue };
        let at = if place.is_empty() { String::new() } else { format!("{place}.") };
        block(inner, &format!("{at}{}", field.name), text);
    }
}

fn rows(message: &Message, text: &mut String) {
    let mut begun = None;
    for field in &message.fields {
        if field.oneof.is_some() && field.oneof != begun {
            let oneof =
                message.oneofs.iter().find(|oneof| Some(&oneof.name) == field.oneof.as_ref()).unwrap();
            let about = cell(&oneof.comment);
            writeln!(text, "| `{}` | one of the blocks below | {about} |", oneof.name).unwrap();
        }
        begun.clone_from(&field.oneof);
        writeln!(text, "| `{}` | {} | {} |", field.name, kind(field), cell(field.about())).unwrap();
    }
}

fn cell(comment: &str) -> String {
    comment.replace('|', "\\|")
}

/// A field's type from the view of a job file's author.
fn kind(field: &Field) -> String {
    let one = match field.kind {
        Kind::Message(_) => "block",
        Kind::Text => "text",
        Kind::Flag => "true or false",
        Kind::Real => "number",
        Kind::Count | Kind::Integer => "integer",
        Kind::Map => "block of texts",
    };
    if field.repeated { format!("list of {one}") } else { one.to_owned() }
}

//! Holds proto/README.md's reference of the job file to the comments of the wire contract.

// A test that cannot set itself up has failed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};

/// Writes the reference anew when set.
const BLESS: &str = "FOIL_BLESS_REFERENCE";
const BEGIN: &str = "<!-- job file reference: made from foil/v1/jobs.proto -->\n";
const END: &str = "<!-- end of the reference -->\n";
/// Field numbers of `message_type` in a file, and of `field` and `oneof_decl` in a message: the steps of a comment's path.
const MESSAGES: i32 = 4;
const FIELDS: i32 = 2;
const ONEOFS: i32 = 8;

struct Reference<'a> {
    messages: BTreeMap<&'a str, (i32, &'a DescriptorProto)>,
    comments: BTreeMap<Vec<i32>, String>,
    text: String,
}

impl<'a> Reference<'a> {
    fn of(file: &'a FileDescriptorProto) -> Self {
        let messages = file.message_type.iter().zip(0..).map(|(message, at)| (message.name(), (at, message)));
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        let comments = locations.map(|place| {
            let words: Vec<&str> = place.leading_comments().split_whitespace().collect();
            (place.path.clone(), words.join(" "))
        });
        Self { messages: messages.collect(), comments: comments.collect(), text: String::new() }
    }

    fn comment(&self, path: &[i32]) -> &str {
        self.comments.get(path).map_or("", String::as_str)
    }

    /// The fields of a message at `place` in the job file, then those of the messages in it.
    fn message(&mut self, name: &str, place: &str) {
        let (at, message) = self.messages[name];
        let heading = if place.is_empty() { "the file itself".to_owned() } else { format!("`{place}`") };
        let about = self.comment(&[MESSAGES, at]).to_owned();
        let about = if about.is_empty() { String::new() } else { format!("{about}\n\n") };
        if message.field.is_empty() {
            writeln!(self.text, "### {heading}\n\n{about}").unwrap();
            return;
        }
        writeln!(self.text, "### {heading}\n\n{about}| field | type | |\n|---|---|---|").unwrap();
        let mut nested = Vec::new();
        let mut oneof = None;
        for (field, number) in message.field.iter().zip(0..) {
            let member = field.oneof_index.filter(|_| !field.proto3_optional());
            if let Some(index) = member.filter(|_| member != oneof) {
                let about = self.comment(&[MESSAGES, at, ONEOFS, index]).replace('|', "\\|");
                let name = message.oneof_decl[index as usize].name();
                writeln!(self.text, "| `{name}` | one of the blocks below | {about} |").unwrap();
            }
            oneof = member;
            let about = self.comment(&[MESSAGES, at, FIELDS, number]).replace('|', "\\|");
            let kind = kind(field);
            writeln!(self.text, "| `{}` | {kind} | {about} |", field.name()).unwrap();
            let inner = field.type_name().rsplit('.').next().unwrap_or_default();
            if field.r#type() == Type::Message && self.messages.contains_key(inner) {
                let place = if place.is_empty() { String::new() } else { format!("{place}.") };
                nested.push((inner.to_owned(), format!("{place}{}", field.name())));
            }
        }
        self.text.push('\n');
        for (inner, place) in nested {
            self.message(&inner, &place);
        }
    }
}

/// A field's type as the writer of a job file thinks of it.
fn kind(field: &FieldDescriptorProto) -> String {
    let one = match field.r#type() {
        Type::Message => "block",
        Type::String => "text",
        Type::Bool => "true or false",
        Type::Double | Type::Float => "number",
        _ => "integer",
    };
    if field.label() == Label::Repeated { format!("list of {one}") } else { one.to_owned() }
}

#[test]
fn the_job_file_is_described_field_by_field() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut compiler = protox::Compiler::new([directory]).unwrap();
    compiler.include_source_info(true).open_file("foil/v1/jobs.proto").unwrap();
    let set = compiler.file_descriptor_set();
    let file = set.file.iter().find(|file| file.name() == "foil/v1/jobs.proto").unwrap();
    let mut reference = Reference::of(file);
    reference.message("JobSpec", "");

    let path = directory.join("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the mark where the reference begins");
    let (found, after) = rest.split_once(END).expect("the mark where it ends");
    let expected = format!("\n{}", reference.text);
    if std::env::var_os(BLESS).is_some() {
        fs::write(&path, format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(found, expected, "run this test with {BLESS}=1 and look at the difference");
}

//! The job file's messages and fields with their comments, read from the descriptors of the wire contract.

use std::collections::HashMap;
use std::sync::OnceLock;

use foil_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};

pub(crate) const JOB_SPEC: &str = ".foil.v1.JobSpec";

/// Field numbers of `message_type` in a file, and of `field` and `oneof_decl` in a message: the steps of a
/// comment's path.
const MESSAGES: i32 = 4;
const FIELDS: i32 = 2;
const ONEOFS: i32 = 8;

#[derive(Debug)]
pub(super) struct Message {
    pub(super) comment: String,
    pub(super) fields: Vec<Field>,
    /// Excludes those that the compiler generates for `optional` fields.
    pub(super) oneofs: Vec<Oneof>,
}

#[derive(Debug)]
pub(super) struct Oneof {
    pub(super) name: String,
    pub(super) comment: String,
}

#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) comment: String,
    pub(super) kind: Kind,
    pub(super) repeated: bool,
    /// The `oneof` that the field belongs to.
    pub(super) oneof: Option<String>,
}

#[derive(Debug)]
pub(super) enum Kind {
    Text,
    Flag,
    Count,
    /// A whole number that may be negative.
    Integer,
    Real,
    /// Texts by key.
    Map,
    /// The message's full name.
    Message(String),
}

type Contract = HashMap<String, Message>;

fn contract() -> &'static Contract {
    static CONTRACT: OnceLock<Contract> = OnceLock::new();
    CONTRACT.get_or_init(|| {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the build wrote these descriptors");
        set.file.iter().flat_map(messages).collect()
    })
}

/// Reads the descriptors, in a few milliseconds, ahead of the first job that is checked.
pub fn preload() {
    contract();
}

fn messages(file: &FileDescriptorProto) -> Vec<(String, Message)> {
    let locations = file.source_code_info.iter().flat_map(|info| &info.location);
    let comments = locations.map(|location| {
        let words: Vec<&str> = location.leading_comments().split_whitespace().collect();
        (location.path.as_slice(), words.join(" "))
    });
    let comments: HashMap<&[i32], String> = comments.collect();
    let named = file.message_type.iter().zip(0..).map(|(message, index)| {
        let comment = |path: &[i32]| comments.get([&[MESSAGES, index], path].concat().as_slice()).cloned();
        (format!(".{}.{}", file.package(), message.name()), Message::read(message, comment))
    });
    named.collect()
}

impl Message {
    /// `comment` has the comment at a path within the message.
    fn read(message: &DescriptorProto, comment: impl Fn(&[i32]) -> Option<String>) -> Self {
        let index = |field: &FieldDescriptorProto| {
            // An `optional` field is the only member of a `oneof` that the compiler generates.
            let index = field.oneof_index.filter(|_| !field.proto3_optional())?;
            usize::try_from(index).ok()
        };
        let fields = message.field.iter().zip(0..).map(|(field, at)| Field {
            name: field.name().to_owned(),
            comment: comment(&[FIELDS, at]).unwrap_or_default(),
            kind: if is_map(message, field) { Kind::Map } else { Kind::read(field) },
            repeated: field.label() == Label::Repeated && !is_map(message, field),
            oneof: index(field).and_then(|index| Some(message.oneof_decl.get(index)?.name().to_owned())),
        });
        let is_written = |at: usize| message.field.iter().any(|field| index(field) == Some(at));
        let oneofs = message.oneof_decl.iter().zip(0..).enumerate().filter(|(at, _)| is_written(*at));
        let oneofs = oneofs.map(|(_, (oneof, at))| Oneof {
            name: oneof.name().to_owned(),
            comment: comment(&[ONEOFS, at]).unwrap_or_default(),
        });
        Self { comment: comment(&[]).unwrap_or_default(), fields: fields.collect(), oneofs: oneofs.collect() }
    }
}

impl Field {
    /// The field's comment, else that of its block.
    pub(super) fn about(&self) -> &str {
        match &self.kind {
            Kind::Message(inner) if self.comment.is_empty() => {
                contract().get(inner).map_or("", |message| &message.comment)
            }
            _ => &self.comment,
        }
    }
}

/// A map is a repeated field of a message that the compiler generates.
fn is_map(message: &DescriptorProto, field: &FieldDescriptorProto) -> bool {
    let entry = field.type_name().rsplit('.').next().unwrap_or_default();
    let entries = message.nested_type.iter().filter(|nested| nested.name() == entry);
    entries
        .into_iter()
        .any(|nested| nested.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry))
}

impl Kind {
    fn read(field: &FieldDescriptorProto) -> Self {
        match field.r#type() {
            Type::String => Self::Text,
            Type::Bool => Self::Flag,
            Type::Double | Type::Float => Self::Real,
            Type::Message => Self::Message(field.type_name().to_owned()),
            Type::Sint32 => Self::Integer,
            _ => Self::Count,
        }
    }
}

/// The message of this full name.
pub(super) fn message(name: &str) -> Option<&'static Message> {
    contract().get(name)
}

/// The fields of `message`.
pub(super) fn fields(message: &str) -> &'static [Field] {
    contract().get(message).map(|message| message.fields.as_slice()).unwrap_or_default()
}

pub(super) fn field(message: &str, name: &str) -> Option<&'static Field> {
    fields(message).iter().find(|field| field.name == name)
}

/// The kind of a field of `message`.
pub(super) fn kind(message: &str, name: &str) -> Option<&'static Kind> {
    field(message, name).map(|field| &field.kind)
}

/// The names of the members of `oneof`, in order; none if `message` has no such `oneof`.
pub(super) fn members(message: &str, oneof: &str) -> Vec<&'static str> {
    let members = fields(message).iter().filter(|field| field.oneof.as_deref() == Some(oneof));
    members.map(|field| field.name.as_str()).collect()
}

/// The `oneof` that `field` is a member of, and the other members.
pub(super) fn siblings(message: &str, name: &str) -> Option<(&'static str, Vec<&'static str>)> {
    let oneof = field(message, name)?.oneof.as_deref()?;
    let mut others = members(message, oneof);
    others.retain(|other| *other != name);
    Some((oneof, others))
}

/// The message's name without its package.
pub(super) fn short(message: &str) -> &str {
    message.rsplit('.').next().unwrap_or(message)
}

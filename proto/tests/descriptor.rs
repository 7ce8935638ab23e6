//! Guards the wire: a field, once released, keeps its number and its type for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

/// Rewrites the golden file when set. It never drops a field that is not reserved.
const BLESS: &str = "FOIL_BLESS_DESCRIPTOR";

#[derive(Default)]
struct Wire {
    /// `Message.field=number:type` and `Enum.VALUE=number`.
    lines: BTreeSet<String>,
    /// By message.
    reserved: BTreeMap<String, Reserved>,
}

/// Number ranges [start, end) and names.
type Reserved = (Vec<(i32, i32)>, BTreeSet<String>);

impl Wire {
    fn message(&mut self, path: &str, message: &DescriptorProto) {
        let name = format!("{path}.{}", message.name());
        for field in &message.field {
            let kind = match field.r#type() {
                Type::Message | Type::Enum => field.type_name().trim_start_matches('.').to_owned(),
                scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
            };
            let label = match field.label() {
                Label::Repeated => "repeated ",
                _ if field.proto3_optional() => "optional ",
                _ => "",
            };
            self.lines.insert(format!("{name}.{}={}:{label}{kind}", field.name(), field.number()));
        }
        let ranges = message.reserved_range.iter().map(|range| (range.start(), range.end())).collect();
        self.reserved.insert(name.clone(), (ranges, message.reserved_name.iter().cloned().collect()));
        message.nested_type.iter().for_each(|nested| self.message(&name, nested));
        message.enum_type.iter().for_each(|nested| self.enumeration(&name, nested));
    }

    fn enumeration(&mut self, path: &str, enumeration: &EnumDescriptorProto) {
        let name = format!("{path}.{}", enumeration.name());
        for value in &enumeration.value {
            self.lines.insert(format!("{name}.{}={}", value.name(), value.number()));
        }
        // An enum's reserved range includes its end, a message's does not.
        let ranges =
            enumeration.reserved_range.iter().map(|range| (range.start(), range.end() + 1)).collect();
        self.reserved.insert(name, (ranges, enumeration.reserved_name.iter().cloned().collect()));
    }

    /// True where the field of a golden line is reserved, by number and by name.
    fn is_reserved(&self, line: &str) -> bool {
        let Some((field, rest)) = line.split_once('=') else { return false };
        let Some((message, name)) = field.rsplit_once('.') else { return false };
        let number = rest.split(':').next().and_then(|number| number.parse::<i32>().ok());
        let (Some(number), Some((ranges, names))) = (number, self.reserved.get(message)) else {
            return false;
        };
        names.contains(name) && ranges.iter().any(|(start, end)| (*start..*end).contains(&number))
    }
}

fn wire() -> Wire {
    let set = FileDescriptorSet::decode(foil_proto::FILE_DESCRIPTOR_SET).expect("the descriptors decode");
    let mut wire = Wire::default();
    for file in set.file.iter().filter(|file| file.package().starts_with("foil.")) {
        file.message_type.iter().for_each(|message| wire.message(file.package(), message));
        file.enum_type.iter().for_each(|enumeration| wire.enumeration(file.package(), enumeration));
        for service in &file.service {
            for method in &service.method {
                let arrow = |streams: bool| if streams { "stream " } else { "" };
                wire.lines.insert(format!(
                    "rpc {}.{}.{}: {}{} -> {}{}",
                    file.package(),
                    service.name(),
                    method.name(),
                    arrow(method.client_streaming()),
                    method.input_type().trim_start_matches('.'),
                    arrow(method.server_streaming()),
                    method.output_type().trim_start_matches('.'),
                ));
            }
        }
    }
    wire
}

#[test]
fn fields_keep_their_numbers_and_types() {
    let wire = wire();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("descriptor.txt");
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    let golden: BTreeSet<String> = golden.lines().map(str::to_owned).collect();

    let broken: Vec<&String> =
        golden.difference(&wire.lines).filter(|line| !wire.is_reserved(line)).collect();
    assert!(
        broken.is_empty(),
        "released fields changed or vanished; reserve a removed field by number and by name: {broken:#?}"
    );
    // A reserved field's line stays in the golden file, so that its number is refused for ever.
    let all: BTreeSet<String> = golden.union(&wire.lines).cloned().collect();
    let numbers = |line: &str| {
        let (field, rest) = line.split_once('=')?;
        let message = field.rsplit_once('.')?.0;
        Some(format!("{message}={}", rest.split(':').next()?))
    };
    let mut seen = BTreeMap::new();
    for line in all.iter().filter(|line| !line.starts_with("rpc ")) {
        if let Some(other) = numbers(line).and_then(|number| seen.insert(number, line)) {
            panic!("one number for two fields: {other} and {line}");
        }
    }
    if std::env::var_os(BLESS).is_some() {
        let text: String = all.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, text).expect("the golden file is writable");
        return;
    }
    let new: Vec<&String> = wire.lines.difference(&golden).collect();
    assert!(
        new.is_empty(),
        "fields that descriptor.txt does not list yet; run the test once with {BLESS}=1 and commit the file: {new:#?}"
    );
}

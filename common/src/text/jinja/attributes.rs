//! The attributes of Python's types.

use super::value::Value;

const STR: [&str; 41] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const DICT: [&str; 5] = ["copy", "get", "items", "keys", "values"];
const LIST: [&str; 3] = ["copy", "count", "index"];

/// Further attributes of Python's types.
const OTHERS: [(&str, &[&str]); 6] = [
    ("str", &["encode", "format_map", "isidentifier", "istitle", "maketrans", "translate"]),
    ("list", &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"]),
    (
        "int",
        &[
            "as_integer_ratio",
            "bit_count",
            "bit_length",
            "conjugate",
            "denominator",
            "from_bytes",
            "imag",
            "is_integer",
            "numerator",
            "real",
            "to_bytes",
        ],
    ),
    (
        "bool",
        &[
            "as_integer_ratio",
            "bit_count",
            "bit_length",
            "conjugate",
            "denominator",
            "from_bytes",
            "imag",
            "is_integer",
            "numerator",
            "real",
            "to_bytes",
        ],
    ),
    ("float", &["as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"]),
    ("range", &["count", "index", "start", "step", "stop"]),
];
const STREAM: [&str; 5] = ["close", "gi_running", "gi_suspended", "send", "throw"];
/// Methods that would change a dict. They too shadow a key of the same name.
const DICT_CHANGES: [&str; 6] = ["clear", "fromkeys", "pop", "popitem", "setdefault", "update"];

/// Whether a value has this method, so that it hides an item of the same name.
pub(super) fn has_method(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => STR.contains(&name),
        Value::Dict(_) => DICT.contains(&name) || DICT_CHANGES.contains(&name),
        Value::List(_) => LIST.contains(&name),
        Value::Tuple(_) => matches!(name, "count" | "index"),
        _ => false,
    }
}

/// Whether Python's type has this attribute, which this engine does not support.
pub(super) fn is_unsupported(value: &Value, name: &str) -> bool {
    OTHERS.iter().any(|(kind, names)| *kind == value.type_name() && names.contains(&name))
        || matches!(value, Value::View(..))
        || matches!(value, Value::Stream(_)) && (name.starts_with('_') || STREAM.contains(&name))
}

/// Whether the type `dict` itself has this attribute.
pub(super) fn dict_type_has(name: &str) -> bool {
    name.starts_with('_') || name == "mro" || DICT.contains(&name) || DICT_CHANGES.contains(&name)
}

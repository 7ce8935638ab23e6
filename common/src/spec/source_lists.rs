//! The job file's form of data sources: each is an entry in the list of its set, in place of a path. On the
//! wire they are in `data.sources`.

use serde_json::{Map, Value};

use super::SpecError;
use super::contract::short;
use super::schema;

const SOURCE: &str = ".foil.v1.DataSourceSpec";

/// The lists that may contain sources: message, field, path in the job file, and name of the set.
const LISTS: [(&str, &str, &[&str], &str); 6] = [
    ("DataSpec", "preferences", &["preferences"], "preferences"),
    ("DataSpec", "golden", &["golden"], "golden"),
    ("DataSpec", "prompts", &["prompts"], "prompts"),
    ("DataSpec", "sft", &["sft"], "sft"),
    ("EvaluationDataSpec", "preferences", &["evaluation", "preferences"], "evaluation_preferences"),
    ("EvaluationDataSpec", "prompts", &["evaluation", "prompts"], "evaluation_prompts"),
];

/// Whether a field of a message is such a list.
pub(super) fn is_list(message: &str, field: &str) -> bool {
    LISTS.iter().any(|(of, name, ..)| *of == short(message) && *name == field)
}

/// Checks an entry of such a list that is a block.
pub(super) fn normalize(at: &str, value: Value) -> Result<Value, SpecError> {
    if let Some(set) = value.get("set").filter(|set| !set.is_null()) {
        let field = format!("{at}.set");
        return Err(
            SpecError::field(&field, set, "nothing, since the list tells the set").advice("remove it")
        );
    }
    schema::normalize(at, SOURCE, value)
}

fn at_path<'a>(data: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter().try_fold(data, |value, name| value.get_mut(*name))
}

/// The fields that were moved to `data.sources`, each with its name in the job file.
#[derive(Debug, Default)]
pub(super) struct Lifted(Vec<(String, String)>);

impl Lifted {
    /// The name that a field of `data.sources` has in the job file; `None` if it is the same.
    pub(super) fn written(&self, field: &str) -> Option<String> {
        self.0.iter().find_map(|(moved, written)| {
            let rest = field.strip_prefix(moved.as_str())?;
            (rest.is_empty() || rest.starts_with(['.', '['])).then(|| format!("{written}{rest}"))
        })
    }
}

/// Moves the lists of `data` that have a source among their entries into `sources`.
pub(super) fn lift(data: &mut Value) -> Lifted {
    let (mut lifted, mut moved) = (Vec::new(), Lifted::default());
    let before = data.get("sources").and_then(Value::as_array).map_or(0, Vec::len);
    for (.., path, set) in LISTS {
        let Some(list) = at_path(data, path).and_then(Value::as_array_mut) else { continue };
        if !list.iter().any(Value::is_object) {
            continue;
        }
        for (index, entry) in std::mem::take(list).into_iter().enumerate() {
            let wire = format!("data.sources[{}]", before + lifted.len());
            let written = format!("data.{}[{index}]", path.join("."));
            let mut source = match entry {
                Value::Object(source) => {
                    moved.0.push((wire, written));
                    source
                }
                file => {
                    moved.0.push((format!("{wire}.path[0]"), written));
                    Map::from_iter([("path".to_owned(), Value::Array(vec![file]))])
                }
            };
            source.insert("set".to_owned(), set.into());
            lifted.push(Value::Object(source));
        }
    }
    if let (Some(data), false) = (data.as_object_mut(), lifted.is_empty()) {
        match data.get_mut("sources").and_then(Value::as_array_mut) {
            Some(sources) => sources.extend(lifted),
            None => {
                data.insert("sources".to_owned(), Value::Array(lifted));
            }
        }
    }
    moved
}

/// A resolved specification as a job file is written: the inverse of [`lift`], where a set's list is empty.
pub fn in_lists(mut spec: Value) -> Value {
    let Some(data) = spec.get_mut("data") else { return spec };
    let sources = data.as_object_mut().and_then(|data| data.remove("sources"));
    let Some(Value::Array(sources)) = sources else { return spec };
    let mut kept = Vec::new();
    for source in sources {
        let named = |name: &str| LISTS.iter().find(|(.., set)| *set == name).map(|(.., path, _)| *path);
        let path = source.get("set").and_then(Value::as_str).and_then(named);
        let list = match path {
            Some(path) => list_at(data, path),
            None => None,
        };
        match (list, source) {
            (Some(list), Value::Object(mut source)) if list.iter().all(Value::is_object) => {
                source.remove("set");
                if let Some(Value::Array(files)) = source.get_mut("path")
                    && files.len() == 1
                {
                    let file = files.remove(0);
                    source.insert("path".to_owned(), file);
                }
                list.push(Value::Object(source));
            }
            (_, source) => kept.push(source),
        }
    }
    if let (Some(data), false) = (data.as_object_mut(), kept.is_empty()) {
        data.insert("sources".to_owned(), Value::Array(kept));
    }
    spec
}

/// The list at a path of `data`, which is created if it does not exist.
fn list_at<'a>(data: &'a mut Value, path: &[&str]) -> Option<&'a mut Vec<Value>> {
    let mut at = data;
    for name in path {
        at = at.as_object_mut()?.entry(*name).or_insert(Value::Null);
        if at.is_null() && name != path.last()? {
            *at = Value::Object(Map::new());
        }
    }
    if at.is_null() {
        *at = Value::Array(Vec::new());
    }
    at.as_array_mut()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sources_move_between_lists_and_the_wire() {
        let file = json!({ "data": {
            "golden": ["g.jsonl"],
            "preferences": [{ "path": ["a.jsonl"] }, { "path": ["b.csv", "c.csv"], "weight": 2.0 }],
            "evaluation": { "prompts": [{ "path": ["d"], "columns": { "prompt": "q" } }] },
        } });
        let mut wire = file.clone();
        wire["data"]["preferences"][0] = json!("a.jsonl");
        let lifted = lift(&mut wire["data"]);
        for (wire, written) in [
            ("data.sources[0].path[0]", Some("data.preferences[0]")),
            ("data.sources[1].path[1]", Some("data.preferences[1].path[1]")),
            ("data.sources[1].weight", Some("data.preferences[1].weight")),
            ("data.sources[2].columns.prompt", Some("data.evaluation.prompts[0].columns.prompt")),
            ("data.sources[3].weight", None),
            ("data.golden[0]", None),
        ] {
            assert_eq!(lifted.written(wire).as_deref(), written, "{wire}");
        }
        let data = &wire["data"];
        assert_eq!((&data["preferences"], &data["golden"]), (&json!([]), &json!(["g.jsonl"])));
        assert_eq!(data["sources"][0], json!({ "set": "preferences", "path": ["a.jsonl"] }));
        assert_eq!(
            data["sources"][2],
            json!({ "set": "evaluation_prompts", "path": ["d"], "columns": { "prompt": "q" } })
        );
        let mut written = file;
        written["data"]["preferences"][0]["path"] = json!("a.jsonl");
        written["data"]["evaluation"]["prompts"][0]["path"] = json!("d");
        assert_eq!(in_lists(wire), written);
    }

    #[test]
    fn a_list_of_paths_stays_where_it_is() {
        let mut data =
            json!({ "preferences": ["a", "b"], "sources": [{ "set": "preferences", "path": ["c"] }] });
        let before = data.clone();
        assert_eq!(lift(&mut data).written("data.sources[0].path"), None);
        assert_eq!(data, before);
        // The order of a mixed set is kept: its list comes first.
        assert_eq!(in_lists(json!({ "data": before })), json!({ "data": before }));
        // Sources that a file gives in the wire form keep their positions.
        let mut both = json!({ "golden": [{ "path": ["g"] }], "sources": [{ "set": "sft", "path": ["s"] }] });
        let lifted = lift(&mut both);
        assert_eq!(lifted.written("data.sources[0].weight"), None);
        assert_eq!(lifted.written("data.sources[1].weight").as_deref(), Some("data.golden[0].weight"));
        let mut none = Value::Null;
        lift(&mut none);
        assert!(none.is_null());
        assert_eq!(in_lists(json!({ "name": "a" })), json!({ "name": "a" }));
    }
}

//! Location of a fault in a job file, or in a `--set`.

use std::path::Path;

use anyhow::{Error, anyhow};
use foil_common::spec::SpecError;

/// Adds the location of the field to an error of a job file: the setting, or the line of the file.
pub(super) fn located(error: SpecError, settings: &[String]) -> Error {
    let SpecError::InFile { file, error } = error else { return error.into() };
    let Some(field) = error.field_path() else { return SpecError::InFile { file, error }.into() };
    if let Some(setting) = settings.iter().rev().find(|setting| names(setting, field)) {
        return SpecError::InSetting { setting: setting.clone(), error }.into();
    }
    match line(&file, field) {
        Some(line) => anyhow!("{}:{line}: {error}", file.display()),
        None if matches!(*error, SpecError::Field { .. }) => {
            anyhow!("{}: {error} (the file leaves this at its default)", file.display())
        }
        None => SpecError::InFile { file, error }.into(),
    }
}

/// Whether a setting sets the field, or a block that contains it.
fn names(setting: &str, field: &str) -> bool {
    let named = setting.split_once('=').map_or(setting, |(named, _)| named).trim();
    field.strip_prefix(named).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

fn line(file: &Path, field: &str) -> Option<usize> {
    line_of(&std::fs::read_to_string(file).ok()?, field)
}

/// The line number, from 1, of a dotted field in a YAML text, or of the innermost block or list entry around
/// it that is written in one line.
fn line_of(text: &str, field: &str) -> Option<usize> {
    let mut lines: Vec<(usize, &str)> = text.lines().map(|line| (indent(line), line.trim_start())).collect();
    let (mut from, mut outer, mut found) = (0, None, None);
    for part in field.split('.') {
        let (name, entry) = part.split_once('[').map_or((part, None), |(name, entry)| (name, Some(entry)));
        let block = lines[from..].iter().enumerate().map(|(offset, line)| (from + offset, line));
        let inside = block.take_while(|(_, (indent, text))| {
            outer.is_none_or(|outer| *indent > outer) || text.is_empty() || text.starts_with('#')
        });
        let named = inside.into_iter().find(|(_, (_, text))| is_key(text, name));
        let Some((index, (indent, _))) = named else {
            // The rest is within braces on the line of the block, or absent.
            let within =
                |index: &usize| lines[*index].1.split(['{', ',']).any(|part| is_key(part.trim(), name));
            return found.filter(within).map(|index| index + 1);
        };
        (from, outer, found) = (index + 1, Some(*indent), Some(index));
        let entry = entry.and_then(|entry| entry.trim_end_matches(']').parse().ok());
        if let Some(item) = entry.and_then(|entry| item(&lines, index, entry)) {
            let (dash, text) = lines[item];
            let inside = text[1..].trim_start();
            lines[item] = (dash + text.len() - inside.len(), inside);
            (from, outer, found) = (item, Some(dash), Some(item));
        }
    }
    found.map(|index| index + 1)
}

/// The line of an entry of the list under a key, if the list is written with dashes.
fn item(lines: &[(usize, &str)], key: usize, entry: usize) -> Option<usize> {
    let outer = lines[key].0;
    let is_item = |text: &str| text == "-" || text.starts_with("- ");
    let below = lines.iter().enumerate().skip(key + 1);
    // Dashes may have the same indentation as the key.
    let inside = below.take_while(|(_, (indent, text))| {
        *indent > outer || (*indent == outer && is_item(text)) || text.is_empty() || text.starts_with('#')
    });
    let items: Vec<(usize, usize)> =
        inside.filter(|(_, (_, text))| is_item(text)).map(|(line, (indent, _))| (line, *indent)).collect();
    let first = items.first()?.1;
    items.into_iter().filter(|(_, indent)| *indent == first).nth(entry).map(|(line, _)| line)
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn is_key(text: &str, name: &str) -> bool {
    let unquoted = text.trim_start_matches(['"', '\'']);
    let rest = unquoted.strip_prefix(name).map(|rest| rest.trim_start_matches(['"', '\'']));
    rest.is_some_and(|rest| rest.trim_start().starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "name: j\n# rounds: 9\nrounds: x\n\npolicy_step:\n  learning_rate: 1\nreward_step:\n\n  # why\n  \
                       optimizer: { max_grad_norm: no, betas: [1] }\n  learning_rate: fast\n  schedule:\n    kind: odd\n";

    #[test]
    fn a_field_is_found_in_its_block() {
        let at = |field| line_of(JOB, field);
        assert_eq!((at("name"), at("rounds"), at("policy_step.learning_rate")), (Some(1), Some(3), Some(6)));
        assert_eq!((at("reward_step.learning_rate"), at("reward_step.schedule.kind")), (Some(11), Some(13)));
        assert_eq!((at("reward_step.optimizer.max_grad_norm"), at("reward_step")), (Some(10), Some(7)));
        assert_eq!((at("policy_step.optimizer"), at("rates"), at("policy_step.kind")), (None, None, None));
    }

    #[test]
    fn a_field_is_found_in_its_entry_of_a_list() {
        let text = "data:\n  preferences:\n    - a.jsonl\n    - path: b.csv\n      weight: 2\n    - weight: no\n      path:\n        \
                    - c.csv\n        - d.csv\n    - { path: e, columns: { promt: q } }\n  golden:\n  - path: g\n    limit: x\n  \
                    prompts: [{ path: p, weight: 0 }]\n  sft: s\n";
        let at = |field: &str| line_of(text, &format!("data.{field}"));
        assert_eq!([at("preferences[0]"), at("preferences[1].weight")], [Some(3), Some(5)]);
        assert_eq!([at("preferences[2].weight"), at("preferences[2].path[1]")], [Some(6), Some(9)]);
        assert_eq!([at("preferences[3].columns"), at("preferences[1].limit")], [Some(10), None]);
        assert_eq!([at("golden[0].limit"), at("golden[0].path[0]")], [Some(13), Some(12)]);
        assert_eq!([at("prompts[0].weight"), at("sft[0]")], [Some(14), Some(15)]);
    }

    #[test]
    fn a_fault_is_located_where_the_field_was_set() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("job.yaml");
        std::fs::write(&file, JOB).unwrap();
        let fault = |field: &str| SpecError::InFile {
            file: file.clone(),
            error: Box::new(SpecError::Unknown { field: field.to_owned(), hint: None }),
        };
        let told = |field, settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
            located(fault(field), &settings).to_string()
        };
        let settings = ["rounds=1", "reward_step.schedule={kind: x}", "reward_step.sched=1"];
        let file = file.display();
        assert_eq!(
            told("reward_step.schedule.kind", &settings),
            "--set reward_step.schedule={kind: x}: reward_step.schedule.kind: there is no such field"
        );
        assert_eq!(told("rounds", &[]), format!("{file}:3: rounds: there is no such field"));
        assert_eq!(told("nowhere", &settings), format!("{file}: nowhere: there is no such field"));
        let value = SpecError::Field {
            field: "text.max_length".to_owned(),
            found: "512".to_owned(),
            expected: "at most 256".to_owned(),
            advice: None,
        };
        let value = SpecError::InFile { file: dir.path().join("job.yaml"), error: Box::new(value) };
        let told = located(value, &[]).to_string();
        assert!(
            told.ends_with("found 512, expected at most 256 (the file leaves this at its default)"),
            "{told}"
        );
    }
}

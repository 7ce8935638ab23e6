mod bounds;

use super::*;
use serde_json::Value as Json;

/// Renders a snippet with the values of its file.
fn render(template: &str, values: &Json) -> Result<String, Error> {
    let values = values.as_object().unwrap();
    let variables: Vec<(&str, &Json)> = values.iter().map(|(name, value)| (name.as_str(), value)).collect();
    Template::parse(template)?.render(&variables)
}

/// Snippets that are not rendered as in transformers, and those that only this engine refuses.
fn compare(file: &str) -> (Vec<String>, Vec<String>) {
    let file: Json = serde_json::from_str(file).unwrap();
    let (mut different, mut refused) = (Vec::new(), Vec::new());
    for snippet in file["snippets"].as_array().unwrap() {
        let template = snippet["template"].as_str().unwrap();
        match (render(template, &file["values"]), snippet["text"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => {}
            (Ok(text), expected) => {
                let expected =
                    expected.map_or_else(|| snippet["error"].to_string(), |text| format!("{text:?}"));
                different.push(format!("{template:?}\n  renders {text:?}\n  not     {expected}"));
            }
            (Err(_), None) => {}
            (Err(error), Some(expected)) => {
                refused.push(format!("{template:?}: {error}, transformers renders {expected:?}"));
            }
        }
    }
    (different, refused)
}

/// The expectations are transformers' own (scripts/fixtures/templates.py).
#[test]
fn snippets_render_as_in_transformers_or_are_refused() {
    let (different, refused) = compare(include_str!("snippets.json"));
    assert!(different.is_empty(), "{}", different.join("\n"));
    // Deliberately unsupported; all others must be rendered.
    let on_purpose = ["printing an object", "sameas on objects", "the filter e", "is not supported"];
    let others: Vec<&String> =
        refused.iter().filter(|refusal| !on_purpose.iter().any(|known| refusal.contains(known))).collect();
    assert!(others.is_empty(), "{others:#?}");
    assert!(refused.len() < 8, "{refused:#?}");
}

/// Runs where scripts/fixtures/templates.py --fuzz wrote a file and FOIL_SNIPPETS names it.
#[test]
fn random_snippets_render_as_in_transformers_or_are_refused() {
    let Some(path) = std::env::var_os("FOIL_SNIPPETS") else {
        println!("skipped: FOIL_SNIPPETS names no file of scripts/fixtures/templates.py --fuzz");
        return;
    };
    let (different, refused) = compare(&std::fs::read_to_string(path).unwrap());
    println!("{} refused by this engine alone:\n{}", refused.len(), refused.join("\n"));
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

use super::*;
use foil_common::spec::file;
use std::fs;
use std::path::Path;

/// A job on the letters model with the given data lines.
fn job(dir: &Path, golden: &str) -> spec::Job {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/jobs/letters");
    let pairs = ["abcde", "bcdef", "cdefg"]
        .map(|prompt| format!("{{\"prompt\":\"{prompt}\",\"chosen\":\"{prompt}!!\",\"rejected\":\"w\"}}\n"));
    fs::write(dir.join("pairs.jsonl"), pairs.concat()).unwrap();
    fs::write(dir.join("golden.jsonl"), golden).unwrap();
    let text = format!(
        "name: look\npolicy: {{ model: {} }}\ntext: {{ max_length: 32 }}\nsampling: {{ max_new_tokens: 16 }}\n\
         data: {{ preferences: [pairs.jsonl], golden: [golden.jsonl], prompts: [pairs.jsonl], max_bad_fraction: 0.5 }}\n",
        model.display()
    );
    fs::write(dir.join("job.yaml"), text).unwrap();
    spec::Job::try_from(file::load(&dir.join("job.yaml"), &[]).unwrap()).unwrap()
}

#[test]
fn a_report_shows_every_set_with_tokens_and_lengths() {
    let dir = tempfile::tempdir().unwrap();
    let golden =
        "{\"prompt\":\"efgha\",\"golden\":\"efgha!!\"}\n{\"prompt\":\"abcdh\",\"golden\":\"h!!dcba\"}\n{}\n";
    let Inspection { text: report, value, warnings, .. } =
        describe(&job(dir.path(), golden), 1, false).unwrap();
    for expected in [
        "17 token ids; BOS 1 \"<s>\"; EOS 3 \"</s>\"; pad 0 \"<pad>\"",
        "template auto; at most 32 tokens, of which 16 are kept for a completion",
        "preferences: 2 rows\n",
        "evaluation_preferences: 1 row\n",
        "length alone (the longer response) predicts 100.0 [34.2, 100.0] % of 2 pairs",
        "golden: 1 row, 1 bad row dropped\n",
        "pairs.jsonl: JSON lines, 3 rows\n",
        "golden.jsonl: JSON lines, 3 rows, 1 of them bad\n",
        "golden answers: 1 of 1 fits 16 tokens",
        "chosen:\n    0       1 \"<s>\"\n",
        "\"</s>\"                   reward\n      15 tokens: prompt 7, response 8 with EOS",
        "7 tokens: prompt 7, response 0",
    ] {
        assert!(report.contains(expected), "{expected}\n\n{report}");
    }
    assert!(warnings.iter().any(|warning| warning.contains("golden.jsonl:3")), "{warnings:?}");
    let set = |name: &str| value["sets"].as_array().unwrap().iter().find(|set| set["name"] == name).unwrap();
    let golden = set("golden");
    assert_eq!((&golden["rows"], &golden["bad_rows"]), (&json!(1), &json!(1)));
    assert_eq!(
        (&golden["lengths"]["golden_answers"]["fit"], &value["models"][0]["bos"]),
        (&json!(1), &json!(1))
    );
    let titles = |name: &str| set(name)["shown"][0]["title"].as_str().unwrap().to_owned();
    assert!(titles("golden").contains("golden.jsonl:") && titles("golden").ends_with("), golden"));
    // A row that was held out is in the same file as the others.
    assert!(titles("evaluation_preferences").contains("pairs.jsonl:"));
    let file = &golden["files"][0];
    assert_eq!((&file["format"], &file["bad_rows"]), (&json!("JSON lines"), &json!(1)));
    let shown = &set("preferences")["shown"][0]["view"];
    assert_eq!((&shown["tokens"][0]["text"], &shown["response_start"]), (&json!("<s>"), &json!(7)));
    assert_eq!(shown["tokens"][14]["read"], "reward");
}

#[test]
fn unreadable_inputs_are_named_by_their_fields() {
    let dir = tempfile::tempdir().unwrap();
    let job = job(dir.path(), "{}");
    let error = describe(&job, 1, true).err().unwrap().to_string();
    assert!(error.starts_with("data.golden: ") && error.contains("golden.jsonl:1"), "{error}");
    fs::remove_file(dir.path().join("golden.jsonl")).unwrap();
    let error = describe(&job, 1, true).err().unwrap().to_string();
    assert!(error.starts_with("data.golden: ") && error.contains("cannot be read"), "{error}");
}

/// Content between two marks.
fn between<'a>(page: &'a str, start: &str, end: &str) -> &'a str {
    page.split_once(start).unwrap().1.split_once(end).unwrap().0
}

#[test]
fn a_page_opens_offline_and_shows_what_is_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let golden =
        "{\"prompt\":\"efgha\",\"golden\":\"efgha!!\"}\n{\"prompt\":\"abcde\",\"golden\":\"h!!dcba\"}\n";
    let page = page::page(&describe(&job(dir.path(), golden), 2, false).unwrap()).unwrap();
    for foreign in ["<script", "http://", "https://", "href=\"/", "src=", "url(", "style=\""] {
        let outside = page.replace(between(&page, "<style>", "</style>"), "");
        assert!(!outside.contains(foreign), "{foreign}");
    }
    let policy = between(&page, "content-security-policy\" content=\"", "\">");
    let style = crate::export::html::hash(between(&page, "<style>", "</style>"));
    assert!(
        policy.starts_with("default-src 'none';") && policy.contains(&format!("style-src '{style}'")),
        "{policy}"
    );
    // One of the two golden rows is held out. The other has a token at which the reward is read, and so does
    // the legend.
    let golden = between(&page, "id=\"golden\"", "</section>");
    let examples = golden.matches("<details class=\"card example\"").count();
    assert_eq!((golden.matches("class=\"token read-reward").count(), examples), (2, 1), "{golden}");
    assert!(
        golden.contains("class=\"token read-reward named\"") && golden.contains("&lt;/s&gt;"),
        "{golden}"
    );
    // The pairs' prompts are the policy's too, and three of each are split into two sets: some are in two.
    assert!(page.contains("<h2>Overlap</h2>") && page.contains(" %</span>"), "{page}");
    assert!(page.contains("length alone (the longer response) predicts 100.0"));
}

#[test]
fn parts_of_characters_are_no_special_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let mut inspection =
        describe(&job(dir.path(), "{\"prompt\":\"efgha\",\"golden\":\"a\"}"), 1, false).unwrap();
    let piece = &mut inspection.sets[0].examples[0].pieces[0];
    assert!(piece.is_special && !piece.is_part, "{piece:?}");
    *piece = Piece { text: "<0xE2>".to_owned(), is_special: false, is_part: true };
    let page = page::page(&inspection).unwrap();
    assert!(page.contains("<span class=\"token part\" title=\"#0, id 1, prompt\">&lt;0xE2&gt;</span>"));
}

#[test]
fn hostile_texts_are_shown_as_text() {
    let dir = tempfile::tempdir().unwrap();
    let hostile = "</span><script>alert(1)</script><img src=x onerror=alert(2)>&\u{202e}\"'";
    let mut inspection =
        describe(&job(dir.path(), "{\"prompt\":\"efgha\",\"golden\":\"a\"}"), 2, false).unwrap();
    inspection.name = hostile.to_owned();
    inspection.warnings = vec![hostile.to_owned()];
    inspection.models[0].name = hostile.to_owned();
    for set in &mut inspection.sets {
        set.files = vec![hostile.to_owned()];
        for example in &mut set.examples {
            example.title = hostile.to_owned();
            example.pieces.iter_mut().for_each(|piece| piece.text = hostile.to_owned());
        }
    }
    let page = page::page(&inspection).unwrap();
    assert!(!page.contains("<script") && !page.contains("<img") && !page.contains('\u{202e}'));
    assert!(page.matches("&lt;/span&gt;&lt;script&gt;").count() > 10);
}

//! Rows in the shapes of public data sets, a good and a bad one of each. Their texts are not those of the
//! sets.

use super::*;
use serde_json::json;

/// A row of a public set with the answers read from it, and a refused row with the reason.
struct Shape {
    set: &'static str,
    row: Value,
    /// Last user turn, and the answers.
    read: Vec<(&'static str, Vec<&'static str>)>,
    bad: Value,
    fault: &'static str,
}

fn shape(
    set: &'static str,
    row: Value,
    read: Vec<(&'static str, Vec<&'static str>)>,
    bad: Value,
    fault: &'static str,
) -> Shape {
    Shape { set, row, read, bad, fault }
}

/// Sets of preferences.
fn preferences() -> Vec<Shape> {
    let user = |text: &str| json!({ "role": "user", "content": text });
    let assistant = |text: &str| json!({ "role": "assistant", "content": text });
    vec![
        shape(
            "trl-lib/ultrafeedback_binarized (TRL, conversational, implicit prompt)",
            json!({
                "chosen": [user("why?"), assistant("so")], "rejected": [user("why?"), assistant("no")],
                "score_chosen": 8.5, "score_rejected": 6.0,
            }),
            vec![("why?", vec!["so", "no"])],
            json!({ "chosen": [user("why?"), assistant("so")], "rejected": [user("who?"), assistant("no")] }),
            "chosen and rejected differ before their last message",
        ),
        shape(
            "TRL, standard",
            json!({ "prompt": "The sky is", "chosen": " blue.", "rejected": " green." }),
            vec![("The sky is", vec![" blue.", " green."])],
            json!({ "prompt": "The sky is", "chosen": " blue.", "rejected": " blue. " }),
            "the same text",
        ),
        shape(
            "TRL, conversational",
            json!({ "prompt": [user("sky?")], "chosen": [assistant("blue")], "rejected": [assistant("green")] }),
            vec![("sky?", vec!["blue", "green"])],
            json!({ "prompt": [user("sky?")], "chosen": [user("blue")], "rejected": [assistant("green")] }),
            "chosen: the response is the user's turn",
        ),
        shape(
            "Anthropic/hh-rlhf",
            json!({
                "chosen": "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: why?\n\nAssistant: so",
                "rejected": "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: why?\n\nAssistant: no",
            }),
            vec![("why?", vec!["so", "no"])],
            json!({
                "chosen": "\n\nHuman: why?\n\nAssistant: so",
                "rejected": "\n\nHuman: who?\n\nAssistant: so",
            }),
            "differ before the first assistant turn",
        ),
        shape(
            "LLaMA-Factory's ShareGPT preferences",
            json!({
                "conversations": [{ "from": "system", "value": "s" }, { "from": "human", "value": "why?" }],
                "chosen": { "from": "gpt", "value": "so" }, "rejected": { "from": "gpt", "value": "no" },
            }),
            vec![("why?", vec!["so", "no"])],
            json!({
                "conversations": [{ "from": "human", "value": "why?" }],
                "chosen": { "from": "gpt", "value": "so" }, "rejected": { "from": "human", "value": "no" },
            }),
            "rejected: the response is the user's turn",
        ),
        shape(
            "OpenAI's preference fine-tuning",
            json!({
                "input": { "messages": [user("why?")], "tools": [], "parallel_tool_calls": true },
                "preferred_output": [assistant("so")], "non_preferred_output": [assistant("no")],
            }),
            vec![("why?", vec!["so", "no"])],
            json!({
                "input": { "messages": [user("why?")], "tools": [{ "type": "function" }] },
                "preferred_output": [assistant("so")], "non_preferred_output": [assistant("no")],
            }),
            "input.tools: found a list of 1; tools are not supported",
        ),
        shape(
            "openbmb/UltraFeedback",
            json!({
                "source": "evol_instruct", "instruction": "why?", "models": ["a", "b", "c"],
                "completions": [
                    { "model": "a", "response": "so", "overall_score": 7.5, "critique": "good" },
                    { "model": "b", "response": "no", "overall_score": 3.0, "critique": "bad" },
                    { "model": "c", "response": "hm", "overall_score": 3.0, "critique": "bad" },
                ],
                "correct_answers": ["None"],
            }),
            vec![("why?", vec!["so", "no"]), ("why?", vec!["so", "hm"])],
            json!({ "instruction": "why?", "completions": [
                { "response": "so", "overall_score": "N/A" }, { "response": "no", "overall_score": 1 },
            ] }),
            "completions: [0]: found an object with response, overall_score; response, a string, and overall_score, a number",
        ),
        shape(
            "argilla/ultrafeedback-binarized-preferences-cleaned",
            json!({
                "source": "flan", "prompt": "why?", "chosen": [user("why?"), assistant("so")],
                "chosen-rating": 5.0, "chosen-model": "a", "rejected": [user("why?"), assistant("no")],
                "rejected-rating": 3.75, "rejected-model": "b",
            }),
            vec![("why?", vec!["so", "no"])],
            json!({ "prompt": "why?", "chosen": "so", "chosen-rating": 1, "rejected": "no", "rejected-rating": 2 }),
            "chosen-rating: 1 is below rejected-rating, 2",
        ),
        shape(
            "allenai/reward-bench",
            json!({
                "prompt": "why?", "chosen": "so", "chosen_model": "a", "rejected": "no", "rejected_model": "b",
                "subset": "alpacaeval-easy", "id": 7,
            }),
            vec![("why?", vec!["so", "no"])],
            json!({ "prompt": "why?", "chosen": "so", "rejected": "", "subset": "alpacaeval-easy", "id": 7 }),
            "rejected: the response is empty",
        ),
        shape(
            "allenai/reward-bench-2",
            json!({
                "id": "1", "prompt": "why?", "chosen": ["so"], "rejected": ["no", "hm"], "num_correct": 1,
                "num_incorrect": 2, "total_completions": 3, "models": ["a", "b", "c"], "subset": "Factuality",
                "additional_metadata": null,
            }),
            vec![("why?", vec!["so", "no"]), ("why?", vec!["so", "hm"])],
            json!({ "chosen": ["so"], "rejected": ["no", "hm"], "subset": "Factuality" }),
            "lists of chosen and rejected answers but no prompt",
        ),
        shape(
            "stanfordnlp/SHP",
            json!({
                "post_id": "x", "domain": "askculinary_train", "history": "why?", "human_ref_A": "no",
                "human_ref_B": "so", "labels": 0, "score_A": 1, "score_B": 9,
            }),
            vec![("why?", vec!["so", "no"])],
            json!({ "history": "why?", "human_ref_A": "no", "human_ref_B": "so", "labels": 2 }),
            "labels: found the number 2; 1 (human_ref_A is better) or 0",
        ),
        shape(
            "berkeley-nest/Nectar",
            json!({
                "prompt": "\n\nHuman: why? \n\nAssistant: ", "num_responses": 2, "turns": 1,
                "answers": [
                    { "answer": "no", "model": "a", "rank": 2.0 }, { "answer": "so", "model": "b", "rank": 1.0 },
                ],
            }),
            vec![("why?", vec!["so", "no"])],
            json!({ "prompt": "why?", "answers": [{ "answer": "so", "rank": 1 }] }),
            "answers: found a list of 1; a list of two or more is expected",
        ),
    ]
}

/// Sets of answers.
fn answers() -> Vec<Shape> {
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let from = |from: &str, value: &str| json!({ "from": from, "value": value });
    vec![
        shape(
            "tatsu-lab/alpaca",
            json!({ "instruction": "add", "input": "1 1", "output": "2", "text": "Below is an instruction" }),
            vec![("add\n\n1 1", vec!["2"])],
            json!({ "instruction": "add", "input": "1 1", "output": "" }),
            "output: the response is empty",
        ),
        shape(
            "anon8231489123/ShareGPT_Vicuna_unfiltered",
            json!({ "id": "x_0", "conversations": [from("human", "why?"), from("gpt", "so")] }),
            vec![("why?", vec!["so"])],
            json!({ "id": "x_0", "conversations": [from("human", "why?"), from("tool", "so")] }),
            "role: found the string \"tool\"",
        ),
        shape(
            "OpenAI's chat fine-tuning",
            json!({ "messages": [turn("system", "s"), turn("user", "why?"), turn("assistant", "so")] }),
            vec![("why?", vec!["so"])],
            json!({ "messages": [turn("user", "why?"), { "role": "assistant", "content": "so", "weight": 0 }] }),
            "the response must not be trained on",
        ),
        shape(
            "trl-lib/kto-mix-14k",
            json!({ "prompt": [turn("user", "why?")], "completion": [turn("assistant", "so")], "label": true }),
            vec![("why?", vec!["so"])],
            json!({ "prompt": [turn("user", "why?")], "completion": [turn("assistant", "so")], "label": "good" }),
            "label: found the string \"good\"; true or false",
        ),
        shape(
            "openai/gsm8k",
            json!({ "question": "1+1?", "answer": "2\n#### 2" }),
            vec![("1+1?", vec!["2\n#### 2"])],
            json!({ "question": 2, "answer": "2" }),
            "question: found the number 2",
        ),
        shape(
            "databricks/databricks-dolly-15k",
            json!({ "instruction": "add", "context": "", "response": "2", "category": "closed_qa" }),
            vec![("add", vec!["2"])],
            json!({ "instruction": "", "context": "", "response": "2", "category": "closed_qa" }),
            "the prompt's last turn is empty",
        ),
    ]
}

fn check<T: Wanted + std::fmt::Debug>(shapes: Vec<Shape>) {
    for Shape { set, row, read, bad, fault } in shapes {
        let text = format!("{row}\n{bad}\n");
        let parsed = parse::<T>("rows.jsonl", text.as_bytes()).unwrap();
        let found: Vec<_> =
            parsed.rows.iter().map(|row| (row.prompt().last_text(), row.responses())).collect();
        assert_eq!(found, read, "{set}: {:?}", parsed.bad);
        let told: Vec<_> = parsed.bad.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 1, "{set}: {told:?}");
        assert!(told[0].starts_with("rows.jsonl:2: ") && told[0].contains(fault), "{set}: {told:?}");
        // Prompts are read from all of them.
        let prompts = parse::<PromptRow>("rows.jsonl", row.to_string().as_bytes()).unwrap();
        assert_eq!(prompts.rows[0].prompt, *parsed.rows[0].prompt(), "{set}");
        // common/README.md names the set.
        let name = set.split(" (").next().unwrap_or(set);
        assert!(
            include_str!("../../../../README.md").contains(name),
            "common/README.md does not name {name}"
        );
    }
}

#[test]
fn public_sets_of_preferences_are_read_as_they_are() {
    check::<PairRow>(preferences());
}

#[test]
fn public_sets_of_answers_are_read_as_they_are() {
    check::<DemonstrationRow>(answers());
    check::<GoldenRow>(answers());
}

#[test]
fn ratings_give_margins() {
    let margins = |set: &str| -> Vec<Option<f64>> {
        let shape = preferences().into_iter().find(|shape| shape.set.starts_with(set)).unwrap();
        pairs(&shape.row.to_string()).rows.iter().map(|row| row.margin).collect()
    };
    assert_eq!(margins("trl-lib/ultrafeedback_binarized"), [Some(2.5)]);
    assert_eq!(margins("openbmb/UltraFeedback"), [Some(4.5), Some(4.5)]);
    assert_eq!(margins("argilla/"), [Some(1.25)]);
    // Neither ranks nor labels have a unit.
    assert_eq!((margins("berkeley-nest/"), margins("stanfordnlp/")), (vec![None], vec![None]));
}

#[test]
fn parts_of_benchmarks_are_the_groups_of_pairs() {
    let groups = |row: Value| -> Vec<Vec<String>> {
        pairs(&row.to_string()).rows.into_iter().map(|row| row.groups).collect()
    };
    let bench = |subset: &str| json!({ "prompt": "q", "chosen": "a", "rejected": "b", "subset": subset });
    assert_eq!(groups(bench("alpacaeval-easy")), [["alpacaeval_easy", "chat"]]);
    assert_eq!(groups(bench("llmbar-adver-GPTInst")), [["llmbar_adver_gptinst", "chat_hard"]]);
    assert_eq!(groups(bench("hep-rust")), [["hep_rust", "reasoning_code"]]);
    assert_eq!(groups(bench("math-prm")), [["math_prm"]]);
    assert_eq!(groups(bench(" ")), [[""; 0]]);
    // A column with this name but another type is ignored.
    let other = pairs(r#"{"prompt": "q", "chosen": "a", "rejected": "b", "domain": 7, "subset": ["x"]}"#);
    assert!(only(&other).groups.is_empty() && other.ignored.len() == 2, "{:?}", other.ignored);

    // RM-Bench: three answers of ascending style against three.
    let row = json!({
        "id": 3, "prompt": "q", "chosen": ["c0", "c1", "c2"], "rejected": ["r0", "r1", "r2"],
        "domain": "safety-refuse", "error": null,
    });
    let parsed = pairs(&row.to_string());
    assert_eq!((parsed.rows.len(), parsed.bad_rows), (9, 0), "{:?}", parsed.bad);
    for row in &parsed.rows {
        let style = |text: &str| text[1..].parse::<u32>().unwrap();
        let level = match style(&row.chosen).cmp(&style(&row.rejected)) {
            std::cmp::Ordering::Less => "hard",
            std::cmp::Ordering::Equal => "normal",
            std::cmp::Ordering::Greater => "easy",
        };
        let wanted = ["safety_refuse", "safety", level, &format!("safety_{level}")].map(str::to_owned);
        assert_eq!(row.groups, wanted, "{} {}", row.chosen, row.rejected);
    }
    // The same pair in two subsets is counted in both.
    let twice = format!("{}\n{}", bench("hep-go"), bench("hep-rust"));
    assert_eq!(pairs(&twice).rows.len(), 2);
}

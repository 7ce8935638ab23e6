//! The meaning of columns, format by format.

use super::*;

fn golden(text: &str) -> Parsed<Vec<GoldenRow>> {
    parse("golden.jsonl", text.as_bytes()).unwrap()
}

fn prompts(text: &str) -> Parsed<Vec<PromptRow>> {
    parse("prompts.jsonl", text.as_bytes()).unwrap()
}

#[test]
fn a_records_own_system_and_history_are_read_in_every_form() {
    let with_system = turns(&[(System, "S"), (User, "q")]);
    let with_history = turns(&[(System, "S"), (User, "a"), (Assistant, "b"), (User, "q")]);
    for (fields, expected) in [
        (r#""system": "S", "prompt": "q""#, &with_system),
        (r#""system_prompt": "S", "question": "q""#, &with_system),
        (r#""system": "S", "instruction": "q", "input": """#, &with_system),
        (r#""system": "S", "conversations": [{"from": "human", "value": "q"}]"#, &with_system),
        (
            r#""system": "S", "messages": [{"role": "developer", "content": "S"}, {"role": "user", "content": "q"}]"#,
            &with_system,
        ),
        (r#""system": "S", "prompt": "\n\nHuman: q\n\nAssistant:""#, &with_system),
        (r#""system": "S", "instruction": "q", "history": [["a", "b"]]"#, &with_history),
        (
            r#""system": "S", "prompt": "q", "history": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#,
            &with_history,
        ),
        (
            r#""history": [["a", "b"]], "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}]"#,
            &with_history,
        ),
    ] {
        let pair = only(&pairs(&format!(r#"{{{fields}, "chosen": "x", "rejected": "y"}}"#)));
        let golden = only(&golden(&format!(r#"{{{fields}, "output": "x"}}"#)));
        let prompt = only(&prompts(&format!("{{{fields}}}")));
        assert_eq!([&pair.prompt, &golden.prompt, &prompt.prompt], [expected; 3], "{fields}");
    }
    let in_lists = r#"{"system": "S", "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}],
        "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "y"}]}"#;
    assert_eq!(only(&pairs(in_lists)).prompt, with_system);
    assert_eq!(only(&prompts(in_lists)).prompt, with_system);
    let whole = r#"{"system": "S", "chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: y"}"#;
    assert_eq!(only(&pairs(whole)).prompt, with_system);
    assert_eq!(
        only(&pairs(r#"{"system": "S", "text": ["q<sep>x", "q<sep>y"], "score": [2, 1]}"#)).prompt,
        with_system
    );
    let dialogue = r#"{"system": "S", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}]}"#;
    assert_eq!(only(&golden(dialogue)).prompt, with_system);
}

#[test]
fn labels_separate_desirable_responses_from_undesirable_ones() {
    let text = concat!(
        "{\"prompt\": \"a\", \"completion\": \"good\", \"label\": true}\n",
        "{\"prompt\": \"b\", \"completion\": \"bad\", \"label\": false}\n",
        "{\"prompt\": [{\"role\": \"user\", \"content\": \"c\"}], \"completion\": [{\"role\": \"assistant\", \"content\": \"good\"}], \"label\": 1}\n",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"d\"}, {\"role\": \"assistant\", \"content\": \"bad\"}], \"kto_tag\": false}\n",
    );
    let parsed = golden(text);
    let found: Vec<_> = parsed.rows.iter().map(|row| row.golden.as_str()).collect();
    assert_eq!((found, parsed.skipped.undesirable, parsed.bad_rows), (vec!["good", "good"], 2, 0));
    let demonstrations = parse::<DemonstrationRow>("d", text.as_bytes()).unwrap();
    assert_eq!((demonstrations.rows.len(), demonstrations.skipped.undesirable), (2, 2));
    assert_eq!(prompts(text).rows.len(), 4);
    for (text, what) in [
        (r#"{"prompt": "a", "completion": "x", "label": "true"}"#, "label: found the string \"true\""),
        (r#"{"prompt": "a", "completion": "x", "label": 0.5}"#, "label: found the number 0.5"),
    ] {
        assert!(fault::<GoldenRow>(text).contains(what), "{}", fault::<GoldenRow>(text));
    }
    let unpaired = fault::<PairRow>(r#"{"prompt": "a", "completion": "x", "label": true}"#);
    assert!(unpaired.contains("labeled responses give no pairs"), "{unpaired}");
    let stray = fault::<PairRow>(r#"{"prompt": "a", "chosen": "x", "rejected": "y", "label": false}"#);
    assert!(stray.contains("label: found false"), "{stray}");
}

#[test]
fn ultrafeedback_is_read_in_both_forms() {
    let binarized = r#"{"prompt": "q", "prompt_id": "7", "score_chosen": 8.5, "score_rejected": 7.0,
        "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}],
        "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "y"}],
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]}"#;
    let parsed = pairs(binarized);
    let row = only(&parsed);
    assert_eq!((row.chosen.as_str(), row.rejected.as_str(), row.margin), ("x", "y", Some(1.5)));
    assert_eq!(parsed.ignored.keys().collect::<Vec<_>>(), ["prompt_id"]);
    assert_eq!(only(&parse::<DemonstrationRow>("d", binarized.as_bytes()).unwrap()).answer, "x");
    let swapped = binarized.replace("8.5", "6.5");
    assert!(fault::<PairRow>(&swapped).contains("score_chosen: 6.5 is below score_rejected, 7"));

    let original = r#"{"source": "evol", "instruction": "q", "models": ["m"], "completions": [
        {"model": "a", "response": "x", "overall_score": 6.0, "critique": "c"},
        {"model": "b", "response": "y", "overall_score": 8.0},
        {"model": "c", "response": "z", "overall_score": 8.0}]}"#;
    let parsed = pairs(original);
    let found: Vec<_> =
        parsed.rows.iter().map(|row| (row.chosen.as_str(), row.rejected.as_str(), row.margin)).collect();
    assert_eq!(found, [("y", "x", Some(2.0)), ("z", "x", Some(2.0))]);
    assert_eq!((parsed.skipped.ties, only(&prompts(original)).prompt), (1, Prompt::user("q")));
}

#[test]
fn ranked_and_voted_responses_give_pairs_without_margins() {
    let nectar = r#"{"prompt": "\n\nHuman: q\n\nAssistant: ", "turns": 1, "answers": [
        {"answer": "x", "model": "a", "rank": 2.0}, {"answer": "y", "model": "b", "rank": 1.0}]}"#;
    let row = only(&pairs(nectar));
    assert_eq!((row.prompt, row.chosen.as_str(), row.margin), (Prompt::user("q"), "y", None));
    let shp = r#"{"history": "q", "human_ref_A": "x", "human_ref_B": "y", "labels": 0, "score_A": 3, "score_B": 9}"#;
    let row = only(&pairs(shp));
    assert_eq!((row.prompt, row.chosen.as_str(), row.rejected.as_str()), (Prompt::user("q"), "y", "x"));
    assert_eq!(only(&pairs(&shp.replace("\"labels\": 0", "\"labels\": 1"))).chosen, "x");
    assert_eq!(only(&prompts(shp)).prompt, Prompt::user("q"));
    assert!(
        fault::<PairRow>(&shp.replace("\"labels\": 0", "\"labels\": 2"))
            .contains("labels: found the number 2")
    );
}

#[test]
fn openais_preferences_and_parts_are_read() {
    let row = only(&pairs(
        r#"{"input": {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "?"}]}],
            "tools": [], "parallel_tool_calls": true},
            "preferred_output": [{"role": "assistant", "content": "x"}], "non_preferred_output": [{"role": "assistant", "content": "y"}]}"#,
    ));
    assert_eq!((row.prompt, row.chosen.as_str(), row.rejected.as_str()), (Prompt::user("q?"), "x", "y"));
}

#[test]
fn unsupported_columns_that_change_a_row_are_refused_by_name() {
    let messages =
        |message: &str| format!(r#"{{"messages": [{{"role": "user", "content": "q"}}, {message}]}}"#);
    let rows = [
        (r#"{"prompt": "q", "answer": "x", "tools": [{"name": "f"}]}"#.to_owned(), "tools: found a list of 1"),
        (r#"{"prompt": "q", "answer": "x", "tools": "[{\"name\": \"f\"}]"}"#.to_owned(), "tools: found the string"),
        (r#"{"prompt": "q", "answer": "x", "images": ["a.png"]}"#.to_owned(), "images: "),
        (r#"{"prompt": "q", "answer": "x", "chat_template_kwargs": {"a": true}}"#.to_owned(), "chat_template_kwargs: "),
        (r#"{"prompt": "q", "answer": "x", "labels": [true]}"#.to_owned(), "labels: "),
        (r#"{"prompt": "q", "question": "r", "answer": "x"}"#.to_owned(), "question: found the string \"r\""),
        (r#"{"prompt": "q", "context": "r", "answer": "x"}"#.to_owned(), "context: "),
        (r#"{"prompt": "q", "response": "x", "output": "y"}"#.to_owned(), "response and output both hold a response"),
        (r#"{"prompt": "q", "answer": "x", "system": ["s"]}"#.to_owned(), "system: found a list of 1"),
        (r#"{"prompt": "q", "answer": "x", "history": "s"}"#.to_owned(), "history: found the string \"s\""),
        (r#"{"prompt": "q", "answer": "x", "history": [["s"]]}"#.to_owned(), "history: found a list of 1"),
        (
            r#"{"system": "S", "answer": "x", "prompt": [{"role": "system", "content": "T"}, {"role": "user", "content": "q"}]}"#.to_owned(),
            "system: the prompt has another system turn",
        ),
        (messages(r#"{"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]}"#), "message 1: tool_calls: "),
        (messages(r#"{"role": "assistant", "content": "x", "function_call": {"name": "f"}}"#), "function_call: "),
        (messages(r#"{"role": "assistant", "content": "x", "reasoning_content": "r"}"#), "reasoning_content: "),
        (messages(r#"{"role": "assistant", "content": "x", "weight": 0}"#), "message 1: weight: "),
        (messages(r#"{"role": "tool", "content": "x"}"#), "role: found the string \"tool\"; tools are not supported"),
        (messages(r#"{"from": "function_call", "value": "x"}"#), "tools are not supported"),
        (messages(r#"{"from": "observation", "value": "x"}"#), "tools are not supported"),
        (
            messages(r#"{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}"#),
            "content: part 0: found type \"image_url\"",
        ),
        (messages(r#"{"role": "assistant", "content": null}"#), "content: found null"),
    ];
    for (text, what) in rows {
        let found = fault::<GoldenRow>(&text);
        assert!(found.contains(what), "{text}\n{found}");
    }
    let pair = |more: &str| format!(r#"{{"prompt": "q", "chosen": "x", "rejected": "y", {more}}}"#);
    for (text, what) in [
        (pair(r#""score": 0.5"#), "score: found the number 0.5"),
        (pair(r#""score_chosen": "high", "score_rejected": 1"#), "score_chosen: found the string"),
        (pair(r#""messages": [{"role": "user", "content": "r"}]"#), "prompt: found the string \"q\""),
        (pair(r#""documents": ["d"]"#), "documents: "),
    ] {
        let found = fault::<PairRow>(&text);
        assert!(found.contains(what), "{text}\n{found}");
    }
}

#[test]
fn empty_or_agreeing_columns_are_no_fault() {
    let text = r#"{"prompt": "q", "question": "q ", "system": "", "history": [], "tools": null, "images": [], "input": "",
        "response": "x", "output": "x", "messages": null, "golden": null, "text": null, "label": true, "chat_template_kwargs": {}, "functions": "[]"}"#;
    let row = only(&golden(text));
    assert_eq!((row.prompt, row.golden.as_str()), (Prompt::user("q"), "x"));
}

#[test]
fn columns_of_other_formats_that_are_null_or_empty_change_nothing() {
    let null = r#""conversations": null, "completions": null, "answers": null, "text": null, "score": null,
        "human_ref_A": null, "human_ref_B": null, "labels": null, "margin": null, "query": null, "system": null"#;
    let empty = r#""conversations": [], "messages": [], "completions": [], "history": [], "tools": "[]""#;
    for others in [null, empty] {
        let text = format!(r#"{{"prompt": "q", "chosen": "x", "rejected": "y", {others}}}"#);
        let pair = only(&pairs(&text));
        assert_eq!((pair.prompt, pair.chosen.as_str()), (Prompt::user("q"), "x"), "{text}");
        let text = format!(r#"{{"prompt": "q", "completion": "x", "golden": null, {others}}}"#);
        assert_eq!(only(&golden(&text)).golden, "x", "{text}");
        let text = format!(r#"{{"prompt": "q", "chosen": null, "rejected": null, {others}}}"#);
        assert_eq!(only(&prompts(&text)).prompt, Prompt::user("q"), "{text}");
    }
    let unlabeled = fault::<GoldenRow>(r#"{"prompt": "q", "completion": "x", "label": null}"#);
    assert!(unlabeled.contains("label: found null; true or false"), "{unlabeled}");
}

#[test]
fn texts_that_are_empty_as_json_are_texts() {
    let row =
        only(&golden(r#"{"instruction": "reverse it", "input": "[]", "system": "null", "output": "[]"}"#));
    assert_eq!(row.prompt, turns(&[(System, "null"), (User, "reverse it\n\n[]")]));
    assert_eq!(row.golden, "[]");
}

#[test]
fn messages_stored_as_text_are_refused() {
    for messages in [
        r#"[{\"role\": \"user\", \"content\": \"q\"}]"#,
        r#" {\"from\": \"human\", \"value\": \"q\"} "#,
        "[{'role': 'user', 'content': 'q'}]",
    ] {
        for row in [
            format!(r#"{{"prompt": "{messages}", "chosen": "x", "rejected": "y"}}"#),
            format!(r#"{{"prompt": "q", "chosen": "{messages}", "rejected": "y"}}"#),
        ] {
            let found = fault::<PairRow>(&row);
            assert!(found.contains("found messages written as a text"), "{row}\n{found}");
        }
    }
    let json = r#"{"prompt": "[1, 2]", "chosen": "[{\"role\": 1}]", "rejected": "{\"a\": 2}"}"#;
    assert_eq!(only(&pairs(json)).prompt, Prompt::user("[1, 2]"));
}

#[test]
fn messages_keep_their_white_space() {
    let text = r#"{"messages": [{"role": "system", "content": "S\n"}, {"role": "user", "content": " q\n"},
        {"role": "assistant", "content": "    return x\n"}]}"#;
    let row = only(&golden(text));
    assert_eq!(row.prompt, turns(&[(System, "S\n"), (User, " q\n")]));
    assert_eq!(row.golden, "    return x\n");
}

#[test]
fn ratings_are_margins() {
    for names in [("chosen-rating", "rejected-rating"), ("chosen_rating", "rejected_rating")] {
        let row = |better: f64, worse: f64| {
            format!(
                r#"{{"prompt": "q", "chosen": "x", "rejected": "y", "{}": {better}, "{}": {worse}}}"#,
                names.0, names.1
            )
        };
        assert_eq!(only(&pairs(&row(5.0, 3.5))).margin, Some(1.5));
        let reversed = fault::<PairRow>(&row(1.0, 5.0));
        assert!(reversed.contains(names.0) && reversed.contains("must be the better"), "{reversed}");
    }
}

#[test]
fn names_within_values_are_collected_too() {
    let text = r#"{"instruction": "q", "completions": [
        {"response": "x", "overall_score": 2, "model": "m", "custom_system_prompt": "S"}, {"response": "y", "overall_score": 1}]}"#;
    let names = |parsed: Parsed<Vec<PairRow>>| parsed.ignored.into_keys().collect::<Vec<_>>();
    assert_eq!(names(pairs(text)), ["completions[].custom_system_prompt", "completions[].model"]);
    let text = r#"{"input": {"messages": [{"role": "user", "content": "q"}], "parallel_tool_calls": true},
        "preferred_output": [{"role": "assistant", "content": "x"}],
        "non_preferred_output": [{"role": "assistant", "content": "y"}]}"#;
    assert_eq!(names(pairs(text)), ["input.parallel_tool_calls"]);
}

#[test]
fn other_columns_are_collected_by_name() {
    let text = concat!(
        "{\"id\": 7, \"prompt\": \"a\", \"answer\": \"x\", \"score\": 3}\n",
        "{\"id\": 8, \"source\": \"s\", \"messages\": [{\"role\": \"user\", \"name\": \"Ann\", \"content\": \"b\"}, {\"role\": \"assistant\", \"content\": \"x\"}]}",
    );
    let parsed = parse::<DemonstrationRow>("d", text.as_bytes()).unwrap();
    let ignored: Vec<_> = parsed.ignored.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
    assert_eq!(ignored, [("id", 2), ("messages[].name", 1), ("score", 1), ("source", 1)]);
    let many: String = (0..1000).map(|n| format!("{{\"prompt\": \"{n}\", \"column {n}\": 1}}\n")).collect();
    assert_eq!(prompts(&many).ignored.len(), 64);
}

#[test]
fn lists_within_lists_count_as_values() {
    let nested = vec![format!("{}{}", "[".repeat(40), "]".repeat(40)); 10_000].join(",");
    let rows = |answer: &str| {
        golden(&format!(
            "{{\"prompt\": \"p\", \"completion\": {answer}}}\n{{\"prompt\": \"q\", \"completion\": \"a\"}}\n"
        ))
    };
    let parsed = rows(&format!("[{nested}]"));
    assert!(parsed.bad[0].what.contains("more than 200000 values"), "{}", parsed.bad[0]);
    assert_eq!(parsed.rows.len(), 1);
    // As a text it is one value, which is not examined for messages.
    assert_eq!(rows(&format!("\"[{nested}]\"")).rows.len(), 2);
}

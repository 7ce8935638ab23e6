use super::*;
use crate::data::parse::parse;
use crate::data::rows::{GoldenRow, PairRow};
use crate::text::inspect::{self, Reader};

#[test]
fn an_inspected_row_shows_tokens_masks_and_cuts() {
    let encoder = Encoder::new(&letters(), &text(Template::Auto)).unwrap();
    let limits = Limits::of(7, 16);
    let prompt = Prompt::user("abcde");
    let view = inspect::row(&encoder, &prompt, Some((Reader::Policy, "ab!")), limits).unwrap();
    let shown = view.to_string();
    let expected = [
        "    0       1 \"<s>\"",
        "    1       4 \"a\"",
        "    2       5 \"b\"",
        "    3       6 \"c\"",
        "    4       7 \"d\"",
        "    5       8 \"e\"",
        "    6       2 \">\"",
        "    7       4 \"a\"                      loss",
        "    8       5 \"b\"                      loss",
        "    9      16 \"!\"                      loss",
        "   10       3 \"</s>\"                   loss",
        "      11 tokens: prompt 7, response 4 with EOS",
    ];
    assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
    let long = "abcdefghwxyzabcdefghwxyzabcdefgh";
    let shown = inspect::row(&encoder, &prompt, Some((Reader::Reward, long)), limits).unwrap().to_string();
    assert!(
        shown.ends_with("prompt 7, response 16; 17 tokens cut off the response (unfinished: no EOS)"),
        "{shown}"
    );
    assert!(shown.contains("response\n   22       7 \"d\"                      reward\n"), "{shown}");
    let wide = Limits::of(7, 99);
    let shown = inspect::row(&encoder, &prompt, Some((Reader::Reward, long)), wide).unwrap().to_string();
    assert!(shown.contains("\n      … 17 tokens …\n") && shown.lines().count() == 25, "{shown}");
    let shown = inspect::row(&encoder, &prompt, None, Limits::of(5, 1)).unwrap().to_string();
    assert!(shown.ends_with("5 tokens: prompt 5, response 0; 2 tokens cut off the prompt"), "{shown}");
}

#[test]
fn length_statistics_count_rows_that_fit_and_the_accuracy_of_length() {
    let encoder = Encoder::new(&letters(), &text(Template::Auto)).unwrap();
    let limits = Limits::of(5, 4);
    let prompt = Prompt::user("ab");
    let lengths = inspect::response_lengths(
        &encoder,
        ["a", "abc", "abcd", "abcdefgh"].map(|response| (&prompt, response)),
        limits,
    )
    .unwrap();
    assert_eq!((lengths.rows, lengths.fit, lengths.shortest, lengths.longest), (4, 2, 2, 9));
    assert_eq!(inspect::prompt_lengths(&encoder, [&prompt, &Prompt::user("abcde")], limits).unwrap().fit, 1);
    let pair = |chosen: &str, rejected: &str| PairRow {
        id: 0,
        prompt: prompt.clone(),
        chosen: chosen.to_owned(),
        rejected: rejected.to_owned(),
        margin: None,
    };
    // The second pair ties after truncation.
    let pairs = [pair("a", "ab"), pair("abcdefg", "abcd"), pair("b", "bc"), pair("a", "aaa")];
    let accuracy = inspect::length_accuracy(&encoder, &pairs, limits).unwrap();
    assert_eq!((accuracy.longer_chosen, accuracy.accuracy()), (0.125, 0.875));
    assert!(
        accuracy.to_string().starts_with("length alone (the shorter response) predicts 87.5 ±"),
        "{accuracy}"
    );
    assert_eq!(inspect::Lengths::of(vec![], 4), inspect::Lengths { budget: 4, ..Default::default() });
}

#[test]
fn long_golden_answers_are_counted() {
    let (Some(files), Some(bytes)) = (stories(), crate::test_models::read("data/golden/golden.jsonl.gz"))
    else {
        return;
    };
    let encoder = Encoder::new(&files, &text(Template::Hh)).unwrap();
    let rows = parse::<GoldenRow>("golden", &bytes).unwrap().rows;
    let lengths = inspect::golden_lengths(&encoder, &rows[..100], Limits::new(512, 256)).unwrap();
    println!("{lengths}");
    assert!(lengths.fit < 30 && lengths.median > 256);
}

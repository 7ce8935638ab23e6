use super::*;
use crate::data::parse::parse;
use crate::data::rows::GoldenRow;
use crate::text::inspect::{self, Lengths, Reader};

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
    let of = |responses: &[&'static str]| {
        let length = |response: &&str| inspect::response_length(&encoder, &prompt, response).unwrap();
        responses.iter().map(length).collect::<Vec<_>>()
    };
    let lengths = Lengths::of(of(&["a", "abc", "abcd", "abcdefgh"]), limits.response);
    assert_eq!((lengths.rows, lengths.fit, lengths.shortest, lengths.longest), (4, 2, 2, 9));
    let prompts =
        [&prompt, &Prompt::user("abcde")].map(|prompt| inspect::prompt_length(&encoder, prompt).unwrap());
    assert_eq!(Lengths::of(prompts.to_vec(), limits.prompt).fit, 1);
    let cut = |responses: &[&'static str]| {
        of(responses).into_iter().map(|length| length.min(limits.response)).collect::<Vec<_>>()
    };
    // The second pair ties after truncation.
    let (chosen, rejected) = (cut(&["a", "abcdefg", "b", "a"]), cut(&["ab", "abcd", "bc", "aaa"]));
    let accuracy = inspect::LengthAccuracy::of(&chosen.into_iter().zip(rejected).collect::<Vec<_>>());
    assert_eq!((accuracy.longer_chosen, accuracy.accuracy()), (0.125, 0.875));
    assert!(
        accuracy.to_string().starts_with("length alone (the shorter response) predicts 87.5 ±"),
        "{accuracy}"
    );
    // Wilson's interval of six in six, from its closed form 6 / (6 + z²).
    let certain = inspect::LengthAccuracy::of(&[(3, 2); 6]).to_string();
    assert!(
        certain.starts_with("length alone (the longer response) predicts 100.0 [61.0, 100.0] % of 6 pairs;"),
        "{certain}"
    );
    let shared = Lengths::sharing(vec![3, 9], 10, 1);
    assert_eq!((shared.fit, shared.longest), (1, 9));
    assert!(shared.to_string().starts_with("1 of 2 fits 10 tokens, with the other part; shortest 3"));
    assert_eq!(Lengths::of(vec![], 4), Lengths { budget: 4, ..Default::default() });
}

#[test]
fn long_golden_answers_are_counted() {
    let (Some(files), Some(bytes)) = (stories(), crate::test_models::read("data/golden/golden.jsonl.gz"))
    else {
        return;
    };
    let encoder = Encoder::new(&files, &text(Template::Hh)).unwrap();
    let rows = parse::<GoldenRow>("golden", &bytes).unwrap().rows;
    let length = |row: &GoldenRow| inspect::response_length(&encoder, &row.prompt, &row.golden).unwrap();
    let lengths = Lengths::of(rows[..100].iter().map(length).collect(), 256);
    println!("{lengths}");
    assert!(lengths.fit < 30 && lengths.median > 256);
}

//! Sources with weights, columns, filters and limits.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use prost::Message;

use super::*;
use crate::failing_store::FailingStore;

/// Lines `{prompt, golden}` with three-letter prompts that begin with the given letters.
fn golden(letters: &str, key: &str, count: usize) -> String {
    let all: Vec<char> = "abcdefgh".chars().collect();
    let texts = all.iter().flat_map(|one| all.iter().map(move |two| format!("{one}{two}")));
    texts
        .take(count)
        .map(|text| format!("{{\"{key}\":\"{letters}{text}\",\"golden\":\"{text}!\"}}\n"))
        .collect()
}

fn source(set: &str, path: String) -> v1::DataSourceSpec {
    v1::DataSourceSpec { set: set.into(), path: vec![path], ..Default::default() }
}

/// A job whose golden answers come from two sources.
async fn mixed(store: &Store, change: impl FnOnce(&mut Vec<v1::DataSourceSpec>)) -> v1::JobSpec {
    let mut wire = file_job(store).await;
    let mut sources = vec![
        source("golden", input(store, "a.jsonl", golden("a", "prompt", 60)).await),
        source("golden", input(store, "h.jsonl", golden("h", "prompt", 20)).await),
    ];
    change(&mut sources);
    let data = wire.data.as_mut().unwrap();
    data.golden.clear();
    data.golden_holdout = Some(0.25);
    data.sources = sources;
    wire
}

fn summary<'a>(resolved: &'a Resolved, name: &str) -> &'a v1::DatasetSummary {
    resolved.summaries.iter().find(|summary| summary.name == name).unwrap()
}

/// Number of rows from the source, in the set and in its holdout.
fn from(resolved: &Resolved, source: usize) -> u64 {
    ["golden", "golden_holdout"].iter().map(|set| summary(resolved, set).sources[source].rows).sum()
}

fn dropped(resolved: &Resolved, source: usize) -> Vec<(String, u64)> {
    let dropped = summary(resolved, "golden").sources[source].dropped.iter();
    dropped.map(|dropped| (dropped.reason.clone(), dropped.rows)).collect()
}

async fn golden_ids(resolved: &Resolved, store: &Store) -> Vec<u64> {
    rows::<GoldenRow>(resolved, "golden", store).await.iter().map(|row| row.id).collect()
}

/// The inputs of a job whose id is derived from its specification, because data sets of different jobs have
/// different keys.
async fn resolved(wire: v1::JobSpec, store: &Store) -> Result<Resolved, ResolveError> {
    let id = format!("j{}", blake3::hash(&wire.encode_to_vec()).to_hex());
    let job = spec::Job::try_from(wire).unwrap();
    Request::new(&id, &job, &ModelArtifacts::new(), true).run(store).await
}

#[tokio::test]
async fn a_large_file_is_read_in_the_store_with_the_same_result() {
    let store = Store::in_memory();
    let small = golden("a", "prompt", 60);
    // An ignored column makes it too large to be held.
    let note = "x".repeat(200_000);
    let large: String =
        small.lines().map(|row| row.replace('}', &format!(",\"note\":\"{note}\"}}\n"))).collect();
    let mut found = Vec::new();
    for text in [small, large] {
        let path = input(&store, "a.jsonl", text).await;
        let one = |sources: &mut Vec<v1::DataSourceSpec>| {
            *sources = vec![v1::DataSourceSpec { limit: 30, ..source("golden", path) }];
        };
        let resolved = resolved(mixed(&store, one).await, &store).await.unwrap();
        assert_eq!(dropped(&resolved, 0), [("limit".to_owned(), 30)]);
        found.push(golden_ids(&resolved, &store).await);
    }
    assert!(!found[0].is_empty());
    assert_eq!(found[0], found[1]);
}

#[tokio::test]
async fn a_store_that_fails_while_a_file_is_read_in_it_is_blamed_not_the_file() {
    let backend = Arc::new(FailingStore::default());
    let store = backend.store();
    let note = "x".repeat(200_000);
    let large: String = golden("a", "prompt", 60)
        .lines()
        .map(|row| row.replace('}', &format!(",\"note\":\"{note}\"}}\n")))
        .collect();
    let path = input(&store, "a.jsonl", large).await;
    let wire = mixed(&store, |sources| *sources = vec![source("golden", path)]).await;
    backend.fails_ranges.store(true, Ordering::SeqCst);
    let error = resolved(wire.clone(), &store).await.unwrap_err();
    assert!(error.is_store_error() && error.is_transient() && error.field().is_none(), "{error}");
    assert!(!error.to_string().contains("a.jsonl"), "{error}");
    backend.fails_ranges.store(false, Ordering::SeqCst);
    resolved(wire, &store).await.unwrap();
}

#[tokio::test]
async fn filters_that_leave_no_row_are_to_be_loosened() {
    let store = Store::in_memory();
    let filter = |sources: &mut Vec<v1::DataSourceSpec>| {
        sources.remove(0);
        sources[0].filter =
            Some(v1::FilterSpec { min_prompt_characters: Some(10_000), ..Default::default() });
    };
    let error = resolved(mixed(&store, filter).await, &store).await.unwrap_err().to_string();
    assert!(error.ends_with("loosen data.golden[0].filter, or give a file with more rows"), "{error}");
}

#[tokio::test]
async fn a_filter_that_empties_an_evaluation_set_is_named_by_its_own_field() {
    let store = Store::in_memory();
    let prompts = |letters: &[&str]| -> String {
        letters.iter().map(|letters| format!("{{\"prompt\":\"{letters}\"}}\n")).collect()
    };
    let own = |set: &str, path: String| v1::DataSourceSpec {
        filter: Some(v1::FilterSpec { min_prompt_characters: Some(4), ..Default::default() }),
        ..source(set, path)
    };
    let short = input(&store, "short.jsonl", prompts(&["ab", "abc"])).await;
    let one_long = input(&store, "long.jsonl", prompts(&["ab", "abc", "abcd"])).await;
    let mut given = file_job(&store).await;
    given.data.as_mut().unwrap().sources = vec![own("evaluation_prompts", short)];
    let error = resolved(given, &store).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "data.evaluation.prompts: no row is left for evaluation_prompts (data.evaluation.prompts: 2 rows of short.jsonl are \
         left out: 2 by min_prompt_characters); loosen data.evaluation.prompts[0].filter, or give a file with more rows"
    );
    // With a single prompt left, none can be held out.
    let mut held_out = file_job(&store).await;
    let data = held_out.data.as_mut().unwrap();
    data.prompts.clear();
    data.evaluation = None;
    data.sources = vec![own("prompts", one_long)];
    let error = resolved(held_out, &store).await.unwrap_err().to_string();
    assert!(
        error.starts_with(
            "data.evaluation.prompts: no row is left for evaluation_prompts (data.prompts: 2 rows of"
        ),
        "{error}"
    );
    let advice = "; loosen data.prompts[0].filter, or give an evaluation set of its own, or rows with more distinct prompts to hold \
                  some out";
    assert!(error.ends_with(advice), "{error}");
}

#[tokio::test]
async fn sources_are_mixed_by_weight_and_the_mixture_follows_from_the_seed() {
    let store = Store::in_memory();
    let all = resolved(mixed(&store, |_| {}).await, &store).await.unwrap();
    assert_eq!((from(&all, 0), from(&all, 1)), (60, 20));
    assert_eq!(summary(&all, "golden").sources[0].weight, None);
    let one_to_one = |sources: &mut Vec<v1::DataSourceSpec>| sources[1].weight = Some(1.0);
    let wire = mixed(&store, one_to_one).await;
    let mixture = resolved(wire.clone(), &store).await.unwrap();
    assert_eq!((from(&mixture, 0), from(&mixture, 1)), (20, 20));
    assert_eq!((dropped(&mixture, 0), dropped(&mixture, 1)), (vec![("weight".to_owned(), 40)], vec![]));
    let weights: Vec<_> = summary(&mixture, "golden").sources.iter().map(|source| source.weight).collect();
    assert_eq!(weights, [Some(1.0), Some(1.0)]);
    let warning = "data.golden: 40 rows of a.jsonl are left out: 40 by weight";
    assert!(mixture.warnings.iter().any(|found| found == warning), "{:?}", mixture.warnings);
    // The same job yields the same bytes; another seed yields other rows.
    let again = resolved(wire.clone(), &store).await.unwrap();
    assert_eq!(again.datasets, mixture.datasets);
    let other = resolved(v1::JobSpec { seed: Some(1), ..wire.clone() }, &store).await.unwrap();
    assert_ne!(golden_ids(&other, &store).await, golden_ids(&mixture, &store).await);
    assert_eq!((from(&other, 0), from(&other, 1)), (20, 20));
    // A limit preserves the shares.
    let mut limited = wire;
    limited.data.as_mut().unwrap().limits = Some(v1::LimitSpec { golden: 12, ..Default::default() });
    let limited = resolved(limited, &store).await.unwrap();
    assert_eq!((from(&limited, 0), from(&limited, 1)), (6, 6));
    let both: Vec<u64> = golden_ids(&mixture, &store).await;
    let held = rows::<GoldenRow>(&mixture, "golden_holdout", &store).await;
    let all: Vec<u64> = both.into_iter().chain(held.iter().map(|row| row.id)).collect();
    assert!(
        golden_ids(&limited, &store).await.iter().all(|id| all.contains(id)),
        "the first ones of the same order"
    );
}

#[tokio::test]
async fn columns_limits_and_filters_are_those_of_their_source() {
    let store = Store::in_memory();
    let renamed = input(&store, "q.jsonl", golden("b", "q", 30)).await;
    let wire = mixed(&store, |sources| {
        sources[0].limit = 10;
        sources[1] = v1::DataSourceSpec {
            columns: [("prompt".to_owned(), "q".to_owned())].into_iter().collect(),
            // BOS and four letters of "b" and "aa" to "bb".
            filter: Some(v1::FilterSpec { max_prompt_characters: Some(3), ..Default::default() }),
            ..source("golden", renamed)
        };
    })
    .await;
    let found = resolved(wire.clone(), &store).await.unwrap();
    assert_eq!((from(&found, 0), from(&found, 1)), (10, 30));
    assert_eq!(dropped(&found, 0), [("limit".to_owned(), 50)]);

    let lengths = |filter: v1::FilterSpec| {
        let mut wire = wire.clone();
        wire.data.as_mut().unwrap().sources[1].filter = Some(filter);
        wire
    };
    let none = v1::FilterSpec { max_prompt_characters: Some(2), ..Default::default() };
    let found = resolved(lengths(none), &store).await.unwrap();
    assert_eq!((from(&found, 0), from(&found, 1)), (10, 0));
    assert_eq!(dropped(&found, 1), [("max_prompt_characters".to_owned(), 30)]);
    // With EOS, an answer of three characters is four tokens.
    for (max, kept) in [(3, 0), (4, 30)] {
        let filter = v1::FilterSpec { max_answer_tokens: Some(max), ..Default::default() };
        let found = resolved(lengths(filter), &store).await.unwrap();
        assert_eq!(from(&found, 1), kept, "{max}");
    }
    let missing = v1::FilterSpec { min_answer_characters: Some(4), ..Default::default() };
    let found = resolved(lengths(missing), &store).await.unwrap();
    assert_eq!(dropped(&found, 1), [("min_answer_characters".to_owned(), 30)]);

    let mut unknown = wire;
    unknown.data.as_mut().unwrap().sources[1].columns.insert("golden".to_owned(), "gold".to_owned());
    let message = failure(unknown, &store).await;
    let wanted = "data.golden: q.jsonl: has no column gold, which `columns` gives for golden; its columns are golden, q";
    assert_eq!(message, wanted);
}

#[tokio::test]
async fn near_duplicates_are_left_out_and_warned_of_across_sets() {
    let store = Store::in_memory();
    // Letters separated by a symbol, which are 23 words.
    let letter = |text: usize, n: usize| (text * 31 + n * n * 7 + n * text * 3 + n * n * n / (text + 2)) % 8;
    let words = |text: usize| {
        (0..12).map(|n| "abcdefgh"[letter(text, n)..][..1].to_owned()).collect::<Vec<_>>().join("!")
    };
    let line = |prompt: String| format!("{{\"prompt\":\"{prompt}\",\"golden\":\"a!\"}}\n");
    let texts: String = (0..8).map(|seed| line(words(seed))).collect();
    // The same text except for its last word.
    let near = line(format!("{}!", words(0)));
    let wire = |threshold: Option<f64>| {
        let texts = texts.clone();
        let near = near.clone();
        let store = &store;
        async move {
            let mut wire = mixed(store, |_| {}).await;
            let data = wire.data.as_mut().unwrap();
            data.sources = vec![
                source("golden", input(store, "one.jsonl", texts).await),
                source("golden", input(store, "two.jsonl", near).await),
            ];
            data.golden_holdout = Some(0.0);
            data.deduplication = threshold
                .map(|threshold| v1::DeduplicationSpec { threshold: Some(threshold), ngram: Some(3) });
            wire
        }
    };
    let kept = resolved(wire(None).await, &store).await.unwrap();
    assert_eq!(summary(&kept, "golden").rows, 9);
    let found = resolved(wire(Some(0.8)).await, &store).await.unwrap();
    assert_eq!(summary(&found, "golden").rows, 8);
    assert_eq!(dropped(&found, 1), [("near_duplicate".to_owned(), 1)]);

    let mut across = wire(None).await;
    let data = across.data.as_mut().unwrap();
    let prompt = |text: String| format!("{{\"prompt\":\"{text}\"}}");
    data.prompts = vec![input(&store, "p.jsonl", prompt(words(3))).await];
    let held = input(&store, "e.jsonl", prompt(format!("{}!a", words(3)))).await;
    data.evaluation = Some(v1::EvaluationDataSpec { prompts: vec![held], ..Default::default() });
    let found = resolved(across, &store).await.unwrap();
    let near = "evaluation_prompts: 1 of its 1 prompt nearly equals others in prompts";
    assert!(found.warnings.iter().any(|warning| warning.starts_with(near)), "{:?}", found.warnings);
}

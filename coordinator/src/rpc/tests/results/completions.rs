//! Completions: listing, sorting, filtering and paging, and a single completion with its tokens.

use foil_proto::v1::{CompletionSet, CompletionSort, Selection};

use super::super::made_up::{piece, prompt_id, reward, row_of, text, tokens};
use super::*;

fn listing(set: CompletionSet) -> v1::ListCompletionsRequest {
    v1::ListCompletionsRequest { job_id: JOB.into(), set: set.into(), ..Default::default() }
}

/// All rows of a listing, page by page, and the number of pages.
async fn all_rows(
    client: &mut ResultsClient<Channel>,
    mut request: v1::ListCompletionsRequest,
) -> (Vec<v1::CompletionRow>, v1::ListCompletionsResponse, usize) {
    let (mut rows, mut pages) = (Vec::new(), 0);
    loop {
        let page = client.list_completions(request.clone()).await.unwrap().into_inner();
        rows.extend(page.rows.clone());
        pages += 1;
        if page.next_page_token.is_empty() {
            return (rows, page, pages);
        }
        request.page_token.clone_from(&page.next_page_token);
    }
}

fn rows_of(rows: &[v1::CompletionRow]) -> Vec<u64> {
    rows.iter().map(|row| row_of(row.prompt_id)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_are_listed_side_by_side_with_their_origin() {
    let Finished { coordinator, mut client, .. } = finished(&[], |_| {}).await;
    let paged = v1::ListCompletionsRequest { page_size: 3, ..listing(CompletionSet::Training) };
    let (rows, page, pages) = all_rows(&mut client, paged).await;
    assert_eq!((rows_of(&rows), pages), ((0..10).collect(), 4));
    assert_eq!((page.total, page.total_unfiltered, page.available_rounds.as_slice()), (10, 10, &[1, 2][..]));
    let names = |round: &v1::CompletionRound| {
        let name = |model: &Option<v1::ModelVersion>| model.as_ref().unwrap().artifact.clone();
        (round.round, name(&round.policy), name(&round.reward), round.purpose.clone(), round.attempt)
    };
    let generate = || "policy.generate".to_owned();
    assert_eq!(
        page.rounds.iter().map(names).collect::<Vec<_>>(),
        [
            (1, "policy@0".to_owned(), "reward@1".to_owned(), generate(), 1),
            (2, "policy@1".to_owned(), "reward@2".to_owned(), generate(), 1),
        ]
    );
    for row in &rows {
        let at = row_of(row.prompt_id);
        assert_eq!(row.prompt[0].text.as_ref().unwrap().text, format!("Row {at} of prompts"));
        let expected: Vec<(u32, u32)> =
            (1..=2).flat_map(|round| (0..4).map(move |index| (round, index))).collect();
        let found: Vec<(u32, u32)> = row.completions.iter().map(|found| (found.round, found.index)).collect();
        assert_eq!(found, expected);
        for found in &row.completions {
            let (round, index) = (found.round, found.index);
            assert_eq!(found.text.as_ref().unwrap().text, text(round, at, index));
            assert_eq!(
                (found.reward, found.tokens as usize),
                (Some(reward(round, at, index)), tokens(at, index))
            );
            assert_eq!(found.log_prob, Some(-0.25 * tokens(at, index) as f64));
            // Rejection sampling takes the best completion, the first in a tie.
            let best = (0..4).rev().max_by(|a, b| reward(round, at, *a).total_cmp(&reward(round, at, *b)));
            let chosen = if best == Some(index) { Selection::Chosen } else { Selection::Unused };
            assert_eq!(found.selection(), chosen, "round {round}, row {at}, completion {index}");
        }
    }
    let evaluation = all_rows(&mut client, listing(CompletionSet::Evaluation)).await;
    assert_eq!((rows_of(&evaluation.0), evaluation.1.available_rounds), ((0..5).collect(), vec![0, 1, 2]));
    let start = &evaluation.0[1].completions[0];
    assert_eq!((start.round, start.reward, start.kl), (0, None, Some(0.5)), "no reward model before round 1");
    assert_eq!(evaluation.1.rounds[2].policy.as_ref().unwrap().artifact, "policy@2");

    let golden = all_rows(&mut client, listing(CompletionSet::Golden)).await.0;
    let held_out: Vec<bool> = golden.iter().map(|row| row.held_out).collect();
    assert_eq!(held_out, [[false; 9].as_slice(), &[true; 3]].concat());
    let last = &golden[11];
    assert_eq!(last.golden.as_ref().unwrap().text, "the golden answer to 2");
    assert_eq!(last.golden_rewards.iter().map(|found| found.reward).collect::<Vec<_>>(), [20.0, 20.0]);
    assert_eq!(last.completions[5].reward, Some(reward(2, 2, 1)));
    assert!(golden[0].golden_rewards.is_empty() && golden[0].completions[0].reward.is_none());
    let scored = v1::ListCompletionsRequest {
        filter: Some(v1::CompletionFilter { min_reward: Some(f64::MIN), ..Default::default() }),
        ..listing(CompletionSet::Golden)
    };
    assert_eq!(all_rows(&mut client, scored).await.0, golden[9..], "only the held-out answers have rewards");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_sorted_filtered_and_jumped_to() {
    let Finished { coordinator, mut client, .. } = finished(&[], |_| {}).await;
    let mean = |round: u32, row: u64| (0..4).map(|index| reward(round, row, index)).sum::<f64>() / 4.0;
    let by_reward = v1::ListCompletionsRequest {
        sort: CompletionSort::Reward.into(),
        descending: true,
        page_size: 4,
        ..listing(CompletionSet::Training)
    };
    let mut expected: Vec<u64> = (0..10).collect();
    expected.sort_by(|a, b| mean(2, *b).total_cmp(&mean(2, *a)));
    let (rows, page, pages) = all_rows(&mut client, by_reward.clone()).await;
    assert_eq!((rows_of(&rows), page.total, pages), (expected.clone(), 10, 3));
    let jumped = v1::ListCompletionsRequest { offset: 7, ..by_reward.clone() };
    assert_eq!(rows_of(&all_rows(&mut client, jumped).await.0), expected[7..]);
    let first = v1::ListCompletionsRequest { sort_round: Some(1), ..by_reward.clone() };
    expected.sort_by(|a, b| mean(1, *b).total_cmp(&mean(1, *a)));
    assert_eq!(rows_of(&all_rows(&mut client, first).await.0), expected);
    let apart = v1::ListCompletionsRequest { sort: CompletionSort::Disagreement.into(), ..by_reward.clone() };
    let apart = all_rows(&mut client, apart).await.0;
    let disagreement: Vec<f64> = apart.iter().map(|row| row.disagreement.unwrap()).collect();
    assert!(disagreement.is_sorted_by(|a, b| a >= b) && disagreement[0] > disagreement[9]);

    let filtered = async |client: &mut ResultsClient<Channel>, filter: v1::CompletionFilter| {
        let request = v1::ListCompletionsRequest { filter: Some(filter), ..listing(CompletionSet::Training) };
        let (rows, page, _) = all_rows(client, request).await;
        assert_eq!((page.total, page.total_unfiltered), (rows.len() as u64, 10));
        rows_of(&rows)
    };
    let some = v1::CompletionFilter::default();
    let unfinished = v1::CompletionFilter { finished: Some(false), ..some.clone() };
    assert_eq!(filtered(&mut client, unfinished).await, [0, 3, 6, 9]);
    for (contains, found) in [
        ("TO ROW 7 IN", vec![7]),
        ("row 3 OF prompts", vec![3]),
        ("nowhere", vec![]),
        ("</SCRIPT>", (0..10).collect()),
    ] {
        let text = v1::CompletionFilter { contains: contains.into(), ..some.clone() };
        assert_eq!(filtered(&mut client, text).await, found, "{contains}");
    }
    let one = v1::CompletionFilter { prompt_id: Some(prompt_id(4)), ..some.clone() };
    assert_eq!(filtered(&mut client, one).await, [4]);
    let absent = v1::CompletionFilter { prompt_id: Some(1), ..some.clone() };
    assert!(filtered(&mut client, absent).await.is_empty());
    let high = v1::CompletionFilter { min_reward: Some(11.0), ..some };
    let expected: Vec<u64> = (0..10)
        .filter(|row| (1..=2).any(|round| (0..4).any(|index| reward(round, *row, index) >= 11.0)))
        .collect();
    assert_eq!(filtered(&mut client, high).await, expected);

    for (request, field) in [
        (v1::ListCompletionsRequest { sort_round: Some(7), ..by_reward.clone() }, "sort_round"),
        (v1::ListCompletionsRequest { rounds: vec![3], ..by_reward.clone() }, "rounds"),
        (v1::ListCompletionsRequest { page_token: "4.1-2.x".into(), ..by_reward }, "page_token"),
    ] {
        assert_eq!(violation(&client.list_completions(request).await.unwrap_err()), field);
    }
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_completion_has_its_tokens_and_their_log_probabilities() {
    let dpo: &[Edit] = &[|spec| {
        spec.policy_step.get_or_insert_default().method =
            Some(v1::policy_step_spec::Method::Dpo(v1::DpoSpec::default()));
    }];
    let Finished { coordinator, mut client, .. } = finished(dpo, |_| {}).await;
    let request = v1::GetCompletionRequest {
        job_id: JOB.into(),
        set: CompletionSet::Training.into(),
        round: 2,
        prompt_id: prompt_id(9),
        index: 3,
    };
    let found = client.get_completion(request.clone()).await.unwrap().into_inner();
    let completion = found.completion.unwrap();
    assert_eq!(completion.text.unwrap().text, text(2, 9, 3));
    assert_eq!(found.tokens.len(), tokens(9, 3));
    assert!(found.tokens.iter().all(|token| token.log_prob == Some(-0.25)
        && token.ref_log_prob == Some(-0.5)
        && token.old_log_prob.is_none()));
    assert_eq!(found.tokens_note, "");
    assert!(found.tokens.iter().all(|token| token.text == piece(token.id)), "{:?}", found.tokens);
    let earlier = v1::GetCompletionRequest { round: 1, ..request.clone() };
    let by_start = client.get_completion(earlier).await.unwrap().into_inner();
    assert!(by_start.tokens_note.contains("the tokenizer"), "{}", by_start.tokens_note);
    assert!(!by_start.tokens.is_empty() && by_start.tokens.iter().all(|token| token.text.is_empty()));
    assert_eq!(found.round.unwrap().policy.unwrap().artifact, "policy@1");
    for wrong in [
        v1::GetCompletionRequest { index: 4, ..request.clone() },
        v1::GetCompletionRequest { prompt_id: 4, ..request.clone() },
    ] {
        let status = client.get_completion(wrong).await.unwrap_err();
        assert_eq!((status.code(), violation(&status).as_str()), (Code::InvalidArgument, "prompt_id"));
    }
    let no_round = v1::GetCompletionRequest { round: 9, ..request };
    assert_eq!(violation(&client.get_completion(no_round).await.unwrap_err()), "round");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_completions_are_paged() {
    let large: &[Edit] = &[|spec| {
        spec.rounds = Some(1);
        spec.generation.get_or_insert_default().chunk_prompts = Some(100);
        spec.policy_step.get_or_insert_default().samples = Some(10);
    }];
    let Finished { coordinator, mut client, .. } = finished(large, |sets| {
        let prompts = sets.iter_mut().find(|set| set.name == "prompts").unwrap();
        prompts.rows = 10_000;
    })
    .await;
    let request = v1::ListCompletionsRequest { page_size: 100, ..listing(CompletionSet::Training) };
    let jump = v1::ListCompletionsRequest { offset: 9950, ..request.clone() };
    let (rows, page, _) = all_rows(&mut client, jump).await;
    assert_eq!((rows_of(&rows), page.total), ((9950..10_000).collect(), 10_000));
    let sorted = v1::ListCompletionsRequest {
        sort: CompletionSort::Reward.into(),
        filter: Some(v1::CompletionFilter { finished: Some(true), ..Default::default() }),
        ..request
    };
    let (rows, page, pages) = all_rows(&mut client, sorted).await;
    let mean = |row: u64| (0..10).map(|index| reward(1, row, index)).sum::<f64>() / 10.0;
    let mut expected: Vec<u64> = (0..10_000).filter(|row| row % 3 != 0).collect();
    expected.sort_by(|a, b| mean(*a).total_cmp(&mean(*b)));
    assert!(rows_of(&rows) == expected, "every row once, in order");
    assert_eq!((page.total, pages), (6666, 67));
    coordinator.stop().await;
}

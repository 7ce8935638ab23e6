//! The Results service over gRPC, on a job whose results are made up.

use foil_proto::v1::results_client::ResultsClient;
use foil_proto::v1::{CompletionSet, CompletionSort, RewardSource, Selection, SpanOutcome};

use super::made_up::{piece, prompt_id, reward, row_of, text, tokens, write_datasets};
use super::*;
use crate::job::Submitted;
use crate::job::fixture::{Edit, datasets, job};
use crate::plan;

/// A coordinator with a finished job.
struct Finished {
    coordinator: Coordinator,
    store: Store,
    client: ResultsClient<Channel>,
}

/// Runs a job to its end; `change` may give it other data sets.
async fn finished(edits: &[Edit], change: impl FnOnce(&mut Vec<v1::Dataset>)) -> Finished {
    let store = Store::in_memory();
    let coordinator = Coordinator::start(&store).await;
    let mut sets = datasets();
    change(&mut sets);
    write_datasets(&store, &sets).await;
    let phases = plan::plan(&job(edits), &sets).iter().map(Into::into).collect();
    let plan = v1::Plan { phases, datasets: Vec::new() };
    let submitted = Submitted { plan, datasets: sets, ..submitted(edits) };
    coordinator.handle.submit(JOB.into(), submitted).await.unwrap();
    let (_address, worker) = start_worker(&store, coordinator.address, Deaths::default());
    watch_until(&mut coordinator.jobs().await, 0, |_| false).await;
    worker.abort();
    let client = ResultsClient::new(coordinator.channel().await);
    Finished { coordinator, store, client }
}

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
            // Rejection takes the best, the first of equals.
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
    assert_eq!(all_rows(&mut client, scored).await.0, golden[9..], "the held-out answers alone have rewards");
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
async fn steps_distributions_and_the_timeline_cover_the_whole_job() {
    let Finished { coordinator, mut client, store } = finished(&[], |_| {}).await;
    let job = v1::GetStepsRequest { job_id: JOB.into(), ..Default::default() };
    let steps = client.get_steps(job.clone()).await.unwrap().into_inner();
    let phases: Vec<_> = steps.phases.iter().map(|phase| phase.phase.as_str()).collect();
    assert_eq!(
        phases,
        ["r00.sft", "r01.reward.train", "r01.policy.train", "r02.reward.train", "r02.policy.train"]
    );
    for phase in &steps.phases {
        assert_eq!((phase.steps, phase.steps_done, phase.running), (2, 2, false));
        assert_eq!(
            (phase.curves[0].metric.as_str(), phase.curves[0].mean.as_slice()),
            ("loss", &[1.0, 0.5][..])
        );
    }
    let one = v1::GetStepsRequest {
        phases: vec!["r01.policy.train".into()],
        metrics: vec!["loss".into()],
        after_step: 1,
        max_points: 2,
        ..job.clone()
    };
    let one = client.get_steps(one).await.unwrap().into_inner();
    assert_eq!((one.phases.len(), one.phases[0].step.as_slice()), (1, &[2][..]));
    for (bad, field) in [
        (v1::GetStepsRequest { phases: vec!["r01.policy.generate".into()], ..job.clone() }, "phases"),
        (v1::GetStepsRequest { max_points: 1, ..job.clone() }, "max_points"),
        (v1::GetStepsRequest { metrics: vec![String::new(); 65], ..job.clone() }, "metrics"),
        (v1::GetStepsRequest { page_token: "x".into(), ..job }, "page_token"),
    ] {
        assert_eq!(violation(&client.get_steps(bad).await.unwrap_err()), field);
    }

    let request = v1::GetDistributionsRequest { job_id: JOB.into(), bins: 5, ..Default::default() };
    let distributions = client.get_distributions(request.clone()).await.unwrap().into_inner();
    assert_eq!(distributions.available_rounds, [0, 1, 2]);
    let last = &distributions.rounds[2];
    assert_eq!(last.reward.as_ref().unwrap().artifact, "reward@2");
    let counts: Vec<_> = last.histograms.iter().map(|found| (found.source(), found.count)).collect();
    assert_eq!(
        counts,
        [
            (RewardSource::Golden, 3),
            (RewardSource::GoldenCompletions, 12),
            (RewardSource::Chosen, 6),
            (RewardSource::Rejected, 6),
            (RewardSource::Training, 40),
            (RewardSource::Evaluation, 5),
            (RewardSource::EvaluationGold, 5),
        ]
    );
    assert!(last.histograms.iter().all(|found| found.counts.iter().sum::<u64>() == found.count));
    let pairs: Vec<u64> =
        last.reliability.iter().map(|found| found.bins.iter().map(|bin| bin.count).sum()).collect();
    assert_eq!(pairs, [24, 12], "each pair in both orders");
    let start = &distributions.rounds[0];
    assert!(start.reward.is_none() && start.histograms.len() == 1, "{start:?}");
    let bins = v1::GetDistributionsRequest { bins: 4, ..request };
    assert_eq!(violation(&client.get_distributions(bins).await.unwrap_err()), "bins");

    let request = v1::GetTimelineRequest { job_id: JOB.into(), page_token: String::new() };
    let timeline = client.get_timeline(request.clone()).await.unwrap().into_inner();
    let planned = get(&mut coordinator.jobs().await).await.plan.unwrap().phases;
    assert!(timeline.spans.iter().map(|span| &span.phase).eq(planned.iter().map(|phase| &phase.id)));
    assert!(timeline.spans.iter().all(|span| span.outcome() == SpanOutcome::Committed));
    assert_eq!(timeline.attempts[0].end_class, "completed");
    coordinator.stop().await;
    // Another coordinator has the same from the log.
    let second = Coordinator::start(&store).await;
    let mut client = ResultsClient::new(second.channel().await);
    assert_eq!(client.get_timeline(request).await.unwrap().into_inner(), timeline);
    second.stop().await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_steps_of_many_phases_are_paged() {
    let long: &[Edit] = &[|spec| spec.rounds = Some(33)];
    let Finished { coordinator, mut client, .. } = finished(long, |_| {}).await;
    let mut request = v1::GetStepsRequest { job_id: JOB.into(), ..Default::default() };
    let (mut phases, mut pages) = (Vec::new(), 0);
    loop {
        let page = client.get_steps(request.clone()).await.unwrap().into_inner();
        phases.extend(page.phases.into_iter().map(|phase| phase.phase));
        pages += 1;
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let planned = plan::plan(&job(long), &datasets()).into_iter().filter(|phase| phase.steps > 0);
    assert_eq!((phases, pages), (planned.map(|phase| phase.id.to_string()).collect(), 2));
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_steps_of_a_running_phase_are_there_before_it_ends() {
    let store = Store::in_memory();
    let coordinator = Coordinator::start(&store).await;
    coordinator.handle.submit(JOB.into(), submitted(&[])).await.unwrap();
    let client = ResultsClient::new(coordinator.channel().await);
    let (_worker, steps) = stepping::start(coordinator.address).await;
    let curve = async |wanted: u32| {
        let mut client = client.clone();
        let request = v1::GetStepsRequest { job_id: JOB.into(), ..Default::default() };
        loop {
            let found = client.get_steps(request.clone()).await.unwrap().into_inner();
            let phase = found.phases.into_iter().next();
            if let Some(phase) = phase.filter(|phase| phase.steps_done >= wanted) {
                return phase;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    steps.send((1, 4.0)).await.unwrap();
    let first = curve(1).await;
    assert_eq!((first.phase.as_str(), first.running, first.steps), ("r00.sft", true, 3));
    steps.send((2, 2.0)).await.unwrap();
    let second = curve(2).await;
    assert_eq!((second.step.as_slice(), second.curves[0].mean.as_slice()), (&[1, 2][..], &[4.0, 2.0][..]));
    coordinator.stop().await;
}

/// A worker whose ranks step when they are told to.
mod stepping {
    use foil_proto::v1::rank_command::Command;
    use foil_proto::v1::{agent_command, rank_message::Message};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    pub(super) async fn start(
        address: SocketAddr,
    ) -> (mpsc::Sender<v1::AgentMessage>, mpsc::Sender<(u64, f64)>) {
        let url = format!("http://{address}");
        let (agent, stream) = mpsc::channel(8);
        let device =
            |index| v1::Device { id: format!("cpu:{index}"), kind: "cpu".into(), ..Default::default() };
        let hello = v1::AgentRegister {
            agent_id: "a".into(),
            devices: (0..2).map(device).collect(),
            version: VERSION.into(),
            ..Default::default()
        };
        let message = agent_message::Message::Register(hello);
        agent.send(v1::AgentMessage { message: Some(message) }).await.unwrap();
        let mut client = WorkersClient::connect(url.clone()).await.unwrap();
        let mut commands = client.agent(ReceiverStream::new(stream)).await.unwrap().into_inner();
        let (steps, taken) = mpsc::channel(8);
        let taken = std::sync::Arc::new(tokio::sync::Mutex::new(taken));
        tokio::spawn(async move {
            while let Ok(Some(command)) = commands.message().await {
                if let Some(agent_command::Command::StartRank(start)) = command.command {
                    tokio::spawn(rank(url.clone(), start, std::sync::Arc::clone(&taken)));
                }
            }
        });
        (agent, steps)
    }

    async fn rank(
        url: String,
        start: v1::StartRank,
        steps: std::sync::Arc<tokio::sync::Mutex<mpsc::Receiver<(u64, f64)>>>,
    ) {
        let (outgoing, stream) = mpsc::channel(8);
        let hello = v1::RankHello {
            session_id: start.session_id,
            job_id: start.job_id,
            attempt: start.attempt,
            rank: start.rank,
            secret: start.secret,
            version: VERSION.into(),
            ..Default::default()
        };
        let send = |message| outgoing.send(v1::RankMessage { message: Some(message) });
        send(Message::Hello(hello)).await.unwrap();
        let mut client = WorkersClient::connect(url).await.unwrap();
        let mut commands = client.rank(ReceiverStream::new(stream)).await.unwrap().into_inner();
        while let Ok(Some(command)) = commands.message().await {
            let Some(Command::Gang(run)) = command.command else { continue };
            if run.rank > 0 {
                continue;
            }
            while let Some((step, loss)) = steps.lock().await.recv().await {
                let metrics = vec![v1::Metric { name: "loss".into(), value: loss, se: None }];
                let phase = "r00.sft".to_owned();
                let report = v1::StepReport {
                    phase,
                    attempt: run.attempt,
                    step,
                    steps: 3,
                    metrics,
                    ..Default::default()
                };
                send(Message::Step(report)).await.unwrap();
            }
        }
    }
}

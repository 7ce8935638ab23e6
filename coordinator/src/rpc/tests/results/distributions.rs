//! Histograms of rewards, and the reliability diagram.

use foil_proto::v1::RewardSource;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distributions_cover_all_rounds() {
    let Finished { coordinator, mut client, .. } = finished(&[], |_| {}).await;
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
    coordinator.stop().await;
}

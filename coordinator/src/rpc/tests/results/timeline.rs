//! The timeline of phases and attempts.

use foil_proto::v1::SpanOutcome;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_timeline_covers_the_whole_job() {
    let Finished { coordinator, mut client, store } = finished(&[], |_| {}).await;
    let request = v1::GetTimelineRequest { job_id: JOB.into(), page_token: String::new() };
    let timeline = client.get_timeline(request.clone()).await.unwrap().into_inner();
    let planned = get(&mut coordinator.jobs().await).await.plan.unwrap().phases;
    assert!(timeline.spans.iter().map(|span| &span.phase).eq(planned.iter().map(|phase| &phase.id)));
    assert!(timeline.spans.iter().all(|span| span.outcome() == SpanOutcome::Committed));
    assert_eq!(timeline.attempts[0].end_class, "completed");
    coordinator.stop().await;
    // Another coordinator derives the same timeline from the log.
    let second = Coordinator::start(&store).await;
    let mut client = ResultsClient::new(second.channel().await);
    assert_eq!(client.get_timeline(request).await.unwrap().into_inner(), timeline);
    second.stop().await;
}

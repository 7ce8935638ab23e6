//! Listings and large jobs over the wire, with the default limits of gRPC clients.

use foil_proto::v1::job_event::Event;
use prost::Message;

use super::*;
use crate::job::{Submitted, pages};
use crate::plan::Phase;

/// Default message size limit of gRPC clients.
const CLIENT_LIMIT: usize = 4 << 20;

/// A job with more rounds than a submission may have.
fn long_job(id: &str, rounds: u32) -> Submitted {
    let mut job = Submitted { request_id: format!("request-{id}"), ..submitted(&[]) };
    let round: Vec<v1::PhasePlan> =
        job.plan.phases.iter().filter(|phase| phase.round == 1).cloned().collect();
    job.plan.phases.retain(|phase| phase.round == 0);
    for number in 1..=rounds {
        job.plan.phases.extend(round.iter().map(|phase| {
            let phase = Phase { round: number, ..Phase::try_from(phase).unwrap() };
            v1::PhasePlan::from(&Phase { id: Phase::id_of(number, phase.work), ..phase })
        }));
    }
    job.spec.get_or_insert_default().rounds = Some(rounds.min(1000));
    job
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_enormous_job_does_not_hide_the_others() {
    let coordinator = Coordinator::start(&Store::in_memory()).await;
    let mut client = coordinator.jobs().await;
    coordinator.handle.submit("j-long".into(), long_job("j-long", 20_000)).await.unwrap();
    coordinator
        .handle
        .submit("j1".into(), Submitted { request_id: "r-j1".into(), ..submitted(&[]) })
        .await
        .unwrap();

    let rows = client.list(v1::ListJobsRequest::default()).await.unwrap().into_inner().jobs;
    assert_eq!(rows.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["j1", "j-long"]);
    let job = client.get(v1::GetJobRequest { id: "j-long".into() }).await.unwrap().into_inner();
    assert_eq!(job.omitted, ["plan"]);
    assert!(job.phases_total > 100_000);
    let mut request = v1::ListPartsRequest { job_id: "j-long".into(), ..Default::default() };
    let mut phases = Vec::new();
    loop {
        let page = client.list_phases(request.clone()).await.unwrap().into_inner();
        assert!(page.encoded_len() <= pages::PAGE_BYTES + 64);
        phases.extend(page.phases);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(phases, long_job("j-long", 20_000).plan.phases);
    for (job_id, page_token, code) in [
        ("none", "", Code::NotFound),
        ("j1", "x", Code::InvalidArgument),
        ("j1", "1.x", Code::InvalidArgument),
    ] {
        let request =
            v1::ListPartsRequest { job_id: job_id.into(), page_token: page_token.into(), page_size: 0 };
        assert_eq!(client.list_artifacts(request).await.unwrap_err().code(), code);
    }

    client.cancel(v1::CancelJobRequest { id: "j-long".into() }).await.unwrap();
    let request = v1::WatchJobRequest { id: "j-long".into(), after_revision: 0 };
    let mut events = client.watch(request).await.unwrap().into_inner();
    while let Some(event) = events.message().await.unwrap() {
        assert!(event.encoded_len() < CLIENT_LIMIT / 2);
        assert!(!matches!(&event.event, Some(Event::Job(job)) if job.omitted.is_empty()));
    }
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_jobs_are_listed_and_found_by_name_and_by_id_prefix() {
    let coordinator = Coordinator::start(&Store::in_memory()).await;
    let mut client = coordinator.jobs().await;
    for number in 0..1000 {
        let mut job = long_job(&format!("{number:04}"), 150);
        job.spec.get_or_insert_default().name = format!("n{}", number % 100);
        coordinator.handle.submit(format!("{number:04}"), job).await.unwrap();
    }
    let request = v1::ListJobsRequest { page_size: 1000, ..Default::default() };
    let page = client.list(request).await.unwrap().into_inner();
    assert!(page.encoded_len() < CLIENT_LIMIT / 2, "{} bytes", page.encoded_len());
    assert_eq!((page.jobs.len(), page.next_page_token.as_str()), (1000, ""));

    let named = v1::ListJobsRequest { name: "n42".into(), page_size: 3, ..Default::default() };
    let page = client.list(named.clone()).await.unwrap().into_inner();
    assert_eq!(ids(&page), ["0942", "0842", "0742"]);
    let rest = v1::ListJobsRequest { page_token: page.next_page_token, page_size: 100, ..named };
    let page = client.list(rest).await.unwrap().into_inner();
    assert_eq!((page.jobs.len(), page.next_page_token.as_str()), (7, ""));
    let begun = v1::ListJobsRequest { id_prefix: "042".into(), ..Default::default() };
    let page = client.list(begun).await.unwrap().into_inner();
    assert_eq!((page.jobs.len(), page.next_page_token.as_str()), (10, ""));
    coordinator.stop().await;
}

fn ids(page: &v1::ListJobsResponse) -> Vec<&str> {
    page.jobs.iter().map(|job| job.id.as_str()).collect()
}

#[tokio::test]
async fn a_specification_too_large_for_messages_is_rejected() {
    let coordinator = Coordinator::start(&Store::in_memory()).await;
    let mut wrong = spec(&[]);
    wrong.sampling = Some(v1::SamplingSpec { stop: vec!["x".repeat(1000); 1000], ..Default::default() });
    let request = v1::SubmitRequest { spec: Some(wrong), request_id: "r".into(), dry_run: true };
    let refused = coordinator.jobs().await.submit(request).await.unwrap_err();
    assert_eq!((refused.code(), violation(&refused).as_str()), (Code::InvalidArgument, "spec"));
    coordinator.stop().await;
}

//! Every RPC by every role, in the caller's own tenant and in another, over real gRPC.

use foil_proto::v1::access_client::AccessClient;
use foil_proto::v1::artifacts_client::ArtifactsClient;
use foil_proto::v1::results_client::ResultsClient;
use foil_proto::v1::storage_client::StorageClient;
use foil_proto::v1::trackers_client::TrackersClient;

use tonic::service::interceptor::InterceptedService;

use super::super::listing;
use super::site::{Bearer, Identified, Site};
use super::*;
use crate::auth::Role;
use crate::rpc::auth::all_rpcs;

const VIEWER: &[Role] = &[Role::Viewer, Role::Submitter, Role::Operator, Role::Admin];
const SUBMITTER: &[Role] = &[Role::Submitter, Role::Operator, Role::Admin];
const OPERATOR: &[Role] = &[Role::Operator, Role::Admin];
const AGENT: &[Role] = &[Role::Agent];
const READERS: &[Role] = &[Role::Viewer, Role::Submitter, Role::Operator, Role::Admin, Role::Agent];
const WRITERS: &[Role] = &[Role::Submitter, Role::Operator, Role::Admin, Role::Agent];

/// The roles that may call an RPC, written down independently of the tested table. For an RPC of a service
/// that is not listed here, the table alone counts.
const EXPECTED: &[(&str, &[Role])] = &[
    ("/foil.v1.Access/WhoAmI", READERS),
    ("/foil.v1.Agents/ListAgents", OPERATOR),
    ("/foil.v1.Artifacts/BeginUpload", AGENT),
    ("/foil.v1.Artifacts/FinishUpload", AGENT),
    ("/foil.v1.Artifacts/Get", READERS),
    ("/foil.v1.Artifacts/Put", WRITERS),
    ("/foil.v1.Artifacts/Stat", READERS),
    ("/foil.v1.Jobs/Cancel", SUBMITTER),
    ("/foil.v1.Jobs/Delete", SUBMITTER),
    ("/foil.v1.Jobs/Get", VIEWER),
    ("/foil.v1.Jobs/List", VIEWER),
    ("/foil.v1.Jobs/ListArtifacts", VIEWER),
    ("/foil.v1.Jobs/ListPhases", VIEWER),
    ("/foil.v1.Jobs/ListRounds", VIEWER),
    ("/foil.v1.Jobs/Logs", VIEWER),
    ("/foil.v1.Jobs/Submit", SUBMITTER),
    ("/foil.v1.Jobs/Watch", VIEWER),
    ("/foil.v1.Results/GetCompletion", VIEWER),
    ("/foil.v1.Results/GetDistributions", VIEWER),
    ("/foil.v1.Results/GetSteps", VIEWER),
    ("/foil.v1.Results/GetTimeline", VIEWER),
    ("/foil.v1.Results/ListCompletions", VIEWER),
    ("/foil.v1.Storage/CollectGarbage", &[Role::Admin]),
    ("/foil.v1.Storage/Pin", SUBMITTER),
    ("/foil.v1.Storage/Unpin", SUBMITTER),
    ("/foil.v1.Storage/Usage", OPERATOR),
    ("/foil.v1.Workers/Agent", AGENT),
    ("/foil.v1.Workers/Rank", AGENT),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", READERS),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", READERS),
];

/// The status of a call with an empty message.
async fn call(service: Identified, path: &'static str) -> Status {
    let mut grpc = tonic::client::Grpc::new(service);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = axum::http::uri::PathAndQuery::from_static(path);
    let answer = async {
        let stream = grpc.server_streaming(tonic::Request::new(()), path, codec).await?;
        stream.into_inner().message().await.map(drop)
    };
    let answer = timeout(Duration::from_secs(30), answer).await.expect("an answer");
    answer.err().unwrap_or_else(|| Status::ok("answered"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rpc_is_reached_by_its_roles_and_by_no_other() {
    let site = Site::start().await;
    let refused = |status: &Status| match status.code() {
        Code::Unauthenticated => true,
        Code::PermissionDenied => {
            reason(status) == "ROLE_REQUIRED" && status.message().contains("this call needs")
        }
        _ => false,
    };
    for (path, access) in all_rpcs() {
        let expected = EXPECTED.iter().find(|(known, _)| *known == path).map(|(_, roles)| *roles);
        let is_open = path.starts_with("/grpc.health.");
        for (_, role, token) in &site.tokens {
            let status = call(site.bearing(Some(token)), path).await;
            let allowed = match expected {
                Some(roles) => roles.contains(role),
                None => access.allows(*role),
            };
            assert_eq!(!refused(&status), allowed, "{path} as {role}: {status:?}");
        }
        for (token, why) in [(None, "CREDENTIALS_MISSING"), (Some("foil_0000"), "CREDENTIALS_INVALID")] {
            // Only the first few wrong tokens are answered immediately.
            if token.is_some() && path != "/foil.v1.Jobs/Get" && !is_open {
                continue;
            }
            let status = call(site.bearing(token), path).await;
            match is_open {
                true => assert!(!refused(&status), "{path}: {status:?}"),
                false => {
                    assert_eq!(
                        (status.code(), reason(&status).as_str()),
                        (Code::Unauthenticated, why),
                        "{path}"
                    );
                }
            }
        }
    }
    let unknown = call(site.of("vision", Role::Admin), "/foil.v1.Jobs/Steal").await;
    assert_eq!(unknown.code(), Code::Unimplemented);
    assert_eq!(call(site.bearing(None), "/foil.v1.Jobs/Steal").await.code(), Code::Unauthenticated);
    site.coordinator.stop().await;
}

type Outcome = Result<(), Status>;

/// The calls that refer to a job, by name.
async fn job_calls(service: Identified, id: &str) -> Vec<(&'static str, Outcome)> {
    let (mut jobs, mut results) = (JobsClient::new(service.clone()), ResultsClient::new(service.clone()));
    let mut trackers = TrackersClient::new(service);
    let status = v1::GetTrackersRequest { job_id: id.into(), after_event_files: 0 };
    let job_id = || id.to_owned();
    let steps = v1::GetStepsRequest { job_id: job_id(), ..Default::default() };
    let listing = v1::ListCompletionsRequest { job_id: job_id(), ..Default::default() };
    let completion = v1::GetCompletionRequest { job_id: job_id(), ..Default::default() };
    let distributions = v1::GetDistributionsRequest { job_id: job_id(), ..Default::default() };
    let timeline = v1::GetTimelineRequest { job_id: job_id(), page_token: String::new() };
    // The job has no completions yet.
    let found = |outcome: Outcome| match outcome {
        Err(status) if status.code() == Code::InvalidArgument => Ok(()),
        outcome => outcome,
    };
    let part = || v1::ListPartsRequest { job_id: id.into(), ..Default::default() };
    let watch = v1::WatchJobRequest { id: id.into(), after_revision: 0 };
    vec![
        ("Get", jobs.get(v1::GetJobRequest { id: id.into() }).await.map(drop)),
        ("ListPhases", jobs.list_phases(part()).await.map(drop)),
        ("ListRounds", jobs.list_rounds(part()).await.map(drop)),
        ("ListArtifacts", jobs.list_artifacts(part()).await.map(drop)),
        ("Watch", jobs.watch(watch).await.map(drop)),
        ("Logs", jobs.logs(v1::LogsRequest { job_id: id.into(), ..Default::default() }).await.map(drop)),
        ("GetSteps", results.get_steps(steps).await.map(drop)),
        ("ListCompletions", results.list_completions(listing).await.map(drop)),
        ("GetCompletion", found(results.get_completion(completion).await.map(drop))),
        ("GetDistributions", results.get_distributions(distributions).await.map(drop)),
        ("GetTimeline", results.get_timeline(timeline).await.map(drop)),
        ("GetTrackers", trackers.get_trackers(status).await.map(drop)),
        ("Cancel", jobs.cancel(v1::CancelJobRequest { id: id.into() }).await.map(drop)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_of_another_tenant_does_not_exist() {
    let site = Site::start().await;
    for (id, tenant, owner) in [
        ("own", "vision", "vision-submitter"),
        ("their", "vision", "somebody"),
        ("foreign", "speech", "speech-submitter"),
    ] {
        site.submit(id, tenant, owner).await;
    }
    for role in VIEWER {
        let absent = job_calls(site.of("vision", *role), "absent").await;
        for id in ["own", "their", "foreign"] {
            let found = job_calls(site.of("vision", *role), id).await;
            for ((call, outcome), (_, absent)) in found.into_iter().zip(&absent) {
                let told = format!("{call} of {id} as {role}: {outcome:?}");
                let is_role_refused = call == "Cancel" && *role == Role::Viewer;
                match outcome {
                    Ok(()) => {
                        assert!(id != "foreign" || *role == Role::Admin, "{told}");
                        let others = call == "Cancel" && *role == Role::Submitter && id != "own";
                        assert!(!others && !is_role_refused, "{told}");
                    }
                    Err(status) if is_role_refused => assert_eq!(reason(&status), "ROLE_REQUIRED", "{told}"),
                    Err(status) if id == "foreign" => {
                        // Nothing distinguishes it from a job that never existed.
                        let never = absent.as_ref().unwrap_err();
                        assert_eq!(status.code(), Code::NotFound, "{told}");
                        assert_eq!(status.message().replace("foreign", "absent"), never.message(), "{told}");
                        assert_ne!(*role, Role::Admin, "{told}");
                    }
                    Err(status) => {
                        assert_eq!((call, *role, id), ("Cancel", Role::Submitter, "their"), "{told}");
                        assert_eq!(
                            (status.code(), reason(&status).as_str()),
                            (Code::PermissionDenied, "NOT_OWNER")
                        );
                        assert!(status.message().contains("somebody"), "{told}");
                    }
                }
            }
        }
    }
    site.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_request_ids_and_references_stay_within_the_tenant() {
    let site = Site::start().await;
    site.submit("j1", "vision", "vision-submitter").await;
    site.submit("j2", "speech", "speech-submitter").await;
    let list = async |tenant: &str, role: Role, request: v1::ListJobsRequest| {
        let page = site.jobs(tenant, role).list(request).await?.into_inner();
        Ok::<_, Status>(page.jobs.into_iter().map(|job| job.id).collect::<Vec<_>>())
    };
    let own = v1::ListJobsRequest::default();
    let speech = v1::ListJobsRequest { tenant: "speech".into(), ..own.clone() };
    let all = v1::ListJobsRequest { all_tenants: true, ..own.clone() };
    let by_id = v1::ListJobsRequest { id_prefix: "j2".into(), name: "tiny".into(), ..own.clone() };
    for role in VIEWER {
        assert_eq!(list("vision", *role, own.clone()).await.unwrap(), ["j1"], "{role}");
        assert!(list("vision", *role, by_id.clone()).await.unwrap().is_empty(), "{role}");
        let (speech, all) =
            (list("vision", *role, speech.clone()).await, list("vision", *role, all.clone()).await);
        if *role == Role::Admin {
            assert_eq!((speech.unwrap(), all.unwrap()), (vec!["j2".into()], vec!["j2".into(), "j1".into()]));
        } else {
            for refused in [speech, all] {
                assert_eq!(reason(&refused.unwrap_err()), "ROLE_REQUIRED", "{role}");
            }
        }
        // A page token refers to a job.
        let page_token = listing::token("j2", &listing::filters(&own));
        let page = v1::ListJobsRequest { page_token, ..own.clone() };
        assert_eq!(list("vision", *role, page).await.is_ok(), *role == Role::Admin);
    }
    // The same request id in another tenant is another request.
    let submit = |request_id: &str, model: Option<&str>| {
        let mut spec = spec(&[]);
        if let (Some(policy), Some(model)) = (&mut spec.policy, model) {
            (policy.model, policy.init) = (model.to_owned(), String::new());
        }
        v1::SubmitRequest { spec: Some(spec), request_id: request_id.into(), dry_run: false }
    };
    let mut vision = site.jobs("vision", Role::Submitter);
    let reused = vision.submit(submit("request-j1", None)).await.unwrap_err();
    assert_eq!(reason(&reused), "REQUEST_ID_REUSED");
    let other = vision.submit(submit("request-j2", None)).await.unwrap_err();
    assert_eq!(violation(&other), "spec.policy.model", "it is handled like a new one: {other:?}");
    // Neither by id nor by name.
    for job in ["j2", "absent"] {
        let refused = vision.submit(submit("r", Some(&format!("job:{job}/policy@1")))).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(&format!("there is no job {job}")), "{refused:?}");
    }
    site.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_another_tenant_do_not_exist() {
    let site = Site::start().await;
    site.submit("j1", "vision", "vision-submitter").await;
    site.submit("j2", "speech", "speech-submitter").await;
    let hash = "ab".repeat(32);
    for key in ["jobs/j1/data/x".to_owned(), "jobs/j2/data/x".to_owned(), format!("inputs/speech/{hash}")] {
        site.store.put_object(&key, b"x".as_slice().into()).await.unwrap();
    }
    for role in Role::ALL {
        let mut artifacts = ArtifactsClient::new(site.of("vision", role));
        for (key, found) in [
            ("jobs/j1/data/x".to_owned(), role != Role::Agent),
            ("jobs/j2/data/x".to_owned(), role == Role::Admin),
            (format!("inputs/{hash}"), false),
            (format!("inputs/speech/{hash}"), role == Role::Admin),
            ("meta/log/00000000000000000001".to_owned(), false),
        ] {
            let stat = artifacts.stat(v1::StatRequest { key: key.clone() }).await;
            let get = artifacts.get(v1::GetRequest { key: key.clone(), ..Default::default() }).await;
            let refused =
                [stat.map(drop), get.map(drop)].map(|answer| answer.err().map(|status| status.code()));
            let expected = match role {
                Role::Agent => Some(Code::PermissionDenied),
                _ => (!found).then_some(Code::NotFound),
            };
            assert_eq!(refused, [expected; 2], "{key} as {role}");
        }
    }
    site.coordinator.stop().await;
}

#[tokio::test]
async fn a_caller_learns_who_it_is_and_metrics_want_a_viewer() {
    let site = Site::start().await;
    let who = |service| async move {
        AccessClient::new(service).who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner()
    };
    let operator = who(site.of("speech", Role::Operator)).await;
    let expected = v1::WhoAmIResponse {
        name: "speech-operator".into(),
        tenant: "speech".into(),
        role: v1::Role::Operator.into(),
        credential: v1::Credential::Token.into(),
        expires_at: None,
    };
    assert_eq!(operator, expected);
    let open = Coordinator::start(&Store::in_memory()).await;
    let local = who(InterceptedService::new(open.channel().await, Bearer(None))).await;
    assert_eq!((local.role(), local.credential()), (v1::Role::Admin, v1::Credential::None));

    let token =
        |role: Role| site.tokens.iter().find(|(_, as_, _)| *as_ == role).map(|(_, _, token)| token.as_str());
    for (path, token, expected) in [
        ("/healthz", None, 200),
        ("/readyz", None, 200),
        ("/metrics", None, 401),
        ("/metrics", token(Role::Viewer), 200),
        ("/metrics", token(Role::Agent), 403),
        ("/nothing", None, 401),
        ("/nothing", token(Role::Viewer), 404),
    ] {
        assert_eq!(page(site.coordinator.address, path, token).await, expected, "{path}");
    }
    open.stop().await;
    site.coordinator.stop().await;
}

/// Status of a page.
async fn page(address: SocketAddr, path: &str, token: Option<&str>) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_pins_and_usage_stay_within_the_tenant() {
    let site = Site::start().await;
    for (id, tenant, owner) in [
        ("own", "vision", "vision-submitter"),
        ("their", "vision", "somebody"),
        ("foreign", "speech", "speech-submitter"),
    ] {
        site.submit(id, tenant, owner).await;
        site.store.put_object(&format!("jobs/{id}/data/sft.jsonl"), "x".into()).await.unwrap();
    }
    let delete = async |role: Role, id: &str| {
        let request = v1::DeleteJobRequest { id: id.into() };
        site.jobs("vision", role).delete(request).await.unwrap_err()
    };
    let pin = async |role: Role, id: &str| {
        let request = v1::PinRequest { job_id: id.into(), artifact: String::new() };
        StorageClient::new(site.of("vision", role)).pin(request).await
    };
    for role in [Role::Submitter, Role::Operator] {
        let (refused, never) = (delete(role, "foreign").await, delete(role, "absent").await);
        assert_eq!(refused.code(), Code::NotFound);
        assert_eq!(refused.message().replace("foreign", "absent"), never.message());
        assert_eq!(pin(role, "foreign").await.unwrap_err().code(), Code::NotFound);
        assert_eq!(reason(&delete(role, "own").await), "JOB_NOT_ENDED");
        let pinned = pin(role, "own").await.unwrap().into_inner();
        assert_eq!(pinned.pins[0].by, "vision-submitter", "the first pin stays");
    }
    assert_eq!(reason(&delete(Role::Submitter, "their").await), "NOT_OWNER");
    assert_eq!(reason(&pin(Role::Submitter, "their").await.unwrap_err()), "NOT_OWNER");
    assert_eq!(reason(&delete(Role::Operator, "their").await), "JOB_NOT_ENDED");

    let usage = async |role: Role| {
        let client = StorageClient::new(site.of("vision", role));
        let usage = { client }.usage(v1::UsageRequest { jobs: 9 }).await.unwrap().into_inner();
        let mut jobs: Vec<String> = usage.jobs.into_iter().map(|job| job.job_id).collect();
        jobs.sort();
        (jobs, usage.tenants.iter().any(|row| row.tenant != "vision"))
    };
    assert_eq!(usage(Role::Operator).await, (vec!["own".to_owned(), "their".to_owned()], false));
    assert_eq!(usage(Role::Admin).await.0, ["foreign", "own", "their"]);
    site.coordinator.stop().await;
}

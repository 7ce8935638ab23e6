use foil_proto::v1::tenants_client::TenantsClient;

use super::site::Site;
use super::*;
use crate::auth::Role;
use crate::tenant::Quota;

#[tokio::test]
async fn a_quota_answers_submissions_and_the_next_coordinator_has_it() {
    let store = Store::in_memory();
    let coordinator = Coordinator::start(&store).await;
    let mut tenants = TenantsClient::new(coordinator.channel().await);
    let quota = v1::Quota {
        devices: [("cuda".to_owned(), 4)].into(),
        queued_jobs: Some(0),
        stored_bytes: Some(1 << 40),
        ..Default::default()
    };
    let request = v1::SetQuotaRequest { tenant: "default".into(), quota: Some(quota.clone()) };
    let tenant = tenants.set_quota(request).await.unwrap().into_inner();
    assert_eq!((tenant.name.as_str(), tenant.quota.as_ref()), ("default", Some(&quota)));

    let request = v1::SubmitRequest { spec: Some(spec(&[])), request_id: "r1".into(), dry_run: false };
    let refusal = coordinator.jobs().await.submit(request).await.unwrap_err();
    assert_eq!(refusal.code(), Code::ResourceExhausted);
    let details = refusal.get_details_quota_failure().unwrap();
    assert_eq!(details.violations[0].subject, "tenant:default/queued_jobs");
    assert!(refusal.message().starts_with("tenant default has 0 jobs waiting and may have 0;"), "{refusal}");
    assert_eq!(refusal.get_details_error_info().unwrap().reason, "QUOTA_EXCEEDED");

    coordinator.stop().await;
    let next = Coordinator::start(&store).await;
    let mut tenants = TenantsClient::new(next.channel().await);
    let listed = tenants.list_tenants(v1::ListTenantsRequest::default()).await.unwrap().into_inner();
    assert_eq!((listed.tenants.as_slice(), listed.next_page_token.as_str()), (&[tenant][..], ""));
    let unknown = v1::SetQuotaRequest { tenant: "a b".into(), quota: Some(quota) };
    assert_eq!(tenants.set_quota(unknown).await.unwrap_err().code(), Code::InvalidArgument);
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_over_its_rate_is_told_when_to_come_back_and_others_are_not_held_up() {
    let site = Site::start().await;
    site.submit("j1", "vision", "vision-submitter").await;
    let rate = Quota { requests_per_second: Some(1), ..Quota::default() };
    site.coordinator.handle.set_quota("vision", rate).await.unwrap();
    let get = async |tenant: &str, role: Role| {
        site.jobs(tenant, role).get(v1::GetJobRequest { id: "j1".into() }).await
    };
    let mut refusals = Vec::new();
    for turn in 0..10 {
        let role = if turn % 2 == 0 { Role::Viewer } else { Role::Submitter };
        refusals.extend(get("vision", role).await.err());
    }
    assert!((4..=5).contains(&refusals.len()), "a burst of five, then one per second: {refusals:?}");
    let refusal = &refusals[0];
    assert_eq!((refusal.code(), reason(refusal).as_str()), (Code::ResourceExhausted, "RATE_EXCEEDED"));
    let details = refusal.get_error_details();
    let subject = &details.quota_failure().unwrap().violations[0].subject;
    assert_eq!(subject, "tenant:vision/requests_per_second");
    let wait = details.retry_info().unwrap().retry_delay.unwrap();
    assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1), "{wait:?}");
    for role in [Role::Operator, Role::Admin] {
        assert_eq!(get("vision", role).await.map(drop).map_err(|status| status.code()), Ok(()), "{role}");
    }
    for _ in 0..10 {
        let other = get("speech", Role::Viewer).await.unwrap_err();
        assert_eq!(other.code(), Code::NotFound, "it has no rate");
    }
    let audit = std::fs::read_to_string(site.directory.path().join("audit.jsonl")).unwrap_or_default();
    assert!(!audit.contains("RESOURCE_EXHAUSTED"), "{audit}");

    // The next leader gets the rate from the log.
    let store = site.store.clone();
    site.coordinator.stop().await;
    let next = Site::start_on(store).await;
    let mut viewer = next.jobs("vision", Role::Viewer);
    let mut refused = 0;
    for _ in 0..10 {
        refused += usize::from(viewer.get(v1::GetJobRequest { id: "j1".into() }).await.is_err());
    }
    assert!((4..=5).contains(&refused), "{refused}");
    next.coordinator.stop().await;
}

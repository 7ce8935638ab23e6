use foil_proto::v1::tenants_client::TenantsClient;

use super::*;

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

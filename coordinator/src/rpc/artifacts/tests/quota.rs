//! Uploads of inputs against a tenant's limit of stored bytes.

use super::super::upload_quota::UploadQuota;
use super::*;
use crate::auth::{Role, Source};
use crate::tenant::StoredBytes;
use crate::tenant::Tenant;

/// The tenant `limited` may store 1000 bytes, 100 of which its jobs use.
struct Limits;

#[tonic::async_trait]
impl AttemptCheck for Limits {
    fn current_attempt(&self, _: &str) -> Option<u32> {
        None
    }

    fn is_rank(&self, _: &str, _: &str, _: &str) -> bool {
        false
    }

    async fn log_writer(&self, _: &str, _: &str, _: &str) -> Option<(u32, u32)> {
        None
    }

    fn rank_job(&self, _: &str, _: &str) -> Option<String> {
        None
    }

    async fn tenant_of(&self, _: &str) -> Result<Option<String>, Status> {
        Ok(None)
    }

    async fn starts_from(&self, _: &str, _: &str) -> Result<bool, Status> {
        Ok(false)
    }

    async fn stored_bytes(&self, tenant: &Tenant) -> Result<Option<StoredBytes>, Status> {
        Ok((tenant.as_str() == "limited").then_some(StoredBytes { stored: 100, max: 1000 }))
    }
}

/// Bytes below `inputs/`, over all tenants.
async fn stored(store: &Store) -> u64 {
    store.list("inputs").await.unwrap().into_iter().map(|listed| listed.size).sum()
}

#[tokio::test]
async fn an_upload_over_the_quota_is_refused_before_a_byte_is_stored() {
    let store = Store::in_memory();
    let tenant: Tenant = "limited".parse().unwrap();
    let principal =
        Principal { name: "ada".into(), tenant, role: Role::Submitter, source: Source::Token, expires: None };
    let server = serve(principal, store.clone(), Limits).await;
    upload_input_bytes(&server, body(300, 31)).await.unwrap();
    let before = stored(&store).await;
    let Err(TransferError::Refused { status, .. }) = upload_input_bytes(&server, body(700, 32)).await else {
        panic!("it is over the quota, and no retry helps")
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "QUOTA_EXCEEDED");
    assert_eq!(details.quota_failure().unwrap().violations[0].subject, "tenant:limited/stored_bytes");
    assert!(status.message().contains("700 bytes"), "{status:?}");
    assert_eq!(stored(&store).await, before, "nothing was stored");
    upload_input_bytes(&server, body(300, 31)).await.unwrap();
    assert_eq!(stored(&store).await, before, "the object already existed");
    upload_input_bytes(&server, body(200, 33)).await.unwrap();
}

#[tokio::test]
async fn uploads_in_progress_count_and_deleted_inputs_do_not() {
    let (store, tenant): (_, Tenant) = (Store::in_memory(), "limited".parse().unwrap());
    let quota = UploadQuota::always_listing(store.clone());
    let admit = async |size| quota.admit(&tenant, size, &Limits).await;
    // Inputs of this tenant and of two others.
    for (key, size) in [("inputs/limited/a", 300), ("inputs/b", 5000), ("inputs/limitedly/c", 5000)] {
        store.create(key, body(size, 34)).await.unwrap();
    }
    let first = admit(400).await.unwrap().unwrap();
    assert!(admit(201).await.is_err(), "300 bytes are stored, 400 in progress, and 100 used by jobs");
    let second = admit(200).await.unwrap();
    drop(second);
    let third = admit(200).await.unwrap().unwrap();
    drop((first, third));
    let kept = admit(400).await.unwrap().unwrap();
    store.create("inputs/limited/d", body(400, 35)).await.unwrap();
    kept.stored();
    assert!(admit(201).await.is_err());
    store.delete("inputs/limited/a").await.unwrap();
    admit(500).await.unwrap().expect("the garbage is gone");
    assert!(quota.admit(&Tenant::default(), u64::MAX, &Limits).await.unwrap().is_none(), "no limit");
    assert!(admit(u64::MAX).await.is_err());
}

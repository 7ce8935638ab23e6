//! Access to objects of other tenants and to objects of ranks.

use super::*;
use crate::auth::{Role, Source};

fn principal(tenant: &str, role: Role) -> Principal {
    let tenant = tenant.parse().unwrap();
    Principal { name: "ada".into(), tenant, role, source: Source::Token, expires: None }
}

#[tokio::test]
async fn an_upload_exists_for_its_own_tenant_only() {
    let store = Store::in_memory();
    let bytes = body(10, 21);
    let vision = server_for(principal("vision", Role::Submitter), store.clone()).await;
    let object = upload_input_bytes(&vision.channel, bytes.clone()).await.unwrap();
    assert_eq!(object.key, input_key(&object.blake3), "clients know a single key");
    assert_eq!(download_bytes(&vision.channel, &object).await.unwrap(), bytes);
    let stored = format!("inputs/vision/{}", object.blake3);
    store.stat_object(&stored).await.unwrap();
    for tenant in ["default", "speech"] {
        let other = server_for(principal(tenant, Role::Operator), store.clone()).await;
        for key in [&object.key, &stored] {
            assert_eq!(stat(&other.channel, key).await.unwrap(), None, "{tenant} {key}");
            let wrong = v1::Object { key: key.clone(), ..object.clone() };
            let refused = download_bytes(&other.channel, &wrong).await.unwrap_err();
            assert!(matches!(refused, TransferError::NotFound { .. }), "{tenant} {key}: {refused}");
        }
    }
    let admin = server_for(principal("default", Role::Admin), store.clone()).await;
    assert!(stat(&admin.channel, &stored).await.unwrap().is_some());
    // Objects without a tenant in their key belong to the default tenant.
    store.put_object("inputs/old", body(3, 22)).await.unwrap();
    for (tenant, finds) in [("default", true), ("vision", false)] {
        let server = server_for(principal(tenant, Role::Viewer), store.clone()).await;
        assert_eq!(stat(&server.channel, "inputs/old").await.unwrap().is_some(), finds, "{tenant}");
    }
}

#[tokio::test]
async fn a_jobs_objects_exist_for_its_tenant_and_for_its_ranks() {
    let store = Store::in_memory();
    for key in [KEY, "jobs/j0/phases/p/model", "jobs/j2/data/x", "inputs/x", "inputs/vision/x"] {
        store.put_object(key, body(3, 23)).await.unwrap();
    }
    let finds = async |server: &TestServer, key: &str| stat(&server.channel, key).await.unwrap().is_some();
    for (tenant, role, found) in
        [("vision", Role::Viewer, true), ("default", Role::Operator, false), ("default", Role::Admin, true)]
    {
        let server = server_for(principal(tenant, role), store.clone()).await;
        assert_eq!(finds(&server, KEY).await, found, "{tenant} {role}");
        assert_eq!(finds(&server, "jobs/j2/data/x").await, role == Role::Admin, "there is no such job");
    }
    let agent = server_for(principal("default", Role::Agent), store.clone()).await;
    let agents = TestServer { channel: agent.channel.clone().as_rank("s1", "s3cret"), ..agent };
    for (key, found) in [
        (KEY, true),
        ("jobs/j0/phases/p/model", true),
        ("jobs/j2/data/x", false),
        ("inputs/x", false),
        ("inputs/vision/x", false),
    ] {
        assert_eq!(finds(&agents, key).await, found, "{key}");
    }
    let anyone = agents.channel.separate().unwrap();
    for channel in [anyone.clone().as_rank("s1", "wrong"), anyone.as_rank("s2", "s3cret")] {
        let Err(TransferError::Refused { status, .. }) = stat(&channel, KEY).await else { panic!("read") };
        assert_eq!(status.code(), Code::PermissionDenied);
    }
}

#[tokio::test]
async fn users_and_ranks_write_their_own_kind_of_objects_only() {
    let store = Store::in_memory();
    let user = server_for(principal("vision", Role::Admin), store.clone()).await;
    let agent = server_for(principal("vision", Role::Agent), store.clone()).await;
    let refused = upload_bytes(&user.channel, KEY, &rank("j1", 3), body(9, 24)).await;
    assert!(
        matches!(&refused, Err(TransferError::Refused { status, .. }) if status.code() == Code::PermissionDenied)
    );
    let refused = upload_input_bytes(&agent.channel, body(9, 24)).await;
    assert!(
        matches!(&refused, Err(TransferError::Refused { status, .. }) if status.code() == Code::PermissionDenied)
    );
    upload_input_bytes(&user.channel, body(9, 24)).await.unwrap();
    upload_bytes(&agent.channel, KEY, &rank("j1", 3), body(9, 24)).await.unwrap();
}

//! The audit log over real gRPC.

use std::fs;

use super::site::Site;
use super::*;
use crate::auth::Role;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_and_refusals_are_audited_and_reads_are_not() {
    let site = Site::start().await;
    for (id, tenant, owner) in
        [("own", "vision", "vision-submitter"), ("their", "vision", "somebody"), ("foreign", "speech", "x")]
    {
        site.submit(id, tenant, owner).await;
    }
    let cancel = |id: &str| v1::CancelJobRequest { id: id.into() };
    let mut submitter = site.jobs("vision", Role::Submitter);
    submitter.get(v1::GetJobRequest { id: "own".into() }).await.unwrap();
    submitter.cancel(cancel("own")).await.unwrap();
    submitter.cancel(cancel("their")).await.unwrap_err();
    submitter.cancel(cancel("foreign")).await.unwrap_err();
    let request = v1::SubmitRequest { spec: Some(spec(&[])), request_id: "r9".into(), dry_run: false };
    submitter.submit(request).await.unwrap_err();
    site.jobs("vision", Role::Viewer).cancel(cancel("own")).await.unwrap_err();
    for token in [None, Some("foil_guessed")] {
        JobsClient::new(site.bearing(token)).get(v1::GetJobRequest { id: "own".into() }).await.unwrap_err();
    }
    let path = site.directory.path().join("audit.jsonl");
    let text = loop {
        let text = fs::read_to_string(&path).unwrap_or_default();
        if text.lines().count() >= 7 {
            break text;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = |line: &serde_json::Value| {
        let field = |name: &str| line.get(name).and_then(|value| value.as_str()).unwrap_or("-").to_owned();
        assert!(field("peer").starts_with("127.0.0.1:") && field("time").ends_with('Z'), "{line}");
        let method = field("method").replace("/foil.v1.Jobs/", "");
        [field("principal"), method, field("resource"), field("outcome"), field("reason")].join(" ")
    };
    let found: Vec<String> = lines.iter().map(told).collect();
    let expected = [
        "vision-submitter Cancel job/own OK -",
        "vision-submitter Cancel job/their PERMISSION_DENIED NOT_OWNER",
        "vision-submitter Cancel job/foreign NOT_FOUND JOB_NOT_FOUND",
        "vision-submitter Submit - INVALID_ARGUMENT INVALID_FIELD",
        "vision-viewer Cancel - PERMISSION_DENIED ROLE_REQUIRED",
        "- Get - UNAUTHENTICATED CREDENTIALS_MISSING",
        "- Get - UNAUTHENTICATED CREDENTIALS_INVALID",
    ];
    assert_eq!(found, expected);
    assert_eq!((&lines[0]["tenant"], &lines[0]["role"]), (&"vision".into(), &"submitter".into()));
    assert!(!text.contains("foil_"), "no token is in it: {text}");
    site.coordinator.stop().await;
}

//! Runs the conformance suite on every kind of store. A store that fails it is rejected.

use std::process::Command;

use foil_common::storage::Store;
use foil_tests::{FaultProxy, Faults, StoreServer, check_store, foil};

const STORE: &str = "FOIL_TEST_STORE";

#[tokio::test]
async fn memory_conforms() {
    check_store(&Store::open("memory:///").expect("it opens")).await;
}

#[tokio::test]
async fn a_directory_conforms() {
    let directory = tempfile::tempdir().expect("a directory");
    check_store(&Store::open(directory.path().to_str().expect("UTF-8")).expect("it opens")).await;
}

/// Credentials come from the environment, so each server is tested in a separate process.
#[tokio::test]
#[ignore = "run by the tests of S3 and Azure"]
async fn the_store_that_the_environment_names_conforms() {
    let url = std::env::var(STORE).expect("the store's URL");
    check_store(&Store::open(&url).expect("it opens")).await;
}

fn conforms_in_a_process_of_its_own(server: &StoreServer) {
    let mut test = Command::new(std::env::current_exe().expect("this program"));
    test.args(["--exact", "the_store_that_the_environment_names_conforms", "--ignored"]);
    test.env(STORE, server.url()).envs(server.environment(server.address()));
    let output = test.output().expect("it starts");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("1 passed"), "the test must run: {told}");
}

#[test]
fn s3_conforms() {
    let Some(server) = StoreServer::s3() else { return };
    conforms_in_a_process_of_its_own(&server);
}

#[test]
fn azure_conforms() {
    let Some(server) = StoreServer::azure() else { return };
    conforms_in_a_process_of_its_own(&server);
}

#[test]
fn a_coordinator_refuses_a_store_that_forgets_conditions() {
    let Some(server) = StoreServer::s3() else { return };
    let proxy = FaultProxy::start(server.address(), 0).expect("a proxy");
    proxy.set(Faults { forget_conditions: true, ..Faults::default() });
    let mut serve = Command::new(foil());
    serve.args(["serve", "--listen", "127.0.0.1:0", "--store", server.url()]);
    let output = serve.envs(server.environment(proxy.address())).output().expect("foil starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("let the same key be created twice"), "{told}");
}

//! Tokens, roles and tenants across the programs that users run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use foil_tests::{Ca, Process, Service, foil, foil_worker, wait_for};

/// The token and the line for the coordinator's file, as printed by `foil token create`.
fn create(arguments: &[&str]) -> (String, String) {
    let output =
        Command::new(foil()).args(["token", "create"]).args(arguments).output().expect("foil starts");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}");
    let lines: Vec<&str> = told.lines().collect();
    (lines[1].to_owned(), lines[4].to_owned())
}

/// Replaces a file that only its owner can read.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("a file");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("a mode");
    fs::rename(new, path).expect("a rename");
}

/// Creates a principal. Returns the file with its token, and its line.
fn principal(directory: &Path, name: &str, tenant: &str, role: &str) -> (PathBuf, String) {
    let (token, line) = create(&["--name", name, "--tenant", tenant, "--role", role, "--expires", "30d"]);
    assert!(!line.contains(&token));
    let path = directory.join(name);
    replace(&path, &token);
    (path, line)
}

/// The client with this token.
fn with(token: &Path) -> Command {
    let mut command = Command::new(foil());
    command.env("FOIL_TOKEN_FILE", token);
    command
}

/// The success and the output of a client's command.
fn ask(url: &str, mut command: Command, arguments: &[&str]) -> (bool, String) {
    let output = command.args(arguments).env("FOIL_COORDINATOR", url).output().expect("foil starts");
    let told = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&told).into_owned())
}

#[test]
fn a_job_runs_for_one_tenant_by_tokens() {
    let directory = tempfile::tempdir().expect("a directory");
    let dir = directory.path();
    let (ada, of_ada) = principal(dir, "ada", "vision", "submitter");
    let (eve, of_eve) = principal(dir, "eve", "speech", "operator");
    let (machine, of_machine) = principal(dir, "gpu-1", "default", "agent");
    let tokens = dir.join("tokens");
    replace(&tokens, &format!("# a comment\n{of_ada}\n{of_eve}\n{of_machine}\n"));
    let mut serve = Command::new(foil());
    serve.env("FOIL_SERVER_TOKEN_FILE", &tokens);
    let (service, _coordinator) = Service::start(serve, "127.0.0.1");
    let url = service.url().to_owned();
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", &url, "--ranks", "2", "--token-file"]).arg(&machine);
    let _agent = Process::start(agent, &service.at("agent.log"));

    let id = service.submit_letters(with(&ada));
    let (succeeded, told) = ask(&url, with(&ada), &["watch", &id, "--json"]);
    assert!(succeeded && told.contains("\"succeeded\""), "{told}\n{}", service.log("agent.log"));
    assert!(!service.weights(with(&ada), &id, "policy@1").is_empty());
    let (_, told) = ask(&url, with(&ada), &["list", "-o", "wide"]);
    assert!(told.contains(&id) && told.contains("vision") && told.contains("ada"), "{told}");

    // Another tenant sees nothing of it, whichever command it uses.
    for arguments in [&["get", &id][..], &["watch", &id], &["cancel", &id], &["artifacts", &id]] {
        let (succeeded, told) = ask(&url, with(&eve), arguments);
        assert!(!succeeded && told.contains(&format!("there is no job {id}")), "{arguments:?}: {told}");
    }
    let (succeeded, told) = ask(&url, with(&eve), &["list", "-o", "name"]);
    assert!(succeeded && told.trim().is_empty(), "{told}");
    let (_, told) = ask(&url, with(&eve), &["list", "--all-tenants"]);
    assert!(told.contains("only an admin"), "{told}");
    let (_, told) = ask(&url, with(&machine), &["list"]);
    assert!(told.contains("gpu-1 has the role agent"), "{told}");
    let (_, told) = ask(&url, Command::new(foil()), &["list"]);
    assert!(told.contains("requires a token") && told.contains("--token-file"), "{told}");
    let mut user = Command::new(foil_worker());
    user.args(["--coordinator", &url, "--token-file"]).arg(&ada);
    let user = Process::start(user, &service.at("user.log"));
    assert!(!user.finish().success());
    assert!(service.log("user.log").contains("needs agent"), "{}", service.log("user.log"));

    // Revoked, then renewed.
    replace(&tokens, &format!("{of_eve}\n{of_machine}\n"));
    wait_for("the end of the token", || {
        let (succeeded, told) = ask(&url, with(&ada), &["whoami"]);
        (!succeeded && told.contains("does not know it")).then_some(())
    });
    let (ada, of_ada) = principal(dir, "ada", "vision", "viewer");
    replace(&tokens, &of_ada);
    wait_for("the new token", || {
        let (succeeded, told) = ask(&url, with(&ada), &["whoami", "-o", "yaml"]);
        (succeeded && told.contains("role: viewer") && told.contains("expires_at: 2")).then_some(())
    });
    let log = service.log("serve.log") + &service.log("agent.log");
    assert!(!log.contains("foil_"), "no token is logged: {log}");
}

#[test]
fn a_token_stays_out_of_clear_text_and_of_files_that_others_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let (ada, line) = principal(directory.path(), "ada", "vision", "viewer");
    let (succeeded, told) = ask("http://192.0.2.1:7070", with(&ada), &["list"]);
    assert!(!succeeded && told.contains("clear text"), "{told}");
    fs::set_permissions(&ada, fs::Permissions::from_mode(0o644)).expect("a mode");
    let (succeeded, told) = ask("http://127.0.0.1:1", with(&ada), &["list"]);
    assert!(!succeeded && told.contains(&format!("chmod 600 {}", ada.display())), "{told}");

    let tokens = directory.path().join("tokens");
    let serve = |arguments: &[&str]| {
        let mut command = Command::new(foil());
        command.args(["serve", "--store", "memory:", "--token-file"]).arg(&tokens).args(arguments);
        ask("", command, &[])
    };
    replace(&tokens, &format!("{line}\neve vision root blake3:00\nnonsense\n"));
    let (succeeded, told) = serve(&["--listen", "127.0.0.1:0"]);
    assert!(
        !succeeded && told.contains("line 2: \"root\" is no role") && told.contains("line 3: "),
        "{told}"
    );
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o644)).expect("a mode");
    let (succeeded, told) = serve(&["--listen", "127.0.0.1:0"]);
    assert!(!succeeded && told.contains("chmod 600"), "{told}");
    replace(&tokens, &line);
    let (succeeded, told) = serve(&["--listen", "0.0.0.0:0"]);
    assert!(!succeeded && told.contains("read tokens") && told.contains("--tls-cert"), "{told}");
}

#[test]
fn beyond_loopback_a_coordinator_wants_tls_and_tokens_or_says_what_it_gives_away() {
    let directory = tempfile::tempdir().expect("a directory");
    let (ada, line) = principal(directory.path(), "ada", "vision", "viewer");
    let tokens = directory.path().join("tokens");
    replace(&tokens, &line);
    let ca = Ca::new(directory.path(), "ca");
    let server = ca.sign("server", "127.0.0.1");
    let mut secure = Command::new(foil());
    secure.env("FOIL_SERVER_TLS_CERT", &server.certificate).env("FOIL_SERVER_TLS_KEY", &server.key);
    secure.env("FOIL_SERVER_TOKEN_FILE", &tokens);
    let (service, _coordinator) = Service::start(secure, "0.0.0.0");
    assert!(!service.log("serve.log").contains("--insecure-listen"), "{}", service.log("serve.log"));
    let url = service.url().replace("http://0.0.0.0", "https://127.0.0.1");
    let mut client = with(&ada);
    client.env("FOIL_TLS_CA", ca.path());
    let (succeeded, told) = ask(&url, client, &["whoami"]);
    assert!(succeeded && told.contains("vision"), "{told}");

    let (open, _open) = Service::start(Command::new(foil()), "0.0.0.0");
    let log = open.log("serve.log");
    let told: Vec<&str> = log.lines().filter(|line| line.contains("--insecure-listen")).collect();
    assert!(told.len() == 1 && told[0].contains("WARN") && told[0].contains("run jobs"), "{log}");
}

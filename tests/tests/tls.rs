//! TLS and client certificates across the programs that users run.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use foil_tests::{Ca, Certificate, Process, Service, foil, foil_worker, wait_for};

/// `foil serve` with this certificate, and with this CA for client certificates.
fn serve(server: &Certificate, client_ca: Option<&Path>) -> Command {
    let mut command = Command::new(foil());
    command.env("FOIL_SERVER_TLS_CERT", &server.certificate).env("FOIL_SERVER_TLS_KEY", &server.key);
    if let Some(ca) = client_ca {
        command.env("FOIL_SERVER_TLS_CLIENT_CA", ca);
    }
    command
}

fn https(service: &Service) -> String {
    service.url().replace("http://", "https://")
}

/// Runs a client command with these TLS files. Returns whether it succeeded, and its output.
fn client(url: &str, arguments: &[&str], files: &[(&str, &Path)]) -> (bool, String) {
    let mut command = Command::new(foil());
    command.args(arguments).env("FOIL_COORDINATOR", url);
    for (option, file) in files {
        command.arg(option).arg(file);
    }
    let output = command.output().expect("foil starts");
    let told = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&told).into_owned())
}

fn assert_refused(url: &str, files: &[(&str, &Path)], advice: &str) {
    let (succeeded, told) = client(url, &["list"], files);
    assert!(!succeeded && told.contains(advice), "{url} with {files:?}: {told}");
}

#[test]
fn a_job_runs_under_mutual_tls() {
    let dir = tempfile::tempdir().expect("a directory");
    let ca = Ca::new(dir.path(), "ca");
    let server = ca.sign("server", "127.0.0.1");
    let (service, _coordinator) = Service::start(serve(&server, Some(&ca.path())), "127.0.0.1");
    let (url, ca_file) = (https(&service), ca.path());
    let own = ca.sign_as("client", ["ada", "vision", "submitter"]);
    let machine = ca.sign_as("agent", ["gpu-1", "default", "agent"]);
    let files: [(&str, &Path); 3] =
        [("--tls-ca", &ca_file), ("--tls-cert", &own.certificate), ("--tls-key", &own.key)];
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", &url, "--ranks", "2"]);
    let machine: [(&str, &Path); 3] =
        [files[0], ("--tls-cert", &machine.certificate), ("--tls-key", &machine.key)];
    agent.args(machine.iter().flat_map(|(option, file)| [OsStr::new(option), file.as_os_str()]));
    let _agent = Process::start(agent, &service.at("agent.log"));

    let with_files = || {
        let mut command = Command::new(foil());
        command
            .env("FOIL_TLS_CA", files[0].1)
            .env("FOIL_TLS_CERT", files[1].1)
            .env("FOIL_TLS_KEY", files[2].1);
        command
    };
    let mut submit = with_files();
    submit.args(["submit", foil_tests::letters_job(), "--coordinator", &url, "--set", "resources.ranks=2"]);
    submit.args(foil_tests::SMALL.iter().flat_map(|assignment| ["--set", assignment]));
    let output = submit.output().expect("foil starts");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (succeeded, told) = client(&url, &["watch", &id, "--json"], &files);
    assert!(succeeded && told.contains("\"succeeded\""), "{told}\n{}", service.log("agent.log"));
    let results = service.at("results");
    let (succeeded, told) = client(&url, &["pull", &id, results.to_str().expect("UTF-8")], &files);
    assert!(succeeded, "{told}");

    let (succeeded, told) = client(&url, &["whoami", "-o", "json"], &files);
    assert!(succeeded && told.contains("\"tenant\":\"vision\"") && told.contains("submitter"), "{told}");
    assert_refused(&url, &machine, "needs viewer");
    let nobody = ca.sign("nobody", "client");
    let nobody =
        [files[0], ("--tls-cert", nobody.certificate.as_path()), ("--tls-key", nobody.key.as_path())];
    assert_refused(&url, &nobody, "names no principal");
    // Without a certificate, and with one from another CA.
    assert_refused(&url, &files[..1], "requires a client certificate");
    let stranger = Ca::new(dir.path(), "other").sign("stranger", "client");
    let strange =
        [files[0], ("--tls-cert", stranger.certificate.as_path()), ("--tls-key", stranger.key.as_path())];
    assert_refused(&url, &strange, "certificate");
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", &url, "--tls-ca"]).arg(&ca_file);
    let agent = Process::start(agent, &service.at("refused.log"));
    assert!(!agent.finish().success());
    assert!(service.log("refused.log").contains("--tls-cert"), "{}", service.log("refused.log"));
    assert_eq!(page(&url, &ca_file, "/healthz"), 200, "probes have no certificate");
    assert_eq!(page(&url, &ca_file, "/metrics"), 401);
    assert_eq!(probe(&url, "/healthz"), (true, String::new()));
    let (healthy, told) = probe(&url, "/metrics");
    assert!(!healthy && told.contains("status 401"), "{told}");
    let (healthy, told) = probe(&url.replace("https://", "http://"), "/healthz");
    assert!(!healthy && told.contains("write https://"), "{told}");
}

/// Runs `foil probe`, which needs no TLS files. Returns whether it succeeded, and its output.
fn probe(url: &str, path: &str) -> (bool, String) {
    let output = Command::new(foil()).args(["probe", &format!("{url}{path}")]).output().expect("foil starts");
    let told = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&told).into_owned())
}

/// The status of a page for a client without a certificate.
fn page(url: &str, ca: &Path, path: &str) -> u16 {
    let output = Command::new("curl")
        .args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--http1.1", "--cacert"])
        .arg(ca)
        .arg(format!("{url}{path}"))
        .output()
        .expect("curl starts");
    String::from_utf8_lossy(&output.stdout).parse().expect("a status")
}

#[test]
fn what_is_wrong_with_a_certificate_is_said() {
    let dir = tempfile::tempdir().expect("a directory");
    let ca = Ca::new(dir.path(), "ca");
    let (service, _coordinator) = Service::start(serve(&ca.sign("server", "127.0.0.1"), None), "127.0.0.1");
    let expired = ca.sign_until("expired", "127.0.0.1", 2001);
    let (late, _late) = Service::start(serve(&expired, None), "127.0.0.1");
    let elsewhere = ca.sign("elsewhere", "example.com");
    let (named, _named) = Service::start(serve(&elsewhere, None), "127.0.0.1");
    let (plain, _plain) = Service::start(Command::new(foil()), "127.0.0.1");
    let (right, wrong) = (ca.path(), Ca::new(dir.path(), "wrong").path());
    let nothing = dir.path().join("nothing");

    let (succeeded, told) = client(&https(&service), &["list"], &[("--tls-ca", &right)]);
    assert!(succeeded, "{told}");
    let cases: [(&str, &Path, &str); 6] = [
        (&https(&service), &wrong, "--tls-ca"),
        (&https(&service), &nothing, "cannot read"),
        (service.url(), &right, "https://"),
        (&https(&plain), &right, "use http://"),
        (&https(&late), &right, "has expired"),
        (&https(&named), &right, "for another host"),
    ];
    std::thread::scope(|scope| {
        for (url, ca, advice) in cases {
            scope.spawn(move || assert_refused(url, &[("--tls-ca", ca)], advice));
        }
    });
}

#[test]
fn a_new_certificate_is_used_without_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let (old, new) = (Ca::new(dir.path(), "old"), Ca::new(dir.path(), "new"));
    let files = old.sign("server", "127.0.0.1");
    let (service, _coordinator) = Service::start(serve(&files, None), "127.0.0.1");
    let url = https(&service);
    let succeeds = |ca: &Ca| client(&url, &["list"], &[("--tls-ca", &ca.path())]).0;
    assert!(succeeds(&old));

    fs::write(&files.certificate, "nonsense").expect("a file");
    wait_for("the error", || service.log("serve.log").contains("cannot reload").then_some(()));
    assert!(succeeds(&old), "the last good certificate stays");
    new.sign("server", "127.0.0.1");
    wait_for("the new certificate", || service.log("serve.log").contains("reloaded the TLS").then_some(()));
    assert!(succeeds(&new));
}

#[test]
fn a_revoked_certificate_is_refused_without_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let ca = Ca::new(dir.path(), "ca");
    let (ada, bob) =
        (ca.sign_as("ada", ["ada", "vision", "submitter"]), ca.sign_as("bob", ["bob", "vision", "viewer"]));
    let mut command = serve(&ca.sign("server", "127.0.0.1"), Some(&ca.path()));
    command.env("FOIL_SERVER_TLS_CRL", ca.revoke(&[]));
    let (service, _coordinator) = Service::start(command, "127.0.0.1");
    let (url, ca_file) = (https(&service), ca.path());
    fn files<'a>(ca: &'a Path, own: &'a Certificate) -> [(&'a str, &'a Path); 3] {
        [("--tls-ca", ca), ("--tls-cert", &own.certificate), ("--tls-key", &own.key)]
    }
    let ask = |own: &Certificate| client(&url, &["whoami"], &files(&ca_file, own));
    for own in [&ada, &bob] {
        let (succeeded, told) = ask(own);
        assert!(succeeded, "{told}");
    }
    let (submitted, told) = client(&url, &["submit", foil_tests::letters_job()], &files(&ca_file, &ada));
    assert!(submitted, "{told}");
    let watch = |own: &Certificate, log: &str| {
        let mut command = Command::new(foil());
        command.args(["watch", "letters", "--coordinator", &url]);
        for (option, file) in files(&ca_file, own) {
            command.arg(option).arg(file);
        }
        let watch = Process::start(command, &service.at(log));
        wait_for("the first event", || (!service.log(log).is_empty()).then_some(()));
        watch
    };
    let (ended, mut goes_on) = (watch(&ada, "ada.log"), watch(&bob, "bob.log"));
    ca.revoke(&[&ada]);
    wait_for("the new list", || service.log("serve.log").contains("reloaded the TLS").then_some(()));
    let (succeeded, told) = ask(&ada);
    assert!(!succeeded && told.contains("certificate"), "{told}");
    let (succeeded, told) = ask(&bob);
    assert!(succeeded, "{told}");
    assert!(!ended.finish().success());
    let told = service.log("ada.log");
    assert!(told.contains("the client certificate is not accepted") && told.contains("Revoked"), "{told}");
    assert!(goes_on.is_running(), "{}", service.log("bob.log"));
}

#[test]
fn a_handshake_that_does_not_go_on_delays_nobody_and_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let ca = Ca::new(dir.path(), "ca");
    let (service, _coordinator) = Service::start(serve(&ca.sign("server", "127.0.0.1"), None), "127.0.0.1");
    let address = service.url().trim_start_matches("http://").to_owned();
    let began = Instant::now();
    let silent: Vec<TcpStream> = (0..20)
        .map(|number| {
            let mut socket = TcpStream::connect(&address).expect("a connection");
            // Half of them start a handshake.
            if number % 2 == 0 {
                socket.write_all(b"\x16\x03\x01").expect("a write");
            }
            socket
        })
        .collect();
    let (succeeded, told) = client(&https(&service), &["list"], &[("--tls-ca", &ca.path())]);
    assert!(succeeded && began.elapsed() < Duration::from_secs(10), "{told}");
    for mut socket in silent {
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        // An error also ends the connection, unless it is a timeout.
        if let Err(error) = socket.read_to_end(&mut Vec::new()) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it stays open");
        }
    }
}

#[test]
fn beyond_loopback_tls_alone_is_not_enough() {
    let dir = tempfile::tempdir().expect("a directory");
    let ca = Ca::new(dir.path(), "ca");
    let mut command = serve(&ca.sign("server", "127.0.0.1"), None);
    command.args(["serve", "--listen", "0.0.0.0:0", "--store", "memory:"]);
    let output = command.output().expect("foil starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("--tls-client-ca"), "{told}");
}

#[test]
fn an_agents_metrics_are_served_by_tls() {
    let dir = tempfile::tempdir().expect("a directory");
    let ca = Ca::new(dir.path(), "ca");
    let own = ca.sign("agent", "127.0.0.1");
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let agent = |arguments: &[&str]| {
        let mut command = Command::new(foil_worker());
        command.args(["--coordinator", service.url(), "--log-format", "json"]).args(arguments);
        command
    };
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (certificate, key) = (text(&own.certificate), text(&own.key));
    // Listens on every interface, which needs no other option with TLS.
    let tls =
        ["--metrics-listen", "0.0.0.0:0", "--metrics-tls-cert", &certificate, "--metrics-tls-key", &key];
    let _agent = Process::start(agent(&tls), &service.at("agent.log"));
    let port = wait_for("the address", || {
        let log = service.log("agent.log");
        let line = log.lines().find(|line| line.contains("metrics at /metrics"))?;
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(line["address"].as_str()?.rsplit(':').next()?.to_owned())
    });
    let url = format!("https://127.0.0.1:{port}");
    assert_eq!(page(&url, &ca.path(), "/metrics"), 200);
    assert_eq!(page(&url, &Ca::new(dir.path(), "other").path(), "/metrics"), 0, "by another CA");
    // A connection without a handshake does not block others.
    let silent = TcpStream::connect(format!("127.0.0.1:{port}")).expect("a connection");
    assert_eq!(page(&url, &ca.path(), "/healthz"), 200);
    drop(silent);

    let refused = Process::start(agent(&["--metrics-listen", "0.0.0.0:0"]), &service.at("refused.log"));
    assert!(!refused.finish().success());
    assert!(service.log("refused.log").contains("--metrics-tls-cert"), "{}", service.log("refused.log"));
}

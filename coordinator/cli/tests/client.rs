//! The client's commands as a user calls them: contexts, `foil doctor`, colors.

#![allow(clippy::disallowed_methods, reason = "tests own their clock")]
// A test that cannot set itself up has failed.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// `foil` with a separate configuration, and without the environment's settings.
fn foil(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_foil"));
    command.args(arguments).current_dir(home).env("FOIL_CONFIG", home.join("config/foil.yaml"));
    for variable in [
        "FOIL_COORDINATOR",
        "FOIL_CONTEXT",
        "FOIL_TOKEN_FILE",
        "FOIL_TLS_CA",
        "FOIL_TLS_CERT",
        "FOIL_TLS_KEY",
        "FOIL_STORE",
    ] {
        command.env_remove(variable);
    }
    command
}

fn output(mut command: Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("foil starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

/// The output of a command that succeeds.
fn succeed(command: Command) -> String {
    let (code, stdout, stderr) = output(command);
    assert_eq!(code, Some(0), "{stderr}");
    stdout
}

fn json(command: Command) -> Value {
    serde_json::from_str(&succeed(command)).expect("JSON")
}

#[test]
fn contexts_are_made_chosen_shown_and_deleted() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    std::fs::write(home.join("token"), "secret").unwrap();
    std::fs::set_permissions(home.join("token"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let set = [
        "config",
        "set",
        "lab",
        "--coordinator",
        "http://127.0.0.1:1,http://localhost:1",
        "--token-file",
        "token",
        "--tenant",
        "t",
    ];
    assert_eq!(succeed(foil(home, &set)), "context lab is made, and is the current one\n");
    succeed(foil(home, &["config", "set", "other", "--coordinator", "http://c:1"]));
    let file = home.join("config/foil.yaml");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    assert_eq!(succeed(foil(home, &["config", "list", "-o", "name"])), "lab\nother\n");
    let listed = json(foil(home, &["config", "list", "-o", "json"]));
    assert_eq!(
        (&listed["contexts"][0]["current"], &listed["contexts"][1]["current"]),
        (&true.into(), &false.into())
    );
    let view = |arguments: &[&str], environment: Option<&str>| {
        let mut command = foil(home, &[&["config", "view", "-o", "json"], arguments].concat());
        command.envs(environment.map(|url| ("FOIL_COORDINATOR", url)));
        json(command)["settings"].clone()
    };
    let settings = view(&[], None);
    assert_eq!(
        settings["coordinator"]["value"],
        serde_json::json!(["http://127.0.0.1:1", "http://localhost:1"])
    );
    assert_eq!(settings["coordinator"]["source"], "context lab");
    // Absolute, so that commands in other directories find it.
    assert_eq!(settings["token-file"]["value"], home.join("token").to_str().unwrap());
    let settings = view(&[], Some("http://e:1"));
    assert_eq!(
        settings["coordinator"],
        serde_json::json!({ "value": ["http://e:1"], "source": "FOIL_COORDINATOR" })
    );
    let settings = view(&["--coordinator", "http://f:1"], Some("http://e:1"));
    assert_eq!(
        settings["coordinator"],
        serde_json::json!({ "value": ["http://f:1"], "source": "--coordinator" })
    );
    assert_eq!(view(&["--context", "other"], None)["coordinator"]["source"], "context other");

    succeed(foil(home, &["config", "use", "other"]));
    assert_eq!(succeed(foil(home, &["config", "view", "-o", "name"])), "other\n");
    succeed(foil(home, &["config", "set", "lab", "--unset", "tenant"]));
    assert_eq!(json(foil(home, &["config", "list", "-o", "json"]))["contexts"][0]["tenant"], Value::Null);
    succeed(foil(home, &["config", "delete", "other"]));
    assert_eq!(view(&[], None)["coordinator"]["source"], "default");
    for (arguments, told) in [
        (&["config", "use", "other"][..], "there is no context other, only lab"),
        (&["config", "delete", "other"], "there is no context other"),
        (&["config", "set", "x", "--coordinator", "a:1"], "http://HOST:PORT"),
        (&["config", "set", "x", "--tls-ca", "absent.pem"], "cannot read absent.pem"),
        (&["list", "--context", "x"], "there is no context x, only lab"),
    ] {
        let (code, _, stderr) = output(foil(home, arguments));
        assert!(code == Some(1) && stderr.contains(told), "{arguments:?}: {stderr}");
    }
}

/// A coordinator that ends with the test.
struct Serve(Child);

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a coordinator; returns its URL.
fn serve(home: &Path) -> (Serve, String) {
    let port = home.join("port");
    let arguments =
        ["serve", "--store", "store", "--listen", "127.0.0.1:0", "--port-file", port.to_str().unwrap()];
    let mut command = foil(home, &arguments);
    let serve = Serve(command.stderr(Stdio::null()).spawn().expect("foil starts"));
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match std::fs::read_to_string(&port) {
            Ok(address) if address.ends_with('\n') => return (serve, format!("http://{}", address.trim())),
            _ => assert!(Instant::now() < deadline, "the coordinator does not start"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The levels of the checks of this name.
fn levels(report: &Value, check: &str) -> Vec<String> {
    let checks = report["checks"].as_array().expect("checks");
    let of_check = checks.iter().filter(|finding| finding["check"] == check);
    of_check.map(|finding| finding["level"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn doctor_examines_a_service_and_says_what_to_do_without_one() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let worker = home.join("foil-worker");
    let version = env!("CARGO_PKG_VERSION");
    let described = format!(
        r#"{{"version":"{version}","build":"","libtorch":{{"path":"/t/lib/libtorch_cpu.so","version":"2.11.0"}},"nccl":null,"gpus":0}}"#
    );
    std::fs::write(&worker, format!("#!/bin/sh\necho '{described}'\n")).unwrap();
    std::fs::set_permissions(&worker, std::fs::Permissions::from_mode(0o700)).unwrap();
    let worker = worker.to_str().unwrap();

    let (coordinator, url) = serve(home);
    let address = url.trim_start_matches("http://").to_owned();
    let healthy = [
        "doctor",
        "-o",
        "json",
        "--store",
        "store",
        "--worker",
        worker,
        "--coordinator",
        &url,
        "--listen",
        &address,
    ];
    let (_, report, stderr) = output(foil(home, &healthy));
    let report: Value = serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    for check in ["store", "coordinator", "version", "clock", "port", "worker", "libtorch"] {
        assert_eq!(levels(&report, check), ["ok"], "{check}: {report:#}");
    }
    drop(coordinator);

    let (code, report, _) = output(foil(home, &healthy));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((code, &report["ok"]), (Some(1), &false.into()));
    assert_eq!(levels(&report, "coordinator"), ["fail"]);
    let (code, table, _) = output(foil(home, &["doctor", "--worker", "/nowhere", "--coordinator", &url]));
    assert_eq!(code, Some(1));
    for told in [
        "fail  coordinator",
        "connection refused",
        "do: start it with `foil serve`",
        "skip  store",
        "fail  worker",
    ] {
        assert!(table.contains(told), "{told}: {table}");
    }
    assert_eq!(output(foil(home, &["doctor", "--listen", "nowhere"])).0, Some(2));
}

#[test]
fn no_color_wins_over_everything() {
    let home = tempfile::tempdir().unwrap();
    let forced = |arguments: &[&str]| {
        let mut command = foil(home.path(), arguments);
        command.env("CLICOLOR_FORCE", "1").env("RUST_LOG", "debug").env_remove("NO_COLOR");
        command
    };
    let (_, stdout, stderr) = output(forced(&["--help"]));
    assert!(
        format!("{stdout}{stderr}").contains('\u{1b}'),
        "colors can be forced, so their absence is meaningful"
    );
    for arguments in [
        &["--help"][..],
        &["list", "--nonsense"],
        &["list", "--coordinator", "http://127.0.0.1:1"],
        &["doctor", "--coordinator", "http://127.0.0.1:1", "--worker", "/nowhere"],
        &["config", "view"],
        &["submit", "nowhere.yaml"],
    ] {
        let mut command = forced(arguments);
        let (_, stdout, stderr) = output({
            command.env("NO_COLOR", "1");
            command
        });
        assert!(!format!("{stdout}{stderr}").contains('\u{1b}'), "{arguments:?}: {stdout:?} {stderr:?}");
    }
}

/// A page of a server on this machine: its head and body.
fn page(url: &str) -> String {
    let (address, path) = url.trim_start_matches("http://").split_once('/').unwrap();
    let mut stream = TcpStream::connect(address).expect("the server listens");
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A job that was submitted and canceled, in the directory `run` as a run leaves it; returns its id.
fn canceled_run(home: &Path) -> String {
    let (coordinator, url) = serve(home);
    let letters = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/jobs/letters.yaml");
    let letters = letters.to_str().unwrap();
    let sizes = ["--set", "data.generator.sft=20", "--set", "data.generator.golden=20"];
    let submit = [&["submit", letters, "--coordinator", &url, "-o", "name"][..], &sizes].concat();
    let id = succeed(foil(home, &submit)).trim().to_owned();
    succeed(foil(home, &["cancel", &id, "--coordinator", &url]));

    let ui = ["ui", "letters", "--no-browser", "--coordinator", &url];
    assert_eq!(succeed(foil(home, &ui)).trim(), format!("{url}/jobs/{id}"));
    assert_eq!(succeed(foil(home, &["ui", "--coordinator", &url])).trim(), format!("{url}/"));
    let (code, _, stderr) = output(foil(home, &["ui", "nothing", "--coordinator", &url]));
    assert!(code == Some(1) && stderr.contains("there is no job nothing"), "{stderr}");
    drop(coordinator);

    std::fs::create_dir(home.join("run")).unwrap();
    std::fs::rename(home.join("store"), home.join("run/store")).unwrap();
    for file in ["job.json", "result.json"] {
        std::fs::write(home.join("run").join(file), "{}").unwrap();
    }
    id
}

#[test]
fn a_run_has_a_page_and_a_report_when_its_coordinator_is_gone() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let id = canceled_run(home);

    // Absolute here, and relative below.
    let run = home.join("run");
    let mut command = foil(home, &["ui", run.to_str().unwrap(), "--no-browser"]);
    let mut ui = Serve(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut url = String::new();
    BufReader::new(ui.0.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let url = url.trim();
    assert!(url.ends_with(&format!("/jobs/{id}")), "{url}");
    let answer = page(url);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("<div id=\"app\">"), "{answer}");
    assert!(answer.contains("content-security-policy: default-src 'none'"), "{answer}");
    let (code, _, stderr) = output(foil(home, &["ui", "run", "--no-browser"]));
    assert!(
        code == Some(1) && stderr.contains("is open in another `foil ui`, at http://127.0.0.1:"),
        "{stderr}"
    );
    // While the page is open, a report is read from its coordinator.
    let beside = succeed(foil(home, &["report", "run", "--out", "beside", "--format", "md"]));
    assert_eq!(beside.trim(), "beside/rounds.md");
    drop(ui);

    let all = ["report", "run", "--out", "out", "--format", "html,md,csv,latex", "--title", "A <title>"];
    let files = succeed(foil(home, &all));
    let names: Vec<&str> = files.lines().collect();
    assert_eq!(names, ["out/report.html", "out/rounds.md", "out/rounds.csv", "out/rounds.tex"]);
    let report = std::fs::read_to_string(home.join("out/report.html")).unwrap();
    let data = report.split_once("id=\"foil-report\">").unwrap().1.split_once("</script>").unwrap().0;
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!((&data["title"], &data["runs"][0]["job"]["id"]), (&"A <title>".into(), &id.as_str().into()));
    assert_eq!((&data["runs"][0]["directory"], &data["runs"][0]["arm"]), (&"run".into(), &"letters".into()));
    for (arguments, code, told) in [
        (&["report", "nowhere/run", "--out", "o"][..], 1, "nowhere/run is no directory"),
        (
            &["report", "some-job", "--out", "o", "--coordinator", "http://127.0.0.1:1"],
            1,
            "no coordinator answers",
        ),
        (&["report", ".", "--out", "o"], 1, "is not the directory of a `foil run`"),
        (&["report", "run"], 2, "--out"),
        (&["report", "run", "--out", "o", "--format", "pdf"], 2, "pdf"),
        (&["report", "--out", "o"], 2, "JOB|DIR"),
    ] {
        let (found, _, stderr) = output(foil(home, arguments));
        assert!(found == Some(code) && stderr.contains(told), "{arguments:?}: {stderr}");
    }
}

//! Acknowledged writes are synced to disk. System calls show that; kill -9 would not.

use std::process::{Command, Stdio};

use foil_tests::{Service, foil};

/// A system call; calls are ordered by completion.
#[derive(Debug)]
struct Call {
    text: String,
}

/// Parses the output of strace and joins calls that were interrupted by other threads.
fn calls(trace: &str) -> Vec<Call> {
    let mut begun: Vec<(&str, String)> = Vec::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((thread, text)) = line.split_once(' ') else { continue };
        let text = text.trim_start();
        if let Some(start) = text.strip_suffix(" <unfinished ...>") {
            begun.push((thread, start.to_owned()));
        } else if let Some((_, end)) = text.split_once(" resumed>") {
            let at = begun.iter().position(|(of, _)| *of == thread).expect("what resumes has begun");
            let (_, start) = begun.remove(at);
            calls.push(Call { text: start + end });
        } else {
            calls.push(Call { text: text.to_owned() });
        }
    }
    calls
}

fn has_strace() -> bool {
    let version =
        Command::new("strace").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

#[test]
fn a_record_and_its_directory_are_synced_before_the_client_is_answered() {
    if !has_strace() {
        eprintln!("skipped: strace is not installed");
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let trace = scratch.path().join("trace");
    // The coordinator ends together with strace, since the shell replaces itself with it by exec.
    let script = "foil=$1; trace=$2; shift 2; serve=$1; shift
        exec strace -f -yy -s 4096 -e trace=fsync,fdatasync,link,linkat,rename,renameat,renameat2,write,writev,sendto,sendmsg \
        -o \"$trace\" \"$foil\" \"$serve\" --parent-pid $$ \"$@\"";
    let mut serve = Command::new("sh");
    serve.args(["-c", script, "sh"]).arg(foil()).arg(&trace);
    let (service, coordinator) = Service::start(serve, "127.0.0.1");
    let id = service.submit_letters(Command::new(foil()));
    coordinator.kill();

    let text = std::fs::read(&trace).expect("strace has written");
    let calls = calls(&String::from_utf8_lossy(&text));
    let find = |what: &str, is: &dyn Fn(&str) -> bool| {
        let found = calls.iter().position(|call| is(&call.text));
        found.unwrap_or_else(|| panic!("no {what} among {} calls", calls.len()))
    };
    let answer = find("answer with the job's id", &|call| {
        let sends = ["write(", "writev(", "sendto(", "sendmsg("].iter().any(|name| call.starts_with(name));
        sends && call.contains("<TCP:[") && call.contains(&id)
    });
    // The job's record is written to a temporary file, which is then renamed.
    let written = find("write of the record", &|call| {
        call.starts_with("write(") && call.contains("/store/meta/log/") && call.contains(&id)
    });
    let file = calls[written].text.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    let file = file.expect("strace names the file").0.to_owned();
    let synced = find("sync of the record", &|call| is_sync(call) && call.contains(&format!("<{file}>")));
    let named = find("naming of the record", &|call| {
        (call.starts_with("link") || call.starts_with("rename")) && call.contains(&file)
    });
    let directory = file.rsplit_once('/').expect("it lies in a directory").0;
    let of_directory = |call: &Call| is_sync(&call.text) && call.text.contains(&format!("<{directory}>"));
    let kept = calls.iter().enumerate().position(|(at, call)| at > named && of_directory(call));
    let kept = kept.expect("the directory is to be synced after the record has its name");
    assert!(
        written < synced && synced < named && named < kept && kept < answer,
        "{written} {synced} {named} {kept} {answer}"
    );
}

/// Whether the call is a successful sync.
fn is_sync(call: &str) -> bool {
    (call.starts_with("fsync(") || call.starts_with("fdatasync(")) && call.trim_end().ends_with("= 0")
}

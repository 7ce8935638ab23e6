//! Traces and metrics over OTLP. A job has one tree of spans, from its submission to its ranks, even if its
//! leader dies. An unavailable collector costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use foil_tests::{
    Ca, OtlpCollector, Process, Run, SentSpan, Service, foil, foil_worker, metric_names, page, wait_for,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT: &str = "00f067aa0ba902b7";
/// Tolerance: the coordinator's times are in milliseconds and are read before the messages that they apply
/// to.
const CLOCK_NANOS: u64 = 100_000_000;
/// The names of the spans from the root to a rank's part in a gang phase.
const OF_GANG: &str = "/submit/job/phase/attempt/rank";
/// Holds the phase in which the leader is killed.
const HOLD: &str = "phase.generate=delay@*";

/// A program that sends its telemetry to a collector whose certificate was signed by a CA of the test.
fn observed(program: PathBuf, collector: &OtlpCollector, ca: &Ca) -> Command {
    let mut command = Command::new(program);
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        .env("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.path())
        .env("OTEL_METRIC_EXPORT_INTERVAL", "200");
    command
}

/// The spans by id. A new leader resends the spans that the previous one may not have sent; they must be
/// equal.
fn by_id(spans: Vec<SentSpan>) -> BTreeMap<String, SentSpan> {
    let mut all: BTreeMap<String, SentSpan> = BTreeMap::new();
    for span in spans {
        if let Some(first) = all.insert(span.id.clone(), span.clone()) {
            assert_eq!(first, span, "two spans have the same id");
            assert_eq!(span.service, "foil-coordinator", "{span:?} came twice");
        }
    }
    all
}

/// Fails unless the spans form one tree below the client's span, with every span within its parent's time.
fn assert_is_tree(spans: &BTreeMap<String, SentSpan>) {
    for span in spans.values() {
        assert_eq!(span.trace, TRACE, "{span:?}");
        if span.name == "submit" {
            assert_eq!(span.parent, CLIENT);
            continue;
        }
        let parent = spans.get(&span.parent).unwrap_or_else(|| panic!("the parent of {span:?} is missing"));
        let begins = parent.start <= span.start + CLOCK_NANOS;
        let ends = span.end <= parent.end + CLOCK_NANOS;
        // A job continues after its submission has ended. A chunk ends with its first result, and a new
        // leader may have assigned it to a second rank.
        let goes_on = match parent.name.as_str() {
            "submit" => true,
            "chunk" => spans.values().filter(|other| other.parent == span.parent).count() > 1,
            _ => false,
        };
        assert!(begins && (ends || goes_on), "{span:#?}\nis not within\n{parent:#?}");
    }
}

/// A span's name, preceded by those of its ancestors.
fn path(spans: &BTreeMap<String, SentSpan>, id: &str) -> String {
    let Some(span) = spans.get(id) else { return String::new() };
    let above = path(spans, &span.parent);
    format!("{above}/{}", span.name.split(' ').next().unwrap_or_default())
}

fn count(spans: &BTreeMap<String, SentSpan>, name: &str) -> usize {
    spans.values().filter(|span| span.name == name).count()
}

#[test]
fn a_job_is_one_trace_also_when_its_leader_is_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = Ca::new(directory.path(), "collectors");
    let collector = OtlpCollector::start_with_tls(&ca.sign("collector", "localhost"));
    let serve = || observed(foil(), &collector, &ca);
    let (mut service, leader) = Service::start(serve(), "127.0.0.1");
    let standby = service.start_standby(serve());
    let start = |number: usize| {
        let mut agent = observed(foil_worker(), &collector, &ca);
        agent.args(["--coordinator", &service.urls(), "--ranks", "1"]).env("FOIL_FAILPOINT", HOLD);
        Process::start(agent, &service.at(&format!("agent-{number}.log")))
    };
    let agents: Vec<Process> = (0..2).map(start).collect();
    let mut submit = Command::new(foil());
    submit.env("TRACEPARENT", format!("00-{TRACE}-{CLIENT}-01"));
    let id = service.submit_letters_with(submit, &["resources.checkpoint_steps=5"]);

    let phase = || service.job(&id)["phase"].as_str().unwrap_or_default().to_owned();
    wait_for("a map phase", || phase().ends_with("policy.generate").then_some(()));
    leader.kill();
    service.foil(&["watch", &id]);
    let job = service.job(&id);
    assert_eq!((&job["state"], &job["attempt"]), (&"succeeded".into(), &1.into()), "{job}");
    let metrics = metric_names(&page(service.urls().split(',').nth(1).expect("a standby"), "/metrics").1);
    // They send the remaining spans when they exit.
    drop((agents, standby));

    let spans = by_id(collector.spans());
    assert_is_tree(&spans);
    let phases = job["plan"]["phases"].as_array().expect("phases");
    let planned: BTreeSet<&str> = phases.iter().filter_map(|phase| phase["id"].as_str()).collect();
    let of_phases = spans.values().filter(|span| span.name.starts_with("phase "));
    let done: Vec<&str> = of_phases.map(|span| span.attributes["foil.phase"].as_str()).collect();
    assert_eq!(done.len(), planned.len());
    assert_eq!(done.into_iter().collect::<BTreeSet<_>>(), planned);
    let chunks: u64 = phases.iter().filter_map(|phase| phase["chunks"].as_u64()).sum();
    let gangs = phases.iter().filter(|phase| phase["steps"].as_u64().unwrap_or_default() > 0).count();
    let counts = ["submit", "job", "attempt", "chunk"].map(|name| count(&spans, name));
    assert_eq!(counts, [1, 1, planned.len(), usize::try_from(chunks).expect("few chunks")]);
    assert_is_whole_in_ranks(&spans, gangs);

    let pushed = collector.metrics("foil-coordinator");
    let missing: Vec<&String> = metrics.difference(&pushed).collect();
    assert!(missing.is_empty() && metrics.len() > 20, "{missing:?} of {} are not pushed", metrics.len());
    assert!(collector.metrics("foil-agent").contains("foil_agent_ranks"));
}

/// Fails unless every part of the ranks' work has spans at its position.
fn assert_is_whole_in_ranks(spans: &BTreeMap<String, SentSpan>, gangs: usize) {
    let mut paths: BTreeMap<String, usize> = BTreeMap::new();
    for id in spans.keys() {
        *paths.entry(path(spans, id)).or_default() += 1;
    }
    let of_chunk = "/submit/job/phase/attempt/chunk/rank";
    assert_eq!(paths[OF_GANG], 2 * gangs, "two ranks of each gang: {paths:?}");
    assert!(paths[of_chunk] >= paths["/submit/job/phase/attempt/chunk"], "{paths:?}");
    for part in ["load", "rendezvous", "steps", "checkpoint", "save", "deliver"] {
        assert!(paths.contains_key(&format!("{OF_GANG}/{part}")), "no {part} in {paths:?}");
    }
    for part in ["load", "generate", "upload"] {
        assert!(paths.contains_key(&format!("{of_chunk}/{part}")), "no {part} in {paths:?}");
    }
    assert!(spans.values().any(|span| span.service == "foil-rank"));
}

#[test]
fn a_trace_and_metrics_come_over_http_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = Ca::new(directory.path(), "collectors");
    let collector = OtlpCollector::start_http_with_tls(&ca.sign("collector", "localhost"));
    let run = Run::letters()
        .ranks(2)
        .set("resources.checkpoint_steps=5")
        .env("TRACEPARENT", format!("00-{TRACE}-{CLIENT}-01"))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        .env("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.path().to_str().expect("UTF-8"))
        .env("OTEL_METRIC_EXPORT_INTERVAL", "200");
    run.finish();
    let spans = by_id(collector.spans());
    assert_is_tree(&spans);
    let gangs: BTreeSet<&str> = spans
        .values()
        .filter(|span| span.name == "rank" && path(&spans, &span.id) == OF_GANG)
        .map(|span| spans[&spans[&span.parent].parent].name.as_str())
        .collect();
    assert_eq!(gangs, BTreeSet::from(["phase sft", "phase reward.train", "phase policy.train"]));
    assert_is_whole_in_ranks(&spans, gangs.len());
    for (service, metric) in
        [("foil-coordinator", "foil_steps_committed_total"), ("foil-agent", "foil_agent_ranks")]
    {
        assert!(collector.metrics(service).contains(metric), "no {metric} of {service}");
    }
    assert!(!run.full_logs().contains("an OTLP collector does not take"), "{}", run.full_logs());
}

#[test]
fn a_collector_that_hangs_or_is_away_does_not_hold_up_a_job() {
    let hanging = OtlpCollector::hanging();
    for endpoint in [hanging.url(), "http://127.0.0.1:1"] {
        let run = Run::letters()
            .ranks(2)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2")
            .env("OTEL_EXPORTER_OTLP_TIMEOUT", "300")
            .env("OTEL_METRIC_EXPORT_INTERVAL", "300");
        run.finish();
        let logs = run.full_logs();
        let warnings = logs.matches("signal=\"metrics\"").count();
        assert_eq!(warnings, 2, "a line of the coordinator and one of the agent about {endpoint}: {logs}");
        assert!(!logs.contains("hunter2"), "{logs}");
    }
}

#[test]
fn a_wrong_variable_is_an_error_at_the_start_that_names_it() {
    for program in [foil(), foil_worker()] {
        let mut command = Command::new(&program);
        let arguments = match program == foil() {
            true => ["serve", "--store", "memory:"].as_slice(),
            false => &["--coordinator", "http://127.0.0.1:1"],
        };
        command.args(arguments).env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
        let output = command.env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json").output().expect("it starts");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains("OTEL_EXPORTER_OTLP_PROTOCOL"), "{told}");
    }
}

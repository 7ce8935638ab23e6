//! Reads `/metrics` like a scraper and applies the rules of `promtool check metrics`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

/// Fetches a page that a process serves at `address` over plain HTTP. Returns its status line and its body.
pub fn page(address: &str, path: &str) -> (String, String) {
    let address = address.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).expect("the process listens");
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("a request is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer in UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

/// Findings of `promtool check metrics` on a page; `None` if it is not installed (it is in Debian's package
/// prometheus).
pub fn promtool(page: &str) -> Option<String> {
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = spawned else {
        eprintln!("skipped: promtool is not installed (apt-get install prometheus)");
        return None;
    };
    promtool.stdin.take().expect("a pipe").write_all(page.as_bytes()).expect("promtool reads");
    let output = promtool.wait_with_output().expect("promtool ends");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || !told.is_empty(), "promtool failed without a word");
    Some(told)
}

/// A metric on a page: its comments and its series.
#[derive(Debug, Default)]
struct Metric {
    help: Option<String>,
    kind: Option<String>,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Problems of a page: syntax errors, and violations of the rules of `promtool check metrics`.
pub fn lint_errors(page: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let metrics = parse(page, &mut problems);
    for (name, metric) in &metrics {
        let mut found = Vec::new();
        check_name(name, metric, &mut found);
        check_samples(metric, &mut found);
        problems.extend(found.into_iter().map(|problem| format!("{name}: {problem}")));
    }
    problems
}

/// The names of a page's metrics.
pub fn metric_names(page: &str) -> BTreeSet<String> {
    parse(page, &mut Vec::new()).into_keys().collect()
}

fn parse(page: &str, problems: &mut Vec<String>) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.trim().is_empty()) {
        let told = line.strip_prefix("# HELP ").map(|rest| (true, rest));
        let told = told.or_else(|| line.strip_prefix("# TYPE ").map(|rest| (false, rest)));
        if let Some((is_help, rest)) = told {
            let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
            let metric = metrics.entry(name.to_owned()).or_default();
            if !metric.samples.is_empty() {
                problems.push(format!("{name}: its HELP or TYPE comes after its series"));
            }
            let place = if is_help { &mut metric.help } else { &mut metric.kind };
            if place.replace(text.to_owned()).is_some() {
                problems.push(format!("{name}: told twice: {line}"));
            }
        } else if !line.starts_with('#') {
            let Some(sample) = sample(line) else {
                problems.push(format!("no sample: {line}"));
                continue;
            };
            let name = family_of(&sample.name, &metrics);
            metrics.entry(name).or_default().samples.push(sample);
        }
    }
    metrics
}

/// The metric of a series. The series of a histogram have an additional suffix.
fn family_of(series: &str, metrics: &BTreeMap<String, Metric>) -> String {
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
        let name = series.strip_suffix(end)?;
        let kind = metrics.get(name)?.kind.as_deref()?;
        ["histogram", "summary"].contains(&kind).then(|| name.to_owned())
    });
    of_histogram.unwrap_or_else(|| series.to_owned())
}

/// Parses `name{label="value",…} number`, as strictly as Prometheus.
fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = (line[..end].to_owned(), &line[end..]);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            if labels.insert(label.to_owned(), value).is_some() {
                return None;
            }
            rest = after.strip_prefix(',').unwrap_or(after);
        }
    }
    let value = match rest.strip_prefix(' ')? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    let may_begin = |text: &str, or: &str| {
        text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_' || or.contains(first))
            && text.chars().all(|other| other.is_ascii_alphanumeric() || other == '_' || or.contains(other))
    };
    let is_valid = may_begin(&name, ":") && labels.keys().all(|label| may_begin(label, ""));
    is_valid.then_some(Sample { name, labels, value })
}

/// Splits the rest of a quoted value from what follows its closing quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                same @ ('"' | '\\') => same,
                _ => return None,
            }),
            other => value.push(other),
        }
    }
    None
}

/// Units that Prometheus does not use, each with the base unit to use instead.
const UNITS: &[(&str, &str)] = &[
    ("milliseconds", "seconds"),
    ("microseconds", "seconds"),
    ("nanoseconds", "seconds"),
    ("minutes", "seconds"),
    ("hours", "seconds"),
    ("days", "seconds"),
    ("weeks", "seconds"),
    ("kilobytes", "bytes"),
    ("megabytes", "bytes"),
    ("gigabytes", "bytes"),
    ("kibibytes", "bytes"),
    ("mebibytes", "bytes"),
    ("gibibytes", "bytes"),
    ("bits", "bytes"),
    ("percent", "ratio"),
];
const ABBREVIATIONS: &[&str] =
    &["s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "kib", "mib", "gib", "pct"];
const KINDS: [&str; 3] = ["counter", "gauge", "histogram"];

fn check_name(name: &str, metric: &Metric, problems: &mut Vec<String>) {
    let mut problem = |text: &str| problems.push(text.to_owned());
    match &metric.help {
        None => problem("no HELP"),
        Some(help) if help.is_empty() => problem("an empty HELP"),
        Some(_) => {}
    }
    let Some(kind) = metric.kind.as_deref() else { return problem("no TYPE") };
    if !KINDS.contains(&kind) {
        problem(&format!("{kind} is none of {KINDS:?}"));
    }
    if !name.starts_with("foil_") {
        problem("no prefix foil_");
    }
    if name.contains(':') {
        problem("colons are for recording rules");
    }
    if name.chars().any(|letter| letter.is_ascii_uppercase()) {
        problem("names are in snake_case");
    }
    if name.ends_with("_total") != (kind == "counter") {
        problem("a counter ends in _total, and nothing else does");
    }
    if ["_bucket", "_sum", "_count", "_info_total"].iter().any(|end| name.ends_with(end)) {
        problem("the suffix is a histogram's");
    }
    for part in name.split('_') {
        if [KINDS.as_slice(), &["summary"]].concat().contains(&part) {
            problem("the type is no part of a name");
        }
        if let Some((_, base)) = UNITS.iter().find(|(unit, _)| *unit == part) {
            problem(&format!("measures in {part} instead of {base}"));
        }
        if ABBREVIATIONS.contains(&part) {
            problem(&format!("abbreviates its unit: {part}"));
        }
    }
}

fn check_samples(metric: &Metric, problems: &mut Vec<String>) {
    let kind = metric.kind.as_deref().unwrap_or_default();
    if metric.samples.is_empty() {
        problems.push("told, but without a series".to_owned());
    }
    let mut seen = BTreeSet::new();
    for sample in &metric.samples {
        if !seen.insert((&sample.name, &sample.labels)) {
            problems.push(format!("the same series twice: {sample:?}"));
        }
        let is_bucket = kind == "histogram" && sample.name.ends_with("_bucket");
        if sample.labels.contains_key("quantile") || sample.labels.contains_key("le") != is_bucket {
            problems.push(format!("le belongs to buckets, and quantile to nothing: {sample:?}"));
        }
        if kind == "counter" && (sample.value.is_nan() || sample.value < 0.0) {
            problems.push(format!("a counter that counts less than nothing: {sample:?}"));
        }
    }
    if kind == "histogram" {
        check_buckets(metric, problems);
    }
}

/// Checks that buckets grow up to `+Inf`, which must equal the count.
fn check_buckets(metric: &Metric, problems: &mut Vec<String>) {
    // Bounds with their counts, the count, and whether there is a sum.
    type Series = (Vec<(f64, f64)>, Option<f64>, bool);
    let mut histograms: BTreeMap<BTreeMap<String, String>, Series> = BTreeMap::new();
    for sample in &metric.samples {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le");
        let (buckets, count, has_sum) = histograms.entry(labels).or_default();
        match bound {
            Some(bound) => {
                buckets.push((bound.replace("+Inf", "inf").parse().unwrap_or(f64::NAN), sample.value));
            }
            None if sample.name.ends_with("_count") => *count = Some(sample.value),
            None => *has_sum = true,
        }
    }
    for (labels, (buckets, count, has_sum)) in histograms {
        let grows = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let last = buckets.last().copied();
        if !grows
            || last.is_none_or(|(bound, _)| bound != f64::INFINITY)
            || last.map(|last| last.1) != count
            || !has_sum
        {
            problems.push(format!("no histogram: {labels:?} has {buckets:?}, count {count:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP foil_a_total A.\n# TYPE foil_a_total counter\nfoil_a_total{x=\"y\"} 1\nfoil_a_total{x=\"\\\"}\"} 1\n\
         # HELP foil_wait_seconds B.\n# TYPE foil_wait_seconds histogram\nfoil_wait_seconds_bucket{le=\"1\"} 1\n\
         foil_wait_seconds_bucket{le=\"+Inf\"} 2\nfoil_wait_seconds_sum 3.5\nfoil_wait_seconds_count 2\n\
         # HELP foil_c C.\n# TYPE foil_c gauge\nfoil_c NaN\n";

    #[test]
    fn a_page_without_faults_has_no_problem() {
        assert_eq!(lint_errors(GOOD), [""; 0]);
        assert_eq!(promtool(GOOD).unwrap_or_default(), "");
        assert_eq!(
            metric_names(GOOD).into_iter().collect::<Vec<_>>(),
            ["foil_a_total", "foil_c", "foil_wait_seconds"]
        );
    }

    /// Pages with a fault each, and whether promtool also finds it: it knows neither this project's prefix
    /// nor all that Prometheus rejects when it scrapes.
    #[test]
    fn each_fault_is_found() {
        let gauge = |name: &str| format!("# HELP {name} D.\n# TYPE {name} gauge\n{name} 1\n");
        for (page, problem, is_promtools) in [
            ("foil_d 1\n".to_owned(), "no HELP", true),
            ("# TYPE foil_d gauge\nfoil_d 1\n".to_owned(), "no HELP", true),
            ("# HELP foil_d D.\nfoil_d 1\n".to_owned(), "no TYPE", false),
            (gauge("foil_d_total"), "a counter ends in _total", true),
            (GOOD.replace("foil_a_total", "foil_a"), "a counter ends in _total", true),
            (gauge("foil_d_milliseconds"), "instead of seconds", true),
            (gauge("foil_d_ms"), "abbreviates", true),
            (gauge("foil_gauge_d"), "the type is no part", true),
            (gauge("foil_D"), "snake_case", true),
            (gauge("foil:d"), "recording rules", true),
            (gauge("foil_d_count"), "a histogram's", true),
            (gauge("d"), "no prefix", false),
            (gauge("foil_d").replace("foil_d 1", "foil_d 1\nfoil_d 1"), "the same series twice", true),
            (gauge("foil_d").replace("foil_d 1", "foil_d one"), "no sample", true),
            (gauge("foil_d").replace("foil_d 1", "foil_d{1x=\"y\"} 1"), "no sample", true),
            (gauge("foil_d") + &gauge("foil_d"), "told twice", true),
            (gauge("foil_d").replace("gauge", "summary"), "is none of", false),
            (
                gauge("foil_d").replace("foil_d 1", "foil_d{quantile=\"0.5\"} 1"),
                "le belongs to buckets",
                true,
            ),
            ("# HELP foil_d D.\n# TYPE foil_d gauge\n".to_owned(), "without a series", false),
            (GOOD.replace("+Inf\"} 2", "+Inf\"} 3"), "no histogram", false),
            (GOOD.replace("foil_wait_seconds_bucket{le=\"+Inf\"} 2\n", ""), "no histogram", false),
        ] {
            let found = lint_errors(&page);
            assert!(found.iter().any(|found| found.contains(problem)), "{problem}: {found:?}\n{page}");
            if is_promtools && let Some(told) = promtool(&page) {
                assert!(!told.is_empty(), "promtool accepts:\n{page}");
            }
        }
    }
}

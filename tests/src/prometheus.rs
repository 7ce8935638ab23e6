//! Reading of `/metrics` like a scraper.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;

/// A page that a process serves at `address` over plain HTTP: its status line, and its body.
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

/// The main errors of `promtool check metrics`: series without help or type, and summaries instead of
/// histograms.
pub fn lint_errors(metrics: &str) -> Vec<String> {
    let told = |what: &str| -> HashSet<&str> {
        metrics.lines().filter_map(|line| line.strip_prefix(what)?.split(' ').next()).collect()
    };
    let (helped, typed) = (told("# HELP "), told("# TYPE "));
    let mut lint_errors = Vec::new();
    for line in metrics.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let series = line.split(['{', ' ']).next().unwrap_or_default();
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end));
        let name = of_histogram.filter(|name| typed.contains(name)).unwrap_or(series);
        if !helped.contains(name) || !typed.contains(name) || line.contains("quantile=") {
            lint_errors.push(line.to_owned());
        }
    }
    lint_errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_without_help_and_a_summary_are_errors() {
        let good = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"y\"} 1\n\
                    # HELP b_seconds B.\n# TYPE b_seconds histogram\nb_seconds_bucket{le=\"1\"} 1\nb_seconds_sum 1\n";
        assert!(lint_errors(good).is_empty());
        assert_eq!(lint_errors(&format!("{good}c 1\n")), ["c 1"]);
        let summary = "# HELP d D.\n# TYPE d summary\nd{quantile=\"0.5\"} 1\n";
        assert_eq!(lint_errors(summary).len(), 1);
    }
}

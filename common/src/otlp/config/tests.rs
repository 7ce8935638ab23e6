use std::collections::HashMap;

use super::*;

fn read(variables: &[(&str, &str)]) -> Result<Option<Config>, ConfigError> {
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    Config::read("foil-test", |name| variables.get(name).map(OsString::from))
}

const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");

#[test]
fn without_an_endpoint_nothing_is_sent() {
    assert!(read(&[]).unwrap().is_none());
    assert!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).unwrap().is_none());
    assert!(read(&[("OTEL_SDK_DISABLED", "true"), ENDPOINT]).unwrap().is_none());
    assert!(read(&[("OTEL_SERVICE_NAME", "foil")]).unwrap().is_none());
    let none = [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none"), ENDPOINT];
    assert!(read(&none).unwrap().is_none());
}

#[test]
fn one_endpoint_is_for_both_signals_and_a_signals_own_settings_win() {
    let config = read(&[ENDPOINT]).unwrap().unwrap();
    let (traces, metrics) = (config.traces.unwrap(), config.metrics.unwrap());
    assert_eq!((traces.endpoint.as_str(), traces.timeout), ("http://collector:4317/", DEFAULT_TIMEOUT));
    assert_eq!((metrics.endpoint, config.interval), (traces.endpoint, DEFAULT_INTERVAL));
    let config = read(&[
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://[::1]:4317"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "250"),
        ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
    ]);
    let config = config.unwrap().unwrap();
    let metrics = config.metrics.unwrap();
    assert!(config.traces.is_none() && metrics.compress);
    assert_eq!((metrics.timeout.as_millis(), config.interval.as_millis()), (250, 500));
}

#[test]
fn headers_are_decoded_and_never_shown() {
    let config =
        read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20hunter2 , x-org=a")]);
    let traces = config.unwrap().unwrap().traces.unwrap();
    assert_eq!(traces.headers.get("authorization").unwrap(), "Bearer hunter2");
    assert_eq!(traces.headers.get("x-org").unwrap(), "a");
    assert!(!format!("{traces:?}{:?}", traces.headers).contains("hunter2"));
}

#[test]
fn a_process_is_named() {
    let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=a%2Cb");
    let named = |more: &[(&str, &str)]| {
        read(&[&[ENDPOINT, attributes][..], more].concat()).unwrap().unwrap().resource
    };
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert!(named(&[]).contains(&pair("service.name", "a,b")));
    assert!(named(&[]).contains(&pair("deployment.environment.name", "test")));
    assert!(named(&[("OTEL_SERVICE_NAME", "mine")]).contains(&pair("service.name", "mine")));
    assert!(read(&[ENDPOINT]).unwrap().unwrap().resource.contains(&pair("service.name", "foil-test")));
}

#[test]
fn a_wrong_value_is_an_error_that_names_its_variable_and_hides_the_value() {
    for (variable, value) in [
        ("OTEL_SDK_DISABLED", "hunter2"),
        ("OTEL_TRACES_EXPORTER", "hunter2"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "hunter2:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://hunter2"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://user:hunter2@collector:4317"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://collector:4318/hunter2"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317?key=hunter2"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "hunter2"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%0A"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%2"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2 hunter2=a"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "hunter2"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "hunter2"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1"),
        ("OTEL_RESOURCE_ATTRIBUTES", "hunter2"),
    ] {
        let told = read(&[ENDPOINT, (variable, value)]).unwrap_err().to_string();
        assert!(
            told.contains(&format!("{variable} cannot be used: ")) && !told.contains("hunter2"),
            "{told}"
        );
    }
    let json = read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]).unwrap_err();
    assert!(json.problem.contains("http/json is not supported; expected http/protobuf"), "{json}");
    let path = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/otlp")]).unwrap_err();
    assert!(path.problem.contains("set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf"), "{path}");
}

/// The protocol and URL of each signal that is sent.
fn endpoints(variables: &[(&str, &str)]) -> [Option<(Protocol, String)>; 2] {
    let config = read(variables).unwrap_or_else(|told| panic!("{variables:?}: {told}"));
    let of = |target: Option<Target>| target.map(|target| (target.protocol, target.endpoint.to_string()));
    config.map_or([None, None], |config| [of(config.traces), of(config.metrics)])
}

/// The examples of the specification ("Endpoint URLs for OTLP/HTTP") are among these.
#[test]
fn requests_over_http_have_a_path_for_each_signal() {
    const BOTH: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const METRICS: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
    let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    for (variables, traces, metrics) in [
        (
            &[(BOTH, "http://collector:4318")][..],
            Some("http://collector:4318/v1/traces"),
            Some("http://collector:4318/v1/metrics"),
        ),
        (&[(BOTH, "http://[::1]/")], Some("http://[::1]/v1/traces"), Some("http://[::1]/v1/metrics")),
        (
            &[(BOTH, "http://collector:4318/mycollector/")],
            Some("http://collector:4318/mycollector/v1/traces"),
            Some("http://collector:4318/mycollector/v1/metrics"),
        ),
        (
            &[(BOTH, "http://collector:4318/mycollector")],
            Some("http://collector:4318/mycollector/v1/traces"),
            Some("http://collector:4318/mycollector/v1/metrics"),
        ),
        // A signal's own URL is complete.
        (&[(TRACES, "http://collector:4318")], Some("http://collector:4318/"), None),
        (&[(TRACES, "http://collector:4318/x/")], Some("http://collector:4318/x/"), None),
        (
            &[(BOTH, "http://collector:4318"), (METRICS, "http://other/metrics")],
            Some("http://collector:4318/v1/traces"),
            Some("http://other/metrics"),
        ),
        // The ports of the specification, for a program that is configured to send, but not where.
        (&[("OTEL_TRACES_EXPORTER", "otlp")], Some("http://localhost:4318/v1/traces"), None),
        (&[("OTEL_METRICS_EXPORTER", "otlp")], None, Some("http://localhost:4318/v1/metrics")),
        (&[], None, None),
    ] {
        let expected = [traces, metrics].map(|url| url.map(|url| (Protocol::Http, url.to_owned())));
        assert_eq!(endpoints(&[variables, &[http]].concat()), expected, "{variables:?}");
    }
}

#[test]
fn each_signal_may_have_a_protocol_of_its_own() {
    let of_metrics = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf");
    let traces = (Protocol::Grpc, "http://collector:4317/".to_owned());
    let metrics = (Protocol::Http, "http://collector:4317/v1/metrics".to_owned());
    assert_eq!(endpoints(&[ENDPOINT, of_metrics]), [Some(traces.clone()), Some(metrics)]);
    let both = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    let of_metrics = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc");
    let of_traces = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc");
    assert_eq!(endpoints(&[ENDPOINT, both, of_metrics, of_traces]), [Some(traces.clone()), Some(traces)]);
    let local = endpoints(&[("OTEL_TRACES_EXPORTER", "otlp")]);
    assert_eq!(local, [Some((Protocol::Grpc, "http://localhost:4317/".to_owned())), None]);
}

#[test]
fn certificates_are_read_at_the_start() {
    let secure = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317");
    let missing = read(&[secure, ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")]).unwrap_err();
    assert_eq!(missing.variable, "OTEL_EXPORTER_OTLP_CERTIFICATE");
    assert!(missing.problem.contains("/nowhere/ca.pem"), "{missing}");
    let half = read(&[secure, ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/nowhere/key.pem")]).unwrap_err();
    assert_eq!(half.variable, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE");
    // Without TLS they are not needed.
    read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")]).unwrap();
}

//! Listen addresses, as users write them.

use std::net::{SocketAddr, ToSocketAddrs};

/// Parses `ADDRESS:PORT` or `HOST:PORT`. If a host has several addresses, it is the first IPv4 one, which
/// clients try first.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    const FORM: &str = "write ADDRESS:PORT, for example 127.0.0.1:7070, [::1]:7070 or localhost:7070";
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !host.contains(':') && is_port(port) => {}
        _ => return Err(FORM.to_owned()),
    }
    let found: Vec<SocketAddr> =
        text.to_socket_addrs().map_err(|error| format!("{error}; {FORM}"))?.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| format!("the host has no address; {FORM}"))
}

/// Refuses an address that other machines can reach without TLS or without authentication, unless the user
/// allows it. `danger` is what anyone who reaches the address can do.
pub fn check(listen: SocketAddr, is_allowed: bool, danger: &str, advice: &str) -> Result<(), String> {
    if listen.ip().is_loopback() || is_allowed {
        return Ok(());
    }
    Err(format!(
        "{listen} can be reached from other machines, without both TLS and authentication: anyone who reaches it can \
         {danger}. {advice}"
    ))
}

/// Refuses an address for metrics that other machines can reach, unless there is TLS or the user allows it.
pub fn check_metrics(listen: SocketAddr, is_allowed: bool) -> Result<(), String> {
    if listen.ip().is_loopback() || is_allowed {
        return Ok(());
    }
    Err(format!(
        "{listen} can be reached from other machines without TLS: metrics would go in clear text. Give --metrics-tls-cert and \
         --metrics-tls-key, or, on a network you trust, --insecure-listen"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_listened_on_unless_asked() {
        for loopback in ["127.0.0.1:0", "127.1.2.3:70", "[::1]:0"] {
            check(loopback.parse().unwrap(), false, "look", "Do not").unwrap();
        }
        for reached in ["0.0.0.0:7070", "[::]:70", "10.0.0.7:70", "[::ffff:10.0.0.7]:70"] {
            let error = check(reached.parse().unwrap(), false, "look", "Do not").unwrap_err();
            assert!(error.contains("can look. Do not"), "{error}");
            check(reached.parse().unwrap(), true, "look", "Do not").unwrap();
        }
    }

    #[test]
    fn metrics_leave_the_machine_by_tls_only_unless_asked() {
        let (near, far) = ("127.0.0.1:9100".parse().unwrap(), "0.0.0.0:9100".parse().unwrap());
        check_metrics(near, false).unwrap();
        check_metrics(far, true).unwrap();
        let error = check_metrics(far, false).unwrap_err();
        assert!(error.contains("--metrics-tls-cert") && error.contains("--insecure-listen"), "{error}");
    }

    #[test]
    fn addresses_and_host_names_are_parsed_and_errors_state_the_form() {
        assert_eq!(address("127.0.0.1:70").unwrap(), "127.0.0.1:70".parse().unwrap());
        assert_eq!(address("[::1]:70").unwrap(), "[::1]:70".parse().unwrap());
        assert_eq!(address("localhost:70").unwrap(), "127.0.0.1:70".parse().unwrap());
        for wrong in
            ["localhost", "", ":7070", "7070", "::1:70000", "http://localhost:7070", "localhost:70000"]
        {
            assert!(address(wrong).unwrap_err().contains("write ADDRESS:PORT"), "{wrong}");
        }
    }
}

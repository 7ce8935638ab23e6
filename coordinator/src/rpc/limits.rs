//! Size limits of input, so that everything accepted also fits into messages, log lines and lists.

use foil_common::plural::counted;
use foil_proto::v1::{self, rank_message};
use prost::Message;
use tonic::Status;

use super::status::{bad_field, cut};

/// Size limit of a specification.
pub(super) const MAX_SPEC_BYTES: usize = 512 << 10;
/// Maximum number of warnings of a submission.
const MAX_WARNINGS: usize = 100;
/// Size limit of forwarded text: a message, advice or a log line.
const MAX_TEXT_BYTES: usize = 2048;
/// Maximum number of lines in a log tail.
const MAX_LOG_LINES: usize = 50;
/// Maximum number of rows listed in a failure.
const MAX_ROWS: usize = 1024;
/// Size limit of names of agents, hosts, devices and rows.
const MAX_NAME_BYTES: usize = 128;
/// Maximum number of devices per agent, and of rank processes that it reports as running.
const MAX_DEVICES: usize = 256;

/// Rejects a specification that is too large for the messages that include it.
pub(super) fn check_spec(spec: &v1::JobSpec) -> Result<(), Status> {
    let bytes = spec.encoded_len();
    if bytes <= MAX_SPEC_BYTES {
        return Ok(());
    }
    let problem =
        format!("it takes {bytes} bytes, more than the maximum of {MAX_SPEC_BYTES}; keep data in files");
    Err(bad_field("spec", &problem))
}

/// The first warnings, each truncated.
pub(super) fn bounded_warnings(mut warnings: Vec<String>) -> Vec<String> {
    let more = warnings.len().saturating_sub(MAX_WARNINGS);
    warnings.truncate(MAX_WARNINGS);
    for warning in &mut warnings {
        cut(warning, MAX_TEXT_BYTES);
    }
    if more > 0 {
        warnings.push(format!("and {}", counted(more, "more warning")));
    }
    warnings
}

/// Checks the sizes in an agent's registration, which go into keys, logs and metrics.
pub(super) fn check_registration(hello: &v1::AgentRegister) -> Result<(), Status> {
    check_name("register.agent_id", &hello.agent_id, 1)?;
    check_name("register.hostname", &hello.hostname, 0)?;
    check_name("register.version", &hello.version, 0)?;
    if hello.devices.is_empty() || hello.devices.len() > MAX_DEVICES {
        let problem =
            format!("an agent must offer 1 to {MAX_DEVICES} devices, and this one {}", hello.devices.len());
        return Err(bad_field("register.devices", &problem));
    }
    if hello.session_ids.len() > MAX_DEVICES {
        let problem =
            format!("{} rank processes, more than the maximum of {MAX_DEVICES}", hello.session_ids.len());
        return Err(bad_field("register.session_ids", &problem));
    }
    for session in &hello.session_ids {
        check_name("register.session_ids", session, 1)?;
    }
    for device in &hello.devices {
        check_name("register.devices.id", &device.id, 1)?;
        check_name("register.devices.kind", &device.kind, 1)?;
        check_name("register.devices.name", &device.name, 0)?;
    }
    let mut ids: Vec<&str> = hello.devices.iter().map(|device| device.id.as_str()).collect();
    ids.sort_unstable();
    if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(bad_field("register.devices", &format!("device {} is offered twice", twice[0])));
    }
    Ok(())
}

pub(super) fn check_name(field: &str, name: &str, min: usize) -> Result<(), Status> {
    if name.len() < min || name.len() > MAX_NAME_BYTES {
        let problem = format!("it must have {min} to {MAX_NAME_BYTES} bytes, and has {}", name.len());
        return Err(bad_field(field, &problem));
    }
    if name.chars().any(char::is_control) {
        return Err(bad_field(field, &format!("{name:?} has control characters")));
    }
    Ok(())
}

/// A rank's exit report, truncated.
pub(super) fn bounded_exit(mut exit: v1::RankExited) -> v1::RankExited {
    let extra = exit.log_tail.len().saturating_sub(MAX_LOG_LINES);
    exit.log_tail.drain(..extra);
    exit.log_tail.iter_mut().for_each(|line| cut(line, MAX_TEXT_BYTES));
    exit
}

/// A rank's message with the free text of a failure truncated. Everything else has limits of its own, beyond
/// which the message is rejected.
pub(super) fn bounded_message(mut message: rank_message::Message) -> rank_message::Message {
    if let rank_message::Message::Failure(failure) = &mut message {
        cut(&mut failure.message, MAX_TEXT_BYTES);
        cut(&mut failure.advice, MAX_TEXT_BYTES);
        failure.rows.truncate(MAX_ROWS);
        failure.rows.iter_mut().for_each(|row| cut(row, MAX_NAME_BYTES));
    }
    message
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn agent() -> v1::AgentRegister {
        let device = v1::Device { id: "cpu:0".into(), kind: "cpu".into(), ..Default::default() };
        v1::AgentRegister { agent_id: "a".into(), devices: vec![device], ..Default::default() }
    }

    #[test]
    fn an_oversized_registration_is_rejected() {
        check_registration(&agent()).unwrap();
        let long = "x".repeat(3 << 20);
        let many = |count: usize| {
            (0..count)
                .map(|n| v1::Device { id: n.to_string(), kind: "cpu".into(), ..Default::default() })
                .collect()
        };
        let device = agent().devices.remove(0);
        for (field, wrong) in [
            ("register.agent_id", v1::AgentRegister { agent_id: String::new(), ..agent() }),
            ("register.agent_id", v1::AgentRegister { agent_id: "a\n\u{1b}[31m".into(), ..agent() }),
            ("register.hostname", v1::AgentRegister { hostname: long.clone(), ..agent() }),
            ("register.version", v1::AgentRegister { version: long.clone(), ..agent() }),
            ("register.devices", v1::AgentRegister { devices: many(200_000), ..agent() }),
            ("register.devices", v1::AgentRegister { devices: Vec::new(), ..agent() }),
            (
                "register.devices",
                v1::AgentRegister { devices: vec![device.clone(), device.clone()], ..agent() },
            ),
            (
                "register.devices.name",
                v1::AgentRegister { devices: vec![v1::Device { name: long, ..device }], ..agent() },
            ),
            ("register.session_ids", v1::AgentRegister { session_ids: vec!["s".into(); 100_000], ..agent() }),
        ] {
            let status = check_registration(&wrong).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().starts_with(field), "{field}: {}", status.message());
            assert!(status.message().len() < 300);
        }
    }

    #[test]
    fn exit_and_failure_reports_are_truncated() {
        let exit = v1::RankExited { log_tail: vec!["ä".repeat(100_000); 1000], ..Default::default() };
        assert!(bounded_exit(exit).encoded_len() < 200_000);
        let failure = v1::TaskFailure {
            message: "x".repeat(1 << 20),
            rows: vec!["row".repeat(1000); 100_000],
            ..Default::default()
        };
        let rank_message::Message::Failure(failure) =
            bounded_message(rank_message::Message::Failure(failure))
        else {
            panic!("still a failure")
        };
        assert!(failure.encoded_len() < 200_000, "{} bytes", failure.encoded_len());
    }

    #[test]
    fn texts_are_truncated_between_characters() {
        // The fifth byte is inside the ö.
        let mut text = "abcdöf and so on".to_owned();
        cut(&mut text, 8);
        assert_eq!(text, "abcd…");
        let mut short = "short".to_owned();
        cut(&mut short, 5);
        assert_eq!(short, "short");
    }
}

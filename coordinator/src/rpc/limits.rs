//! Bounds of what comes from outside, so that whatever is accepted can also be told: in a message, a log line, a list.

use foil_proto::v1::{self, rank_message};
use prost::Message;
use tonic::Status;

use super::status::{bad_field, cut};

/// Largest specification.
pub(super) const SPEC_BYTES: usize = 512 << 10;
/// Most warnings of a submission, and the bytes of each.
const WARNINGS: usize = 100;
/// Longest text that is passed on as it came: a message, an advice, a line of a log.
const TEXT_BYTES: usize = 2048;
/// Most lines of a log's end.
const LOG_LINES: usize = 50;
/// Most rows that a failure names.
const ROWS: usize = 1024;
/// Most figures of a step.
const FIGURES: usize = 256;
/// Longest name of anything: an agent, a host, a device, a figure.
const NAME_BYTES: usize = 128;
/// Most devices of an agent, and most rank processes that it may still run.
const DEVICES: usize = 256;

/// A specification is part of many messages.
pub(super) fn check_spec(spec: &v1::JobSpec) -> Result<(), Status> {
    let bytes = spec.encoded_len();
    if bytes <= SPEC_BYTES {
        return Ok(());
    }
    let problem = format!("it takes {bytes} bytes, and {SPEC_BYTES} are the most; keep data in files");
    Err(bad_field("spec", &problem))
}

/// The first ones, each of a bounded length.
pub(super) fn bounded_warnings(mut warnings: Vec<String>) -> Vec<String> {
    let more = warnings.len().saturating_sub(WARNINGS);
    warnings.truncate(WARNINGS);
    for warning in &mut warnings {
        cut(warning, TEXT_BYTES);
    }
    if more > 0 {
        warnings.push(format!("and {more} more warnings"));
    }
    warnings
}

/// What an agent says of itself goes into keys, logs and metrics.
pub(super) fn check_registration(hello: &v1::AgentRegister) -> Result<(), Status> {
    check_name("register.agent_id", &hello.agent_id, 1)?;
    check_name("register.hostname", &hello.hostname, 0)?;
    check_name("register.version", &hello.version, 0)?;
    if hello.devices.is_empty() || hello.devices.len() > DEVICES {
        let problem =
            format!("an agent must offer 1 to {DEVICES} devices, and this one {}", hello.devices.len());
        return Err(bad_field("register.devices", &problem));
    }
    if hello.session_ids.len() > DEVICES {
        let problem = format!("{} rank processes, and {DEVICES} are the most", hello.session_ids.len());
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

pub(super) fn check_name(field: &str, name: &str, least: usize) -> Result<(), Status> {
    if name.len() < least || name.len() > NAME_BYTES {
        let problem = format!("it must have {least} to {NAME_BYTES} bytes, and has {}", name.len());
        return Err(bad_field(field, &problem));
    }
    if name.chars().any(char::is_control) {
        return Err(bad_field(field, &format!("{name:?} has control characters")));
    }
    Ok(())
}

/// How a rank process ended, with no more of its log than a failure keeps.
pub(super) fn bounded_exit(mut exit: v1::RankExited) -> v1::RankExited {
    let extra = exit.log_tail.len().saturating_sub(LOG_LINES);
    exit.log_tail.drain(..extra);
    exit.log_tail.iter_mut().for_each(|line| cut(line, TEXT_BYTES));
    exit
}

/// A rank's words, of bounded length.
pub(super) fn bounded_message(mut message: rank_message::Message) -> rank_message::Message {
    match &mut message {
        rank_message::Message::Failure(failure) => {
            cut(&mut failure.message, TEXT_BYTES);
            cut(&mut failure.advice, TEXT_BYTES);
            failure.rows.truncate(ROWS);
            failure.rows.iter_mut().for_each(|row| cut(row, NAME_BYTES));
        }
        rank_message::Message::Step(step) => bound_figures(&mut step.figures),
        rank_message::Message::Gang(result) => bound_figures(&mut result.metrics),
        rank_message::Message::Progress(progress) => cut(&mut progress.unit, NAME_BYTES),
        rank_message::Message::Chunk(result) => {
            result.moments.truncate(FIGURES);
            result.moments.iter_mut().for_each(|moments| cut(&mut moments.name, NAME_BYTES));
        }
        rank_message::Message::Hello(_)
        | rank_message::Message::Rendezvous(_)
        | rank_message::Message::Checkpoint(_) => {}
    }
    message
}

fn bound_figures(figures: &mut Vec<v1::Metric>) {
    figures.truncate(FIGURES);
    figures.iter_mut().for_each(|figure| cut(&mut figure.name, NAME_BYTES));
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
    fn an_agent_is_taken_by_its_word_only_as_far_as_its_words_are_short() {
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
    fn what_a_rank_says_of_its_end_is_bounded() {
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
    fn texts_are_cut_between_characters() {
        // The fifth byte lies within the ö.
        let mut text = "abcdöf and so on".to_owned();
        cut(&mut text, 8);
        assert_eq!(text, "abcd…");
        let mut short = "short".to_owned();
        cut(&mut short, 5);
        assert_eq!(short, "short");
    }
}

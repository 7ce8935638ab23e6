//! Checks of what workers report about themselves, before it is used: names become parts of logs, metrics and
//! paths.

use foil_common::version;
use foil_proto::v1;
use tonic::Status;

use super::limits::{check_name, check_registration};
use super::status::{bad_field, skewed};

/// Rejects an agent whose registration is malformed, or whose version differs from this coordinator's
/// although that is not allowed.
pub(super) fn check_agent(hello: &v1::AgentRegister, allow_skew: bool) -> Result<(), Status> {
    check_registration(hello)?;
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte);
    if !hello.agent_id.bytes().all(name) {
        let found = &hello.agent_id;
        let problem = format!("found {found:?}; expected letters, digits, '-', '_', '.', ':' and '@' only");
        return Err(bad_field("register.agent_id", &problem));
    }
    if let Some(device) = hello.devices.iter().find(|device| !["cpu", "cuda"].contains(&device.kind.as_str()))
    {
        let problem = format!("found {:?}; expected cpu or cuda", device.kind);
        return Err(bad_field("register.devices.kind", &problem));
    }
    check_name("register.instance", &hello.instance, 0)?;
    check_name("register.build", &hello.build, 0)?;
    check_version(&format!("agent {}", hello.agent_id), &hello.version, &hello.build, allow_skew)
}

pub(super) fn check_rank(hello: &v1::RankHello, allow_skew: bool) -> Result<(), Status> {
    check_name("hello.session_id", &hello.session_id, 1)?;
    check_name("hello.secret", &hello.secret, 0)?;
    check_name("hello.version", &hello.version, 0)?;
    check_name("hello.build", &hello.build, 0)?;
    check_version(&format!("rank {}", hello.session_id), &hello.version, &hello.build, allow_skew)
}

fn check_version(who: &str, version: &str, build: &str, allow: bool) -> Result<(), Status> {
    match version::skew(version, build) {
        None => Ok(()),
        Some(skew) if allow => {
            tracing::warn!(
                who,
                skew,
                "accepted because of --allow-version-skew: its results may differ from those of others"
            );
            Ok(())
        }
        Some(skew) => {
            tracing::warn!(who, skew, "rejected worker of another version");
            Err(skewed(who, &skew))
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn hello() -> v1::AgentRegister {
        v1::AgentRegister {
            agent_id: "gpu-box.1".into(),
            hostname: "h".into(),
            devices: vec![device("cpu:0")],
            version: version::VERSION.into(),
            ..Default::default()
        }
    }

    fn device(id: &str) -> v1::Device {
        v1::Device { id: id.into(), kind: "cpu".into(), ..Default::default() }
    }

    #[test]
    fn an_agents_name_can_be_a_part_of_a_path() {
        check_agent(&hello(), false).unwrap();
        let tpu = v1::Device { kind: "tpu".into(), ..device("tpu:0") };
        let cases = [
            ("register.agent_id", v1::AgentRegister { agent_id: "a/../b".into(), ..hello() }),
            ("register.agent_id", v1::AgentRegister { agent_id: "a b".into(), ..hello() }),
            ("register.agent_id", v1::AgentRegister { agent_id: "\u{1b}[2J\n".into(), ..hello() }),
            ("register.build", v1::AgentRegister { build: "x".repeat(200), ..hello() }),
            ("register.instance", v1::AgentRegister { instance: "x".repeat(200), ..hello() }),
            ("register.devices.kind", v1::AgentRegister { devices: vec![tpu], ..hello() }),
        ];
        for (field, hello) in cases {
            let refused = check_agent(&hello, false).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
            assert!(refused.message().starts_with(&format!("{field}: ")), "{field}: {}", refused.message());
        }
    }

    #[test]
    fn another_version_is_rejected_unless_allowed() {
        let other = v1::AgentRegister { version: "9.9.9".into(), ..hello() };
        let refused = check_agent(&other, false).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("9.9.9") && refused.message().contains("--allow-version-skew"));
        check_agent(&other, true).unwrap();
        let rank = v1::RankHello { session_id: "s".into(), version: "9.9.9".into(), ..Default::default() };
        assert_eq!(check_rank(&rank, false).unwrap_err().code(), Code::FailedPrecondition);
        check_rank(&rank, true).unwrap();
        let own = v1::RankHello { version: version::VERSION.into(), ..rank };
        check_rank(&own, false).unwrap();
    }
}

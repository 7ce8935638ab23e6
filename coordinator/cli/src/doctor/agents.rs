//! Checks of the agents: connections, exclusions, versions, and free devices.

use std::collections::BTreeMap;

use foil_common::plural::counted;
use foil_common::version::VERSION;
use foil_proto::v1;

use super::finding::Finding;
use crate::client::Client;
use crate::workers;

const CHECK: &str = "agents";
/// Maximum number of agents named in a message.
const NAMED: usize = 5;

/// Judges the agents that the leader lists.
pub(super) async fn check(client: &Client) -> Vec<Finding> {
    match workers::agents(client).await {
        Ok(agents) => findings(&agents),
        Err(error) => vec![Finding::skip(CHECK, format!("they are not told: {error:#}"))],
    }
}

fn findings(agents: &[v1::Agent]) -> Vec<Finding> {
    let is_connected = |agent: &&v1::Agent| agent.state() == v1::AgentState::Connected;
    let connected: Vec<&v1::Agent> = agents.iter().filter(is_connected).collect();
    let mut findings = vec![match connected.is_empty() {
        true => Finding::warn(
            CHECK,
            "none is connected, and jobs wait",
            "start `foil-worker --coordinator URL` on each machine that is to run ranks; its log says why it does not connect",
        ),
        false => {
            let devices = devices(&connected);
            Finding::ok(CHECK, format!("{} connected; {devices}", counted(connected.len(), "agent")))
        }
    }];
    findings.extend(away(agents));
    findings.extend(excluded(&connected));
    findings.extend(versions(&connected));
    findings
}

/// Free and total devices, by kind.
fn devices(agents: &[&v1::Agent]) -> String {
    let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for device in agents.iter().flat_map(|agent| &agent.devices) {
        let kind = device.device.as_ref().map_or("", |device| device.kind.as_str());
        let (free, all) = kinds.entry(kind).or_default();
        *free += usize::from(device.r#use.is_none());
        *all += 1;
    }
    let kinds = kinds.into_iter().map(|(kind, (free, all))| format!("{free} of {all} {kind} free"));
    let told = kinds.collect::<Vec<_>>().join(", ");
    if told.is_empty() { "they have no devices".to_owned() } else { told }
}

fn away(agents: &[v1::Agent]) -> Option<Finding> {
    let is_away =
        |agent: &&v1::Agent| matches!(agent.state(), v1::AgentState::Disconnected | v1::AgentState::Expected);
    let away: Vec<&v1::Agent> = agents.iter().filter(is_away).collect();
    (!away.is_empty()).then(|| {
        Finding::warn(
            CHECK,
            format!("not connected at present: {}", named(&away)),
            "look at their logs and machines; the coordinator gives their ranks up after a while",
        )
    })
}

fn excluded(agents: &[&v1::Agent]) -> Option<Finding> {
    let excluded: Vec<&v1::Agent> =
        agents.iter().copied().filter(|agent| !agent.excluded_because.is_empty()).collect();
    let first = excluded.first()?;
    Some(Finding::warn(
        CHECK,
        format!("no ranks for a while: {} ({})", named(&excluded), first.excluded_because),
        "look at their logs; `foil workers` says until when",
    ))
}

/// Warns of agents whose version differs from this program's. The coordinator's version is compared
/// elsewhere.
fn versions(agents: &[&v1::Agent]) -> Option<Finding> {
    let others: Vec<&v1::Agent> = agents.iter().copied().filter(|agent| agent.version != VERSION).collect();
    let first = others.first()?;
    Some(Finding::warn(
        CHECK,
        format!("another version than this program's {VERSION}: {} ({})", named(&others), first.version),
        "use one version everywhere: a job gives the same weights on one only",
    ))
}

fn named(agents: &[&v1::Agent]) -> String {
    let mut names = agents.iter().take(NAMED).map(|agent| agent.id.as_str()).collect::<Vec<_>>().join(", ");
    let more = agents.len().saturating_sub(NAMED);
    if more > 0 {
        names += &format!(" and {more} more");
    }
    names
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn agent(id: &str, state: v1::AgentState, used: &[bool]) -> v1::Agent {
        let device = |used: &bool| v1::AgentDevice {
            device: Some(v1::Device { kind: "cuda".into(), ..Default::default() }),
            r#use: used.then(v1::DeviceUse::default),
        };
        let mut agent = v1::Agent {
            id: id.into(),
            version: VERSION.into(),
            devices: used.iter().map(device).collect(),
            ..Default::default()
        };
        agent.set_state(state);
        agent
    }

    #[test]
    fn free_devices_are_counted_and_all_is_well() {
        let connected = v1::AgentState::Connected;
        let found = findings(&[agent("a", connected, &[true, false]), agent("b", connected, &[false])]);
        assert_eq!(found, [Finding::ok(CHECK, "2 agents connected; 2 of 3 cuda free")]);
        let bare = findings(&[agent("a", connected, &[])]);
        assert_eq!(bare[0].message, "1 agent connected; they have no devices");
    }

    #[test]
    fn what_is_wrong_with_agents_is_told_with_their_names() {
        let none = findings(&[]);
        assert_eq!((none.len(), none[0].level), (1, Level::Warn));
        assert!(none[0].message.contains("none is connected"), "{none:?}");

        let mut agents: Vec<v1::Agent> =
            (0..7).map(|number| agent(&format!("x{number}"), v1::AgentState::Connected, &[false])).collect();
        agents.iter_mut().for_each(|agent| agent.excluded_because = "its ranks never connected".into());
        agents.push(v1::Agent { version: "0.0.1".into(), ..agent("old", v1::AgentState::Connected, &[]) });
        agents.push(agent("gone", v1::AgentState::Disconnected, &[false]));
        let found = findings(&agents);
        let warned: Vec<&str> = found[1..].iter().map(|finding| finding.message.as_str()).collect();
        let other = format!("another version than this program's {VERSION}: old (0.0.1)");
        assert_eq!(
            warned,
            [
                "not connected at present: gone",
                "no ranks for a while: x0, x1, x2, x3, x4 and 2 more (its ranks never connected)",
                other.as_str()
            ]
        );
        assert!(found[1..].iter().all(|finding| finding.level == Level::Warn && finding.advice.is_some()));
    }
}

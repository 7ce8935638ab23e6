//! `foil workers`: agents, their devices, and what runs on each device.

use std::time::SystemTime;

use anyhow::Result;
use clap::Args;
use foil_proto::v1;
use foil_proto::v1::agents_client::AgentsClient;
use serde_json::json;

use super::client::Client;
use super::client_args::ClientArgs;
use super::output::{Output, OutputArgs};
use super::{output, report, size, stdout};

#[derive(Debug, Args)]
pub(crate) struct WorkersArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn workers(args: &WorkersArgs) -> Result<()> {
    let agents = agents(&args.client.connect()?).await?;
    let value = || {
        let agents: Result<Vec<_>, _> = agents.iter().map(serde_json::to_value).collect();
        Ok(json!({ "agents": agents? }))
    };
    let format = args.output.format;
    if !output::structured(format, value, || agents.iter().map(|agent| agent.id.clone()))? {
        return Ok(());
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let rows = rows(&agents, format == Output::Wide, now);
    stdout::line(&report::align(&rows))?;
    for agent in agents.iter().filter(|agent| !agent.excluded_because.is_empty()) {
        let left = agent.excluded_until.as_ref().map_or(0, |until| until.seconds - now);
        stdout::prose(&format!(
            "{} gets no ranks for {} while others have devices: {}; look at its log",
            agent.id,
            output::age(left),
            agent.excluded_because
        ))?;
    }
    Ok(())
}

/// All agents, in order of their ids.
pub(crate) async fn agents(client: &Client) -> Result<Vec<v1::Agent>> {
    let (mut agents, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListAgentsRequest { page_size: 0, page_token };
        let list = |line, request| async move { AgentsClient::new(line).list_agents(request).await };
        let page = client.ask(request, list).await?;
        agents.extend(page.agents);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(agents);
        }
    }
}

/// A line for each device.
fn rows(agents: &[v1::Agent], wide: bool, now: i64) -> Vec<Vec<String>> {
    let mut head = vec!["AGENT", "HOST", "STATE", "DEVICE", "JOB", "RANK", "PHASE", "SINCE"];
    if wide {
        head.extend(["NAME", "MEMORY", "VERSION", "UP", "HEARD"]);
    }
    let age = |at: Option<&pbjson_types::Timestamp>| {
        at.map_or("–".to_owned(), |at| output::age(now - at.seconds))
    };
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for agent in agents {
        for row in &agent.devices {
            let device = row.device.clone().unwrap_or_default();
            let used = row.r#use.as_ref();
            let of_use = |text: fn(&v1::DeviceUse) -> String| used.map_or("–".to_owned(), text);
            let mut cells = vec![
                agent.id.clone(),
                agent.hostname.clone(),
                state_name(agent),
                device.id,
                of_use(|used| used.job_id.clone()),
                of_use(|used| used.rank.to_string()),
                of_use(|used| used.phase.clone()),
                age(used.and_then(|used| used.since.as_ref())),
            ];
            if wide {
                let memory = match device.memory_bytes {
                    0 => "–".to_owned(),
                    bytes => size::text(bytes),
                };
                cells.extend([
                    device.name,
                    memory,
                    agent.version.clone(),
                    age(agent.since.as_ref()),
                    age(agent.heard_at.as_ref()),
                ]);
            }
            rows.push(cells);
        }
    }
    rows
}

fn state_name(agent: &v1::Agent) -> String {
    match agent.state() {
        v1::AgentState::Connected if !agent.excluded_because.is_empty() => "excluded".to_owned(),
        state => state.as_str_name().trim_start_matches("AGENT_STATE_").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_a_line_with_what_it_does() {
        let at = |seconds| Some(pbjson_types::Timestamp { seconds, nanos: 0 });
        let device = |id: &str| Some(v1::Device { id: id.into(), kind: "cpu".into(), ..Default::default() });
        let used = v1::DeviceUse {
            job_id: "j1".into(),
            rank: 1,
            phase: "r00.sft".into(),
            since: at(940),
            ..Default::default()
        };
        let mut agent = v1::Agent {
            id: "a".into(),
            hostname: "h".into(),
            version: "1".into(),
            since: at(0),
            heard_at: at(999),
            devices: vec![
                v1::AgentDevice { device: device("cpu:0"), r#use: Some(used) },
                v1::AgentDevice { device: device("cpu:1"), r#use: None },
            ],
            ..Default::default()
        };
        agent.set_state(v1::AgentState::Connected);
        let narrow = rows(std::slice::from_ref(&agent), false, 1000);
        assert_eq!(narrow[1], ["a", "h", "connected", "cpu:0", "j1", "1", "r00.sft", "60s"]);
        assert_eq!(narrow[2], ["a", "h", "connected", "cpu:1", "–", "–", "–", "–"]);
        agent.excluded_because = "one of its ranks made a false report".into();
        let wide = rows(&[agent], true, 1000);
        assert_eq!(
            (wide[1][2].as_str(), &wide[1][8..]),
            ("excluded", &["".into(), "–".into(), "1".into(), "16m".into(), "1s".into()][..])
        );
    }
}

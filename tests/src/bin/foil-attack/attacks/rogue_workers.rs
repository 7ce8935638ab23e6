//! Peers that pretend to be agents and ranks.

use std::time::Duration;

use foil_common::version::VERSION;
use foil_proto::v1::workers_client::WorkersClient;
use foil_proto::v1::{self, agent_message, rank_message};
use futures::{StreamExt, stream};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::Aim;

async fn run_agent(aim: &Aim, hello: v1::AgentRegister, stay: Duration) {
    let register = v1::AgentMessage { message: Some(agent_message::Message::Register(hello)) };
    // Dropped at the end; without it the stream and its connection would stay open.
    let (_stays, leaves) = oneshot::channel::<()>();
    let words = stream::once(async move { register }).chain(stream::pending().take_until(leaves));
    if let Ok(answer) = WorkersClient::new(aim.channel()).agent(words).await {
        let mut commands = answer.into_inner();
        let heard = async { while let Ok(Some(_)) = commands.message().await {} };
        let _ = tokio::time::timeout(stay, heard).await;
    }
}

fn agent(agent_id: String, kind: &str, devices: usize) -> v1::AgentRegister {
    let device =
        |n: usize| v1::Device { id: format!("{kind}:{n}"), kind: kind.to_owned(), ..Default::default() };
    v1::AgentRegister {
        agent_id,
        hostname: "h".into(),
        devices: (0..devices).map(device).collect(),
        version: VERSION.into(),
        instance: format!("{:x}", fastrand::u64(..)),
        ..Default::default()
    }
}

/// Agents with ever new ids that register and leave immediately, with devices that no job requests.
pub(super) async fn agents_that_come_and_go(aim: Aim) {
    for _ in 0..20 {
        let name = format!("a{:x}", fastrand::u64(..));
        run_agent(&aim, agent(name, "cuda", 256), Duration::from_millis(5)).await;
    }
}

/// Agents that use the id of the honest agent.
pub(super) async fn impostors(aim: Aim) {
    run_agent(&aim, agent(super::ORDINARY_AGENT.to_owned(), "cpu", 64), Duration::from_secs(5)).await;
}

/// An agent that sorts first, accepts its ranks, and starts none of them.
pub(super) async fn black_hole(aim: Aim) {
    run_agent(&aim, agent("!blackhole".replace('!', "-"), "cpu", 64), Duration::from_secs(600)).await;
}

/// Peers that pretend to be the job's ranks and report arbitrary messages.
pub(super) async fn false_ranks(aim: Aim) {
    for session in [String::new(), format!("s{:x}", fastrand::u64(..)), "x".repeat(1 << 20)] {
        let hello = v1::RankHello {
            session_id: session,
            job_id: aim.job.clone(),
            attempt: 1,
            secret: format!("{:032x}", fastrand::u64(..)),
            version: VERSION.into(),
            ..Default::default()
        };
        let result = v1::ChunkResult {
            phase: "r01.policy.generate".into(),
            object: Some(v1::Object {
                key: "../../x".into(),
                size: 1 << 63,
                blake3: "zz".into(),
                path: "/".into(),
            }),
            moments: vec![v1::Moments { name: "x".into(), sum: f64::NAN, ..Default::default() }; 10_000],
            ..Default::default()
        };
        let words = [rank_message::Message::Hello(hello), rank_message::Message::Chunk(result)];
        let words = words.map(|message| v1::RankMessage { message: Some(message) });
        let words = stream::iter(words).chain(stream::pending());
        if let Ok(answer) = WorkersClient::new(aim.channel()).rank(words).await {
            let mut commands = answer.into_inner();
            let heard = async { while let Ok(Some(_)) = commands.message().await {} };
            let _ = tokio::time::timeout(Duration::from_secs(5), heard).await;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

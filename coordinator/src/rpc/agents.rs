//! The Agents service.

use std::time::Duration;

use foil_proto::v1::{self, agents_server::Agents};
use tonic::{Request, Response, Status};

use super::auth::caller;
use super::listing;
use super::status::{not_leading, stopped};
use crate::auth::Scope;
use crate::clock::{Clock, Now, timestamp};
use crate::cluster::{AgentFault, AgentView, DeviceView, LinkView};
use crate::driver::core::Core;
use crate::leadership::LeadershipHandle;

const DEFAULT_PAGE_SIZE: u32 = 100;
const MAX_PAGE_SIZE: u32 = 1000;

/// The Agents service.
#[derive(Debug, Clone)]
pub struct AgentsService {
    leadership: LeadershipHandle,
    /// The driver's clock.
    clock: Clock,
}

impl AgentsService {
    pub fn new(leadership: LeadershipHandle, clock: Clock) -> Self {
        Self { leadership, clock }
    }
}

#[tonic::async_trait]
impl Agents for AgentsService {
    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let scope = caller(&request)?.scope();
        let v1::ListAgentsRequest { page_size, page_token } = request.into_inner();
        let size = listing::page_size(page_size, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE);
        let driver = self.leadership.driver().map_err(|why| not_leading(&why))?;
        let now = self.clock.now();
        let page = driver.survey(move |core| page(core, &page_token, size, &View { scope, now }));
        Ok(Response::new(page.await.map_err(stopped)?))
    }
}

/// The caller's scope and the time of the call.
struct View {
    scope: Scope,
    now: Now,
}

fn page(core: &Core, after: &str, size: usize, of: &View) -> v1::ListAgentsResponse {
    let mut views = core.cluster().agents(after);
    let agents: Vec<v1::Agent> = views.by_ref().take(size).map(|view| agent(core, &view, of)).collect();
    let next = views.next().and(agents.last()).map(|agent| agent.id.clone());
    v1::ListAgentsResponse { agents, next_page_token: next.unwrap_or_default() }
}

fn agent(core: &Core, view: &AgentView<'_>, of: &View) -> v1::Agent {
    let now = of.now;
    let state = match view.link {
        LinkView::Connected => v1::AgentState::Connected,
        LinkView::Leaving => v1::AgentState::Leaving,
        LinkView::Disconnected => v1::AgentState::Disconnected,
        LinkView::Expected => v1::AgentState::Expected,
    };
    let because = match view.exclusion {
        Some((AgentFault::NeverConnected, _)) => "the ranks that it was to start never connected",
        Some((AgentFault::FalseReport, _)) => "one of its ranks made a false report",
        None => "",
    };
    v1::Agent {
        id: view.id.to_owned(),
        hostname: view.hostname.to_owned(),
        version: view.version.to_owned(),
        state: state.into(),
        since: Some(wall(view.since, now)),
        heard_at: view.heard.map(|heard| wall(heard, now)),
        excluded_because: because.to_owned(),
        excluded_until: view.exclusion.map(|(_, until)| wall(until, now)),
        devices: view.devices.iter().map(|device| device_of(core, device, of)).collect(),
    }
}

fn device_of(core: &Core, view: &DeviceView<'_>, of: &View) -> v1::AgentDevice {
    let used = view.holder.and_then(|(session, since)| {
        let state = core.state(core.job_of(session)?)?;
        let since = Some(wall(since, of.now));
        if !of.scope.includes(state.submitted.tenant()) {
            return Some(v1::DeviceUse { since, ..Default::default() });
        }
        let process = state.ranks.values().find(|process| process.session == session);
        Some(v1::DeviceUse {
            job_id: state.id.clone(),
            job_name: state.name().to_owned(),
            attempt: process.map_or(state.attempt, |process| process.attempt),
            rank: process.map_or(0, |process| process.rank),
            phase: state.phase().map(|phase| phase.id.to_string()).unwrap_or_default(),
            since,
        })
    });
    v1::AgentDevice { device: Some(view.device.clone()), r#use: used }
}

/// The wall-clock time of a monotonic one, before or after now.
fn wall(at: Duration, now: Now) -> pbjson_types::Timestamp {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let past = millis(now.mono.saturating_sub(at));
    timestamp(now.wall.saturating_sub(past).saturating_add(millis(at.saturating_sub(now.mono))))
}

//! The agents and their devices as users see them.

use std::time::Duration;

use foil_proto::v1;

use super::trust::AgentFault;
use super::{Agent, Cluster, Link};

/// An agent. Times are monotonic.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentView<'a> {
    pub id: &'a str,
    pub hostname: &'a str,
    pub version: &'a str,
    pub link: LinkView,
    /// When the agent's process registered, or when the cluster began to wait for it.
    pub since: Duration,
    /// When the agent was last heard from, if ever.
    pub heard: Option<Duration>,
    /// Why the agent gets no ranks while there are others, and until when.
    pub exclusion: Option<(AgentFault, Duration)>,
    pub devices: Vec<DeviceView<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkView {
    Connected,
    /// The agent is shutting down.
    Leaving,
    Disconnected,
    /// Known from a previous leader, not registered yet.
    Expected,
}

#[derive(Debug, Clone, PartialEq)]
pub struct DeviceView<'a> {
    pub device: &'a v1::Device,
    /// Session of the rank process on the device, and since when.
    pub holder: Option<(&'a str, Duration)>,
}

impl Cluster {
    /// All agents in order of their ids, starting after `after`.
    pub fn agents<'a>(&'a self, after: &str) -> impl Iterator<Item = AgentView<'a>> {
        let range = (std::ops::Bound::Excluded(after.to_owned()), std::ops::Bound::Unbounded);
        self.agents.range(range).map(|(id, agent)| agent.view(id))
    }
}

impl Agent {
    fn view<'a>(&'a self, id: &'a str) -> AgentView<'a> {
        let (link, heard) = match self.link {
            Link::Up { heard, .. } if self.leaving => (LinkView::Leaving, Some(heard)),
            Link::Up { heard, .. } => (LinkView::Connected, Some(heard)),
            Link::Down { since } => (LinkView::Disconnected, Some(since)),
            Link::Expected { .. } => (LinkView::Expected, None),
        };
        let devices = self.devices.iter().map(|device| DeviceView {
            device: &device.device,
            holder: device.holder.as_deref().map(|session| (session, device.since)),
        });
        AgentView {
            id,
            hostname: &self.hostname,
            version: self.release.as_ref().map_or("", |release| &release.version),
            link,
            since: self.since,
            heard,
            exclusion: self.trust.exclusion(),
            devices: devices.collect(),
        }
    }
}

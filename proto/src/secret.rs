//! `Debug` of messages that hold a secret: logs and test failures show all but that.

use std::fmt;

use crate::v1::{AgentRegister, PutBegin, RankHello, StartRank};

/// Shown in the place of a secret; an absent one is shown as such.
fn hidden(secret: &str) -> &'static str {
    if secret.is_empty() { "" } else { "…" }
}

impl fmt::Debug for AgentRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentRegister")
            .field("agent_id", &self.agent_id)
            .field("hostname", &self.hostname)
            .field("devices", &self.devices)
            .field("version", &self.version)
            .field("session_ids", &self.session_ids)
            .field("instance", &hidden(&self.instance))
            .field("build", &self.build)
            .field("advertise_address", &self.advertise_address)
            .finish()
    }
}

impl fmt::Debug for StartRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartRank")
            .field("session_id", &self.session_id)
            .field("job_id", &self.job_id)
            .field("attempt", &self.attempt)
            .field("rank", &self.rank)
            .field("world", &self.world)
            .field("device_id", &self.device_id)
            .field("threads", &self.threads)
            .field("secret", &hidden(&self.secret))
            .finish()
    }
}

impl fmt::Debug for RankHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RankHello")
            .field("session_id", &self.session_id)
            .field("job_id", &self.job_id)
            .field("attempt", &self.attempt)
            .field("rank", &self.rank)
            .field("task", &self.task)
            .field("secret", &hidden(&self.secret))
            .field("version", &self.version)
            .field("build", &self.build)
            .finish()
    }
}

impl fmt::Debug for PutBegin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutBegin")
            .field("key", &self.key)
            .field("size", &self.size)
            .field("blake3", &self.blake3)
            .field("job_id", &self.job_id)
            .field("attempt", &self.attempt)
            .field("session_id", &self.session_id)
            .field("secret", &hidden(&self.secret))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let secret = || "s3cret".to_owned();
        let shown = [
            format!("{:?}", AgentRegister { instance: secret(), ..Default::default() }),
            format!("{:?}", StartRank { secret: secret(), ..Default::default() }),
            format!("{:?}", RankHello { secret: secret(), ..Default::default() }),
            format!("{:?}", PutBegin { secret: secret(), ..Default::default() }),
        ];
        for text in shown {
            assert!(!text.contains("s3cret") && text.contains('…'), "{text}");
        }
    }
}

//! Leadership as the gRPC services see it: the driver if this process leads, or else the leader's address.

use tokio::sync::watch;

use super::Lease;
use crate::driver::Handle;
use crate::web::Readiness;

/// The role of this process.
#[derive(Debug, Clone)]
enum Role {
    /// Follows a leader; knows its address if the leader advertises one.
    Standby {
        leader: Option<String>,
    },
    Leading {
        driver: Handle,
        lease: Lease,
    },
}

/// Reason why this process cannot answer a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotLeading {
    #[error("this coordinator is a standby; the leader is at {leader}")]
    Elsewhere { leader: String },
    #[error("this coordinator is a standby and knows no leader yet; try again")]
    Unknown,
    #[error("this coordinator leads but cannot renew its leadership in the store at present; try again")]
    LeaseExpired,
}

/// Shared view of this process's role. Cheap to clone; all clones see the same role.
#[derive(Debug, Clone)]
pub struct LeadershipHandle {
    role: watch::Sender<Role>,
}

impl Default for LeadershipHandle {
    /// A standby that does not know a leader yet.
    fn default() -> Self {
        Self { role: watch::Sender::new(Role::Standby { leader: None }) }
    }
}

impl LeadershipHandle {
    pub(super) fn stand_by(&self, leader: Option<String>) {
        self.role.send_if_modified(|role| {
            let same = matches!(role, Role::Standby { leader: known } if *known == leader);
            *role = Role::Standby { leader };
            !same
        });
    }

    pub(super) fn lead(&self, driver: Handle, lease: Lease) {
        self.role.send_replace(Role::Leading { driver, lease });
    }

    /// The driver, provided that no other coordinator can be the leader.
    pub fn driver(&self) -> Result<Handle, NotLeading> {
        self.leading().map(|(driver, _)| driver)
    }

    /// The driver together with the lease that bounds how long it may answer.
    pub fn leading(&self) -> Result<(Handle, Lease), NotLeading> {
        match &*self.role.borrow() {
            Role::Leading { driver, lease } if lease.is_valid() => Ok((driver.clone(), lease.clone())),
            Role::Leading { .. } => Err(NotLeading::LeaseExpired),
            Role::Standby { leader: Some(leader) } => Err(NotLeading::Elsewhere { leader: leader.clone() }),
            Role::Standby { leader: None } => Err(NotLeading::Unknown),
        }
    }

    /// Stream of whether this process leads: the current state, then each change. Ends when the last clone is
    /// dropped.
    pub fn changes(&self) -> impl futures::Stream<Item = bool> + Send + 'static + use<> {
        use futures::StreamExt;
        let roles = tokio_stream::wrappers::WatchStream::new(self.role.subscribe());
        roles.map(|role| matches!(role, Role::Leading { .. }))
    }

    /// Readiness for `/readyz`. A standby that knows its leader is ready. A leader whose store has `trouble`
    /// is degraded but ready: no other coordinator would do better, and its workers must not lose it.
    pub fn readiness(&self, trouble: Option<String>) -> Readiness {
        match self.leading() {
            Ok(_) => trouble.map_or(Readiness::Ready, Readiness::Degraded),
            Err(NotLeading::Elsewhere { .. }) => Readiness::Ready,
            Err(other) => Readiness::Waiting(other.to_string()),
        }
    }
}

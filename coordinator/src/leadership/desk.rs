//! Whether this process leads, as its services see it.

use tokio::sync::watch;

use super::Lease;
use crate::driver::Handle;
use crate::web::Readiness;

/// What this process is at.
#[derive(Debug, Clone)]
enum Role {
    /// Knows the leader's address where the leader told it.
    Standby {
        leader: Option<String>,
    },
    Leading {
        driver: Handle,
        lease: Lease,
    },
}

/// Why a call cannot be answered here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotLeading {
    #[error("this coordinator is a standby; the leader is at {leader}")]
    Elsewhere { leader: String },
    #[error("this coordinator is a standby and knows no leader yet; try again")]
    Unknown,
    #[error("this coordinator leads but cannot renew its leadership in the store at present; try again")]
    Lapsed,
}

/// Cheap to clone; all clones see the same.
#[derive(Debug, Clone)]
pub struct Desk {
    role: watch::Sender<Role>,
}

impl Default for Desk {
    /// A standby that knows nothing yet.
    fn default() -> Self {
        Self { role: watch::Sender::new(Role::Standby { leader: None }) }
    }
}

impl Desk {
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

    /// The driver, while nobody else can lead.
    pub fn driver(&self) -> Result<Handle, NotLeading> {
        self.leading().map(|(driver, _)| driver)
    }

    /// The same with what tells how long that is so.
    pub fn leading(&self) -> Result<(Handle, Lease), NotLeading> {
        match &*self.role.borrow() {
            Role::Leading { driver, lease } if lease.holds() => Ok((driver.clone(), lease.clone())),
            Role::Leading { .. } => Err(NotLeading::Lapsed),
            Role::Standby { leader: Some(leader) } => Err(NotLeading::Elsewhere { leader: leader.clone() }),
            Role::Standby { leader: None } => Err(NotLeading::Unknown),
        }
    }

    /// Whether this process leads, at present and after each change. Ends with the last clone of this.
    pub fn changes(&self) -> impl futures::Stream<Item = bool> + Send + 'static + use<> {
        use futures::StreamExt;
        let roles = tokio_stream::wrappers::WatchStream::new(self.role.subscribe());
        roles.map(|role| matches!(role, Role::Leading { .. }))
    }

    /// A standby that knows its leader is ready: it does all it is there for. So is a leader whose store is in `trouble`:
    /// nobody else would fare better, and its workers must not lose it.
    pub fn readiness(&self, trouble: Option<String>) -> Readiness {
        match self.leading() {
            Ok(_) => trouble.map_or(Readiness::Ready, Readiness::Degraded),
            Err(NotLeading::Elsewhere { .. }) => Readiness::Ready,
            Err(other) => Readiness::Waiting(other.to_string()),
        }
    }
}

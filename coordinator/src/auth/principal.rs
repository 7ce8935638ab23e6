//! Principals, roles and tenants.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use crate::job::Submitted;
use crate::tenant::Tenant;

/// Size limit of a principal's name, which goes into the log and the audit log.
const MAX_NAME_BYTES: usize = 128;

/// Role of a principal. Each of the first four includes the permissions of those before it; an agent is
/// separate from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Reads the jobs of its tenant and their results.
    Viewer,
    /// Submits jobs, and cancels its own.
    Submitter,
    /// Acts on all jobs of its tenant.
    Operator,
    /// Acts on the jobs of all tenants, and on the service.
    Admin,
    /// Offers devices and runs the ranks of every tenant's jobs.
    Agent,
}

impl Role {
    pub const ALL: [Self; 5] = [Self::Viewer, Self::Submitter, Self::Operator, Self::Admin, Self::Agent];

    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Submitter => "submitter",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Agent => "agent",
        }
    }

    /// True if it may do everything that `needed` may.
    pub fn includes(self, needed: Self) -> bool {
        match (self.level(), needed.level()) {
            (Some(own), Some(needed)) => own >= needed,
            _ => self == needed,
        }
    }

    /// Rank among the roles of users; none for an agent.
    fn level(self) -> Option<u8> {
        match self {
            Self::Viewer => Some(0),
            Self::Submitter => Some(1),
            Self::Operator => Some(2),
            Self::Admin => Some(3),
            Self::Agent => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| {
            format!("{text:?} is no role; expected viewer, submitter, operator, admin or agent")
        })
    }
}

/// Checks the name of a principal.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.trim() != name {
        return Err(format!("a name must have 1 to {MAX_NAME_BYTES} bytes, without blanks at its ends"));
    }
    match name.chars().any(char::is_control) {
        true => Err(format!("the name {name:?} has control characters")),
        false => Ok(()),
    }
}

/// The proof that identifies a principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// None: the coordinator has no authentication configured.
    Local,
    Token,
    Certificate,
    Jwt,
}

impl Source {
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::Jwt => "jwt",
        }
    }
}

/// The caller of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub name: String,
    pub tenant: Tenant,
    pub role: Role,
    pub source: Source,
    /// When its proof expires.
    pub expires: Option<SystemTime>,
}

impl Principal {
    /// The principal of every caller of a coordinator without authentication.
    pub fn local() -> Self {
        let (name, tenant) = ("local".to_owned(), Tenant::default());
        Self { name, tenant, role: Role::Admin, source: Source::Local, expires: None }
    }

    /// The jobs that are visible to it.
    pub fn scope(&self) -> Scope {
        match self.role {
            Role::Admin => Scope::AllTenants,
            Role::Viewer | Role::Submitter | Role::Operator | Role::Agent => {
                Scope::Tenant(self.tenant.clone())
            }
        }
    }

    /// True if it may cancel or delete this job, which must be visible to it.
    pub fn may_change(&self, job: &Submitted) -> bool {
        // A job of an older log has no owner, so no submitter owns it.
        self.role.includes(Role::Operator) || (self.role == Role::Submitter && job.owner == self.name)
    }
}

/// The tenants whose jobs and inputs a caller may see; all others do not exist for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Tenant(Tenant),
    AllTenants,
}

impl Scope {
    pub fn includes(&self, tenant: &str) -> bool {
        match self {
            Self::Tenant(own) => own.as_str() == tenant,
            Self::AllTenants => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::fixture::submitted;

    #[test]
    fn roles_include_those_below_and_an_agent_is_apart() {
        use Role::{Admin, Agent, Operator, Submitter, Viewer};
        for (role, included) in [
            (Viewer, &[Viewer][..]),
            (Submitter, &[Viewer, Submitter]),
            (Operator, &[Viewer, Submitter, Operator]),
            (Admin, &[Viewer, Submitter, Operator, Admin]),
            (Agent, &[Agent]),
        ] {
            let found: Vec<Role> = Role::ALL.into_iter().filter(|needed| role.includes(*needed)).collect();
            assert_eq!(found, included, "{role}");
            assert_eq!(role.name().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().unwrap_err().contains("\"root\" is no role; expected viewer"));
    }

    #[test]
    fn a_tenants_name_can_be_a_part_of_a_key_and_is_no_hash() {
        for good in ["default", "a", "vision-2", &"a".repeat(63)] {
            assert_eq!(good.parse::<Tenant>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a b", "é", &"a".repeat(64)] {
            assert!(bad.parse::<Tenant>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_bounded_and_printable() {
        check_name("Alice Liddell <alice@example.com>").unwrap();
        for bad in ["", " a", "a ", "a\nb", "\u{1b}[2J", &"x".repeat(129)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_submitter_changes_its_own_jobs_only() {
        let principal = |name: &str, role| Principal { name: name.into(), role, ..Principal::local() };
        let owned = |owner: &str| Submitted { owner: owner.into(), ..submitted(&[]) };
        assert!(principal("ada", Role::Submitter).may_change(&owned("ada")));
        assert!(!principal("ada", Role::Submitter).may_change(&owned("bob")));
        assert!(!principal("ada", Role::Viewer).may_change(&owned("ada")));
        assert!(principal("ada", Role::Operator).may_change(&owned("bob")));
        assert!(!principal("", Role::Submitter).may_change(&owned("x")));
        assert!(!principal("ada", Role::Agent).may_change(&owned("ada")));
    }
}

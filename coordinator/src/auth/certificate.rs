//! Principals named by the subject of a client certificate.

use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

use super::principal::{Principal, Role, Source, check_name};
use crate::tenant::Tenant;

/// Maximum number of organizational units that are read.
const MAX_UNITS: usize = 16;

/// The parts of a certificate's subject that name a principal: `CN` is its name, `O` its tenant, and one
/// `OU` its role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    pub common_name: String,
    /// Empty for the tenant `default`.
    pub organization: String,
    pub units: Vec<String>,
    /// The end of the certificate's validity.
    pub expires: Option<SystemTime>,
}

impl Subject {
    /// The subject of a certificate in DER; empty if it cannot be read.
    pub fn of_certificate(der: &[u8]) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Self::default() };
        let text = |attribute: &AttributeTypeAndValue<'_>| attribute.as_str().unwrap_or_default().to_owned();
        let subject = certificate.subject();
        Self {
            common_name: subject.iter_common_name().next().map(text).unwrap_or_default(),
            organization: subject.iter_organization().next().map(text).unwrap_or_default(),
            units: subject.iter_organizational_unit().take(MAX_UNITS).map(text).collect(),
            expires: expiry(&certificate),
        }
    }

    /// The principal, or the reason why the certificate names none.
    ///
    /// A role is never assumed, because any certificate of a CA that also signs for other purposes would then
    /// identify a user.
    pub fn principal(&self) -> Result<Principal, String> {
        check_name(&self.common_name).map_err(|problem| format!("its CN names no principal: {problem}"))?;
        let tenant = match self.organization.as_str() {
            "" => Tenant::default(),
            named => named.parse().map_err(|problem| format!("its O names no tenant: {problem}"))?,
        };
        let mut roles = self.units.iter().filter_map(|unit| unit.parse::<Role>().ok());
        match (roles.next(), roles.next()) {
            (Some(role), None) => {
                let name = self.common_name.clone();
                Ok(Principal { name, tenant, role, source: Source::Certificate, expires: self.expires })
            }
            (None, _) => {
                Err("none of its OU is a role: viewer, submitter, operator, admin or agent".to_owned())
            }
            (Some(_), Some(_)) => Err("it has several roles among its OU; expected one".to_owned()),
        }
    }
}

fn expiry(certificate: &X509Certificate<'_>) -> Option<SystemTime> {
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(common_name: &str, organization: &str, units: &[&str]) -> Subject {
        Subject {
            common_name: common_name.into(),
            organization: organization.into(),
            units: units.iter().map(|unit| (*unit).to_owned()).collect(),
            expires: None,
        }
    }

    #[test]
    fn a_subject_names_a_principal_only_with_a_role() {
        let ada = subject("ada", "vision", &["Research", "operator"]).principal().unwrap();
        let tenant: Tenant = "vision".parse().unwrap();
        assert_eq!((ada.name.as_str(), ada.tenant, ada.role), ("ada", tenant, Role::Operator));
        let agent = subject("gpu-7", "", &["agent"]).principal().unwrap();
        assert_eq!((agent.tenant, agent.role), (Tenant::default(), Role::Agent));
        for (wrong, problem) in [
            (subject("ada", "vision", &[]), "none of its OU is a role"),
            (subject("ada", "vision", &["Admin"]), "none of its OU is a role"),
            (subject("ada", "vision", &["viewer", "admin"]), "several roles"),
            (subject("", "vision", &["viewer"]), "its CN names no principal"),
            (subject("ada", "Vision Ltd", &["viewer"]), "its O names no tenant"),
        ] {
            let found = wrong.principal().unwrap_err();
            assert!(found.contains(problem), "{wrong:?}: {found}");
        }
        assert_eq!(Subject::of_certificate(b"no certificate"), Subject::default());
    }
}

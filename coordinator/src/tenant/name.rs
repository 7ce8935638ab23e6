use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The tenant of jobs that specify none.
pub const DEFAULT_TENANT: &str = "default";
/// Maximum length of a tenant's name, the same as of a DNS label, because it is a part of keys in the store.
const MAX_TENANT_BYTES: usize = 63;

/// Name of a tenant. What belongs to one tenant is invisible to the users of all others.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(Arc<str>);

impl Tenant {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self(DEFAULT_TENANT.into())
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl TryFrom<String> for Tenant {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> Self {
        tenant.to_string()
    }
}

impl FromStr for Tenant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_edge = |byte: Option<u8>| byte.is_some_and(|byte| byte != b'-');
        let fits = (1..=MAX_TENANT_BYTES).contains(&text.len())
            && text.bytes().all(is_inner)
            && is_edge(text.bytes().next())
            && is_edge(text.bytes().last());
        if fits {
            return Ok(Self(text.into()));
        }
        let shown: String = text.chars().take(MAX_TENANT_BYTES).collect();
        Err(format!(
            "{shown:?} cannot name a tenant; expected 1 to {MAX_TENANT_BYTES} lower-case letters, digits and '-', with a letter \
             or digit at both ends"
        ))
    }
}

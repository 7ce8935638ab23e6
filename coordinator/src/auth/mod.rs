//! Caller identity: principals, their tenants and roles, and the proofs that identify them.

mod authenticator;
mod certificate;
mod jwt;
mod principal;
pub mod token;
mod token_file;
mod watched;

pub use authenticator::{AuthConfig, Authenticator, Evidence, Refusal};
pub use certificate::Subject;
pub use jwt::{JwtConfig, KeySource};
pub use principal::{Principal, Role, Scope, Source, check_name};
pub use token_file::{BadLine, Problem, TokenTable, entry_line, expiry};
pub use watched::ConfigError;

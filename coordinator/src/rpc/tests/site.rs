//! A coordinator with two tenants and a token for each role.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;

use super::*;
use crate::audit::{AuditFile, AuditLog};
use crate::auth::token::Token;
use crate::auth::{AuthConfig, Authenticator, Role, entry_line};
use crate::job::Submitted;
use crate::tenant::Tenant;

/// A coordinator with a token for each role in each of two tenants.
pub(super) struct Site {
    pub(super) coordinator: Coordinator,
    channel: Channel,
    pub(super) store: Store,
    pub(super) tokens: Vec<(String, Role, String)>,
    /// Directory of the token file and the audit log.
    pub(super) directory: tempfile::TempDir,
    /// Lines of the token file.
    lines: Vec<String>,
}

fn write_tokens(path: &Path, lines: &[String]) {
    let new = path.with_extension("new");
    fs::write(&new, lines.join("\n")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

/// Adds a header to each request.
#[derive(Clone)]
pub(super) struct Bearer(pub(super) Option<String>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(token) = &self.0 {
            let header = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
            request.metadata_mut().insert("authorization", header);
        }
        Ok(request)
    }
}

pub(super) type Identified = InterceptedService<Channel, Bearer>;

impl Site {
    pub(super) async fn start() -> Self {
        Self::start_on(Store::in_memory()).await
    }

    pub(super) async fn start_on(store: Store) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut random = StdRng::seed_from_u64(11);
        let (mut tokens, mut lines) = (Vec::new(), Vec::new());
        for tenant in ["vision", "speech"] {
            for role in Role::ALL {
                let token = Token::generate(&mut random).unwrap();
                let named: Tenant = tenant.parse().unwrap();
                lines.push(entry_line(&format!("{tenant}-{role}"), &named, role, &token, None));
                tokens.push((tenant.to_owned(), role, token.reveal().to_owned()));
            }
        }
        let path = directory.path().join("tokens");
        write_tokens(&path, &lines);
        let config = AuthConfig { token_file: Some(path), ..AuthConfig::default() };
        let authenticator = Authenticator::start(&config, &CancellationToken::new()).unwrap();
        let file = AuditFile::Path(directory.path().join("audit.jsonl"));
        let (audit, _) = AuditLog::start(Some(&file), store.clone()).unwrap();
        let coordinator = Coordinator::start_with(&store, |serve| {
            (serve.auth, serve.audit) = (Some(authenticator), Some(audit));
        })
        .await;
        let channel = coordinator.channel().await;
        Self { coordinator, channel, store, tokens, directory, lines }
    }

    /// Removes the tokens of these principals from the file.
    pub(super) fn revoke(&self, names: &[&str]) {
        let name = |line: &String| line.split_whitespace().next().unwrap_or_default().to_owned();
        let kept = self.lines.iter().filter(|line| !names.contains(&name(line).as_str()));
        write_tokens(&self.directory.path().join("tokens"), &kept.cloned().collect::<Vec<_>>());
    }

    pub(super) fn bearing(&self, token: Option<&str>) -> Identified {
        InterceptedService::new(self.channel.clone(), Bearer(token.map(str::to_owned)))
    }

    pub(super) fn token(&self, tenant: &str, role: Role) -> &str {
        &self.tokens.iter().find(|(of, as_, _)| of == tenant && *as_ == role).unwrap().2
    }

    pub(super) fn of(&self, tenant: &str, role: Role) -> Identified {
        self.bearing(Some(self.token(tenant, role)))
    }

    pub(super) fn jobs(&self, tenant: &str, role: Role) -> JobsClient<Identified> {
        JobsClient::new(self.of(tenant, role))
    }

    /// Commits a job of a tenant.
    pub(super) async fn submit(&self, id: &str, tenant: &str, owner: &str) {
        let job = Submitted {
            request_id: format!("request-{id}"),
            tenant: tenant.into(),
            owner: owner.into(),
            ..submitted(&[])
        };
        self.coordinator.handle.submit(id.into(), job).await.unwrap();
    }
}

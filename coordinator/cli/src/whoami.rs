//! `foil whoami`: who the caller is to the coordinator.

use anyhow::Result;
use clap::Args;
use foil_proto::v1;
use serde_json::json;

use super::client_args::ClientArgs;
use super::output::OutputArgs;
use super::{output, report, stdout};

#[derive(Debug, Args)]
pub(crate) struct WhoAmIArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

pub(crate) async fn whoami(args: &WhoAmIArgs) -> Result<()> {
    let who = args.client.connect()?.who_am_i().await?;
    let expires = who.expires_at.as_ref().map(serde_json::to_value).transpose()?;
    let value = || {
        Ok::<_, serde_json::Error>(json!({
            "name": who.name,
            "tenant": who.tenant,
            "role": role(who.role()),
            "credential": credential(who.credential()),
            "expires_at": expires,
        }))
    };
    if output::structured(args.output.format, value, || [who.name.clone()])? {
        let until = expires.as_ref().and_then(|at| at.as_str()).unwrap_or("–");
        let head = ["NAME", "TENANT", "ROLE", "BY", "EXPIRES"].map(str::to_owned).to_vec();
        let row = [who.name.as_str(), &who.tenant, role(who.role()), credential(who.credential()), until];
        stdout::line(&report::align(&[head, row.map(str::to_owned).to_vec()]))?;
    }
    Ok(())
}

fn role(role: v1::Role) -> &'static str {
    match role {
        v1::Role::Viewer => "viewer",
        v1::Role::Submitter => "submitter",
        v1::Role::Operator => "operator",
        v1::Role::Admin => "admin",
        v1::Role::Agent => "agent",
        v1::Role::Unspecified => "unknown",
    }
}

fn credential(credential: v1::Credential) -> &'static str {
    match credential {
        v1::Credential::None => "no authentication",
        v1::Credential::Token => "token",
        v1::Credential::Certificate => "certificate",
        v1::Credential::Jwt => "jwt",
        v1::Credential::Unspecified => "unknown",
    }
}

//! `foil tenants`: quotas of tenants, and what they use.

use anyhow::Result;
use clap::{Args, Subcommand};
use foil_proto::v1::{self, tenants_client::TenantsClient};
use serde_json::json;

use super::client::Client;
use super::client_args::ClientArgs;
use super::output::{Output, OutputArgs};
use super::{output, report, size, stdout};

#[derive(Debug, Subcommand)]
pub(crate) enum TenantsCommand {
    /// Lists the tenants that have a quota or a job.
    List(ListArgs),
    /// Prints a tenant's quota and what it uses.
    Get(TenantArgs),
    /// Sets limits of a tenant; limits that are not given are kept. Running jobs continue, whatever the new
    /// limits are.
    Set(SetArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct TenantArgs {
    /// Name of the tenant.
    tenant: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    tenant: TenantArgs,
    /// Devices of a kind in use at the same time, for example cuda=8 or cuda=none. May be repeated.
    #[arg(long = "devices", value_name = "KIND=N", value_parser = devices)]
    devices: Vec<(String, Limit<u32>)>,
    /// Jobs that may hold devices at the same time, or none for no limit.
    #[arg(long, value_name = "N", value_parser = number)]
    running_jobs: Option<Limit<u32>>,
    /// Jobs that may wait at the same time, or none for no limit.
    #[arg(long, value_name = "N", value_parser = number)]
    queued_jobs: Option<Limit<u32>>,
    /// Bytes in the store above which uploads and submissions are refused, for example 500GiB, or none for
    /// no limit.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    stored_bytes: Option<Limit<u64>>,
    /// Calls per second by the tenant's viewers and submitters, or none for no limit. Clients wait and retry
    /// calls above it.
    #[arg(long, value_name = "N", value_parser = number)]
    requests_per_second: Option<Limit<u32>>,
}

/// A new limit; `None` removes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit<T>(Option<T>);

fn number(text: &str) -> Result<Limit<u32>, String> {
    match text {
        "none" => Ok(Limit(None)),
        text => {
            text.parse().map(|number| Limit(Some(number))).map_err(|_| "write a number, or none".to_owned())
        }
    }
}

fn devices(text: &str) -> Result<(String, Limit<u32>), String> {
    let (kind, limit) = text.split_once('=').ok_or("write KIND=N, for example cuda=8")?;
    Ok((kind.to_owned(), number(limit)?))
}

fn bytes(text: &str) -> Result<Limit<u64>, String> {
    if text == "none" { Ok(Limit(None)) } else { size::bytes(text).map(|bytes| Limit(Some(bytes))) }
}

pub(crate) async fn tenants(command: &TenantsCommand) -> Result<()> {
    match command {
        TenantsCommand::List(args) => {
            let tenants = list(&args.client.connect()?).await?;
            let value = || Ok(json!({ "tenants": serde_json::to_value(&tenants)? }));
            let names = || tenants.iter().map(|tenant| tenant.name.clone());
            show(&tenants, args.output.format, value, names)
        }
        TenantsCommand::Get(args) => {
            let tenant = get(&args.client.connect()?, &args.tenant).await?;
            show_one(tenant, args.output.format)
        }
        TenantsCommand::Set(args) => {
            let client = args.tenant.client.connect()?;
            let current = get(&client, &args.tenant.tenant).await?;
            let quota = args.applied(current.quota.unwrap_or_default());
            let request = v1::SetQuotaRequest { tenant: args.tenant.tenant.clone(), quota: Some(quota) };
            let set = |line, request| async move { TenantsClient::new(line).set_quota(request).await };
            show_one(client.ask(request, set).await?, args.tenant.output.format)
        }
    }
}

impl SetArgs {
    /// A quota with the limits that are given.
    fn applied(&self, mut quota: v1::Quota) -> v1::Quota {
        for (kind, Limit(limit)) in &self.devices {
            match limit {
                Some(limit) => drop(quota.devices.insert(kind.clone(), *limit)),
                None => drop(quota.devices.remove(kind)),
            }
        }
        self.running_jobs.into_iter().for_each(|Limit(limit)| quota.running_jobs = limit);
        self.queued_jobs.into_iter().for_each(|Limit(limit)| quota.queued_jobs = limit);
        self.stored_bytes.into_iter().for_each(|Limit(limit)| quota.stored_bytes = limit);
        self.requests_per_second.into_iter().for_each(|Limit(limit)| quota.requests_per_second = limit);
        quota
    }
}

async fn get(client: &Client, tenant: &str) -> Result<v1::Tenant> {
    let request = v1::GetQuotaRequest { tenant: tenant.to_owned() };
    client
        .ask(request, |line, request| async move { TenantsClient::new(line).get_quota(request).await })
        .await
}

async fn list(client: &Client) -> Result<Vec<v1::Tenant>> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListTenantsRequest { page_size: 0, page_token };
        let ask = |line, request| async move { TenantsClient::new(line).list_tenants(request).await };
        let v1::ListTenantsResponse { tenants, next_page_token } = client.ask(request, ask).await?;
        all.extend(tenants);
        if next_page_token.is_empty() {
            return Ok(all);
        }
        page_token = next_page_token;
    }
}

fn show_one(tenant: v1::Tenant, format: Output) -> Result<()> {
    let value = serde_json::to_value(&tenant);
    let name = tenant.name.clone();
    show(&[tenant], format, || value, || [name])
}

fn show<I: IntoIterator<Item = String>>(
    tenants: &[v1::Tenant],
    format: Output,
    value: impl FnOnce() -> serde_json::Result<serde_json::Value>,
    names: impl FnOnce() -> I,
) -> Result<()> {
    if output::structured(format, value, names)? {
        stdout::line(&report::align(&rows(tenants)))?;
    }
    Ok(())
}

/// A line for each tenant: what it uses of its limits, `–` where there is none.
fn rows(tenants: &[v1::Tenant]) -> Vec<Vec<String>> {
    let of = |used: u64, max: Option<u64>| match max {
        Some(max) => format!("{used}/{max}"),
        None => format!("{used}/–"),
    };
    let mut rows =
        vec![["TENANT", "CPU", "CUDA", "RUNNING", "QUEUED", "BYTES", "REQ/S"].map(str::to_owned).to_vec()];
    rows.extend(tenants.iter().map(|tenant| {
        let (quota, usage) =
            (tenant.quota.clone().unwrap_or_default(), tenant.usage.clone().unwrap_or_default());
        let devices = |kind: &str| {
            let used = usage.devices.get(kind).copied().unwrap_or_default();
            of(used.into(), quota.devices.get(kind).copied().map(u64::from))
        };
        vec![
            tenant.name.clone(),
            devices("cpu"),
            devices("cuda"),
            of(usage.running_jobs.into(), quota.running_jobs.map(u64::from)),
            of(usage.queued_jobs.into(), quota.queued_jobs.map(u64::from)),
            of(usage.stored_bytes, quota.stored_bytes),
            quota.requests_per_second.map_or_else(|| "–".to_owned(), |rate| rate.to_string()),
        ]
    }));
    rows
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn limits_that_are_not_given_stay() {
        let line = "foil tenants set research --devices cuda=8 --devices cpu=none --queued-jobs none --stored-bytes 1MiB --requests-per-second 20";
        let Command::Tenants { command: TenantsCommand::Set(args) } =
            Cli::try_parse_from(line.split(' ')).unwrap().command
        else {
            panic!()
        };
        let quota = v1::Quota {
            devices: [("cpu".to_owned(), 3)].into(),
            running_jobs: Some(4),
            queued_jobs: Some(5),
            stored_bytes: None,
            requests_per_second: None,
        };
        let applied = args.applied(quota);
        assert_eq!(applied.devices, [("cuda".to_owned(), 8)].into());
        assert_eq!(
            (applied.running_jobs, applied.queued_jobs, applied.stored_bytes),
            (Some(4), None, Some(1 << 20))
        );
        let tenant = v1::Tenant { name: "research".into(), quota: Some(applied), usage: None };
        assert_eq!(rows(&[tenant])[1], ["research", "0/–", "0/8", "0/4", "0/–", "0/1048576", "20"]);
    }
}

//! `foil serve`: the coordinator process.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use foil_common::storage::Store;
use foil_common::tls::ServerTls;
use foil_common::{exposition, failpoint, listen, otlp, private, shutdown, telemetry};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use super::local_file::write_atomic;
use super::run::directory;
use super::serve_args::ServeArgs;
use foil_coordinator::Serve;
use foil_coordinator::audit::{AuditLog, AuditRetention};
use foil_coordinator::auth::Authenticator;
use foil_coordinator::descriptors;
use foil_coordinator::resolve::{ChildConfig, Resolver};
use foil_coordinator::trackers;

/// Advice on listening beyond loopback.
const SECURE_LISTEN: &str = "Give --tls-cert and --tls-key, and --token-file, --jwt-issuer or --tls-client-ca, or, on a network you trust, --insecure-listen";
/// Deadline for reading one job's inputs.
const INPUT_DEADLINE: Duration = Duration::from_secs(600);
/// Backlog of the listener; the kernel has its own limit (net.core.somaxconn).
const QUEUED_CONNECTIONS: u32 = 4096;
/// Time to write the last records of the audit log.
const AUDIT_DEADLINE: Duration = Duration::from_secs(5);
/// Time to send the last spans and metrics.
const OTLP_DEADLINE: Duration = Duration::from_secs(3);
/// Time from SIGTERM to exit; orchestrators kill after 30 seconds.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

pub(crate) async fn serve(args: ServeArgs) -> Result<()> {
    if let Some(parent) = args.parent_pid {
        die_with_parent(parent)?;
    }
    let tls_files = args.tls.files();
    let auth = args.auth.config(tls_files.as_ref());
    check_listen(&args, tls_files.is_some(), auth.is_given())?;
    failpoint::init()?;
    let otlp = otlp::Config::from_env("foil-coordinator")?;
    let trackers = trackers::Config::from_env()?;
    // Completions, prompts and weights in the store are private.
    private::restrict_umask();
    let stop = shutdown::on_signal()?.token();
    let tls = tls_files.map(|files| ServerTls::start(files, stop.clone())).transpose()?;
    let auth = auth.is_given().then(|| Authenticator::start(&auth, &stop)).transpose()?;
    let metrics = telemetry::install_metrics()?;
    exposition::start_alarms();
    let shown = metrics.clone();
    let otlp = otlp.map(|config| otlp::Exporter::start(config, Some(move || exposition::render(&shown))));
    let otlp = otlp.transpose()?;
    let store = Store::open(&args.store)?;
    let location = store.location().to_owned();
    let listener = bind(args.listen)
        .with_context(|| format!("cannot listen on {}; give another address with --listen", args.listen))?;
    let address = listener.local_addr()?;
    let advertised = args.advertise.clone().unwrap_or_else(|| default_url(address, tls.is_some()));
    if advertised.is_empty() {
        tracing::warn!("standbys cannot redirect clients to this coordinator; set its URL with --advertise");
    }
    let audit_file = args.auth.audit_file();
    // Without authentication the only principal is any user of this machine.
    let audit = match auth.is_some() || audit_file.is_some() {
        true => Some(AuditLog::start(audit_file.as_ref(), store.clone())?),
        false => None,
    };
    let (audit, audit_written) = audit.unzip();
    let retention = args.auth.audit_retention().filter(|_| audit.is_some());
    let audit_retention = retention.map(|retention| AuditRetention::new(store.clone(), retention));
    let mut serve = Serve::new(store, listener, metrics);
    serve.limits.connections = descriptors::connections(descriptors::raise(), serve.limits.connections);
    (serve.tls, serve.auth) = (tls, auth);
    (serve.audit, serve.audit_retention) = (audit, audit_retention);
    (serve.address, serve.take_over) = (advertised, args.take_over);
    serve.run_directory = args.run_directory.as_deref().and_then(directory::shell_word);
    serve.settings.snapshot_every = args.snapshot_every;
    serve.settings.policy.preempt_exempt = args.queue.preempt_exempt_time;
    serve.settings.allow_version_skew = args.allow_version_skew;
    serve.collect_garbage_every = args.gc_interval.0;
    serve.trackers = trackers;
    serve.direct_transfers = args.direct_transfers.0;
    if let Some(resolver) = child_resolver(&args) {
        serve.resolver = resolver;
    }
    let service = foil_coordinator::serve(serve, stop.clone()).await?;
    tracing::info!(%address, store = location, "serving");
    if let Some(file) = &args.port_file {
        write_port_file(file, address)?;
    }
    tokio::select! {
        ended = service => {
            if let Some(written) = audit_written {
                // The last records; all its senders have ended with the service.
                let _ = tokio::time::timeout(AUDIT_DEADLINE, written).await;
            }
            otlp.unwrap_or_default().shut_down(OTLP_DEADLINE).await;
            Ok(ended?)
        }
        () = stop_timeout(&stop) => {
            tracing::warn!("work in progress did not end in time and is abandoned; all state is in the store");
            Ok(())
        }
    }
}

/// Refuses an address beyond loopback without both TLS and authentication, or warns of what --insecure-listen
/// exposes.
fn check_listen(args: &ServeArgs, has_tls: bool, has_auth: bool) -> Result<()> {
    let danger = match (has_tls, has_auth) {
        (true, true) => return Ok(()),
        (false, true) => "read tokens, jobs and results on their way, and act with those tokens",
        (_, false) => "run jobs, read all results and cancel everything",
    };
    listen::check(args.listen, args.insecure_listen, danger, SECURE_LISTEN).map_err(anyhow::Error::msg)?;
    if !args.listen.ip().is_loopback() {
        tracing::warn!(address = %args.listen, "--insecure-listen: anyone who reaches this address can {danger}");
    }
    Ok(())
}

/// Listens with the longest backlog that the kernel allows. If a burst of connections exceeds it, clients
/// wait a second until their kernel retries.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUED_CONNECTIONS)
}

/// A resolver that reads inputs in child processes, if those can open the store too.
fn child_resolver(args: &ServeArgs) -> Option<Resolver> {
    if args.store.starts_with("memory:") {
        tracing::warn!(
            "child processes cannot open a store in memory: jobs' inputs are read in this process, without limits"
        );
        return None;
    }
    Some(Resolver::in_children(ChildConfig {
        // The running program, even if its file was replaced.
        program: "/proc/self/exe".into(),
        store: args.store.clone(),
        memory: args.input_memory,
        deadline: INPUT_DEADLINE,
    }))
}

/// Completes when stopping takes too long.
async fn stop_timeout(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOP_DEADLINE).await;
}

/// Makes the kernel kill this process when its parent dies, which is safe at any moment: all state is in the
/// store.
fn die_with_parent(parent: u32) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot set the parent death signal")?;
    // The parent may have ended before the line above.
    if getppid().as_raw().cast_unsigned() != parent {
        bail!("the parent process {parent} is gone");
    }
    Ok(())
}

/// The URL of the listen address; empty if it is unspecified.
fn default_url(address: SocketAddr, is_tls: bool) -> String {
    let scheme = if is_tls { "https" } else { "http" };
    if address.ip().is_unspecified() { String::new() } else { format!("{scheme}://{address}") }
}

fn write_port_file(file: &Path, address: SocketAddr) -> Result<()> {
    write_atomic(file, format!("{address}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_is_not_advertised() {
        assert_eq!(default_url("10.0.0.7:81".parse().unwrap(), false), "http://10.0.0.7:81");
        assert_eq!(default_url("[::1]:81".parse().unwrap(), true), "https://[::1]:81");
        assert_eq!(default_url("0.0.0.0:81".parse().unwrap(), true), "");
    }

    #[test]
    fn the_port_file_has_the_address() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("port");
        write_port_file(&file, "127.0.0.1:81".parse().unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), "127.0.0.1:81\n");
    }
}

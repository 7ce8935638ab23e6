//! `foil serve`: the coordinator as a process.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use foil_common::storage::Store;
use foil_common::{failpoint, listen, private, shutdown, telemetry};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use super::args::ServeArgs;
use super::local_file::write_whole;
use foil_coordinator::Serve;
use foil_coordinator::descriptors;
use foil_coordinator::resolve::{ChildConfig, Resolver};

/// Time that reading one job's inputs may take.
const INPUT_DEADLINE: Duration = Duration::from_secs(600);
/// Connections that wait to be taken; the kernel has its own limit (net.core.somaxconn).
const QUEUED_CONNECTIONS: u32 = 4096;
/// From SIGTERM to the end; orchestrators kill after 30 seconds.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

pub(crate) async fn serve(args: ServeArgs) -> Result<()> {
    if let Some(parent) = args.parent_pid {
        end_with(parent)?;
    }
    listen::check(args.listen, args.insecure_listen, "run jobs").map_err(anyhow::Error::msg)?;
    failpoint::init()?;
    // Samples, prompts and weights in the store are nobody else's.
    private::restrict_umask();
    let stop = shutdown::on_signal()?.token();
    let metrics = telemetry::install_metrics()?;
    let store = Store::open(&args.store)?;
    let location = store.location().to_owned();
    let listener = bind(args.listen)
        .with_context(|| format!("cannot listen on {}; give another address with --listen", args.listen))?;
    let address = listener.local_addr()?;
    let advertised = args.advertise.clone().unwrap_or_else(|| reachable(address));
    if advertised.is_empty() {
        tracing::warn!(
            "clients of a standby are not told where this coordinator is; say it with --advertise URL"
        );
    }
    let mut serve = Serve::new(store, listener, metrics);
    serve.limits.connections = descriptors::connections(descriptors::raise(), serve.limits.connections);
    (serve.address, serve.take_over) = (advertised, args.take_over);
    serve.settings.snapshot_every = args.snapshot_every;
    serve.settings.allow_version_skew = args.allow_version_skew;
    if let Some(resolver) = apart(&args) {
        serve.resolver = resolver;
    }
    let service = foil_coordinator::serve(serve, stop.clone()).await?;
    tracing::info!(%address, store = location, "serving");
    if let Some(file) = &args.port_file {
        announce(file, address)?;
    }
    tokio::select! {
        ended = service => Ok(ended?),
        () = overdue(&stop) => {
            tracing::warn!("what was under way did not end in time and is left; all state is in the store");
            Ok(())
        }
    }
}

/// Listens with as long a queue as the kernel allows. A burst of connections beyond it costs others a second: so long a client's
/// kernel waits before it tries again.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUED_CONNECTIONS)
}

/// Reads inputs in child processes, where those can open the store too.
fn apart(args: &ServeArgs) -> Option<Resolver> {
    if args.store.starts_with("memory:") {
        tracing::warn!(
            "a store in memory is no other process's: jobs' inputs are read in this one, without limits"
        );
        return None;
    }
    Some(Resolver::in_children(ChildConfig {
        // The program that runs, also where its file was replaced since.
        program: "/proc/self/exe".into(),
        store: args.store.clone(),
        memory: args.input_memory,
        deadline: INPUT_DEADLINE,
    }))
}

/// Completes when a stop takes too long.
async fn overdue(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOP_DEADLINE).await;
}

/// Asks the kernel to kill this process with its parent. A kill is safe at any moment: all state is in the store.
fn end_with(parent: u32) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot be tied to the parent process")?;
    // The parent may have ended before the line above.
    if getppid().as_raw().cast_unsigned() != parent {
        bail!("the parent process {parent} is gone");
    }
    Ok(())
}

/// The URL of an address listened on; empty if that is every address of the machine, which names none.
fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() { String::new() } else { format!("http://{address}") }
}

fn announce(file: &Path, address: SocketAddr) -> Result<()> {
    write_whole(file, format!("{address}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_names_no_machine_is_not_advertised() {
        assert_eq!(reachable("10.0.0.7:81".parse().unwrap()), "http://10.0.0.7:81");
        assert_eq!(reachable("[::1]:81".parse().unwrap()), "http://[::1]:81");
        assert_eq!(reachable("0.0.0.0:81".parse().unwrap()), "");
    }

    #[test]
    fn the_address_is_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("port");
        announce(&file, "127.0.0.1:81".parse().unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), "127.0.0.1:81\n");
    }
}

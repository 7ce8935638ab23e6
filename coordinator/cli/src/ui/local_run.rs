//! The directory of a `foil run`, served by a coordinator in this process.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use foil_common::storage::Store;
use foil_coordinator::{Serve, ServeError};
use foil_proto::v1;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, is_ended};
use crate::run::directory::{self, RESULT, SPEC, STORE};
use crate::run::lock::{self, Holder, LOCK, Program};

/// A run that is being served. It has no workers, so that nothing in it changes.
pub(crate) struct LocalRun {
    pub(crate) client: Client,
    /// The job of the run.
    pub(crate) job: v1::Job,
    url: String,
    /// None if another process serves it.
    server: Option<Server>,
}

/// The coordinator of a run in this process.
struct Server {
    stop: CancellationToken,
    served: JoinHandle<Result<(), ServeError>>,
    /// Released when it is closed.
    lock: File,
}

/// A directory that another process uses.
#[derive(Debug, thiserror::Error)]
pub(super) enum InUse {
    #[error("{} is open in another `{}`, at {}", .directory.display(), .by.program.command(), .by.page())]
    Served { directory: PathBuf, by: Holder },
    #[error(
        "{} is in use by a `foil run` that begins or ends, or by a `foil report`; try again in a moment",
        .0.display()
    )]
    Other(PathBuf),
}

/// Whether `foil run` has made a directory.
pub(crate) fn is_run(path: &Path) -> bool {
    // A run whose store is elsewhere has no result before its end.
    let has = |name: &str| path.join(name).exists();
    path.join(SPEC).is_file() && (has(RESULT) || has(STORE) || has(LOCK))
}

impl LocalRun {
    /// Serves the store in a directory on loopback. Port 0 selects a free one.
    pub(crate) async fn open(directory: &Path, port: u16, metrics: PrometheusHandle) -> Result<Self> {
        let shown = directory.display();
        if !is_run(directory) {
            bail!(
                "{shown} is not the directory of a `foil run`: it has no {SPEC} with {RESULT} or {STORE}/ beside it"
            );
        }
        let lock = lock(directory)?;
        let location = directory.join(STORE);
        if !location.is_dir() {
            bail!(
                "{shown} has no {STORE}/: an earlier version of foil removed it, or the run had a --store of its own. Run it again \
                 with --fresh, or serve that store by `foil serve --store`, and open its page by `foil ui`"
            );
        }
        let store = Store::open(&location.to_string_lossy())?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(address).await;
        let listener =
            listener.with_context(|| format!("cannot listen on {address}; give another port with --port"))?;
        let url = format!("http://{}", listener.local_addr()?);
        let mut serve = Serve::new(store, listener, metrics);
        // Its last leader ended with the run.
        (serve.address, serve.take_over) = (url.clone(), true);
        serve.run_directory = directory::shell_word(directory);
        let stop = CancellationToken::new();
        let service = foil_coordinator::serve(serve, stop.clone()).await;
        let service = service.with_context(|| format!("cannot serve {}", location.display()))?;
        let served = tokio::spawn(service);
        let (client, job) = newest(&url, directory).await?;
        Ok(Self { client, job, url, server: Some(Server { stop, served, lock }) })
    }

    /// The run in a directory: served by this process, by the `foil ui` that has it open, or by the `foil
    /// run` itself.
    pub(crate) async fn read(directory: &Path, metrics: PrometheusHandle) -> Result<Self> {
        let error = match Self::open(directory, 0, metrics).await {
            Ok(run) => return Ok(run),
            Err(error) => error,
        };
        let Some(InUse::Served { by, .. }) = error.downcast_ref() else { return Err(error) };
        let client = Client::connect(&by.url)?;
        let job = client.get(&by.job).await.with_context(|| cannot_read(directory, &by.url))?;
        Ok(Self { client, job, url: by.url.clone(), server: None })
    }

    /// Announces the URL to other processes that are given the directory.
    pub(crate) fn announce(&self) -> io::Result<()> {
        let Some(server) = &self.server else { return Ok(()) };
        let (url, job) = (self.url.clone(), self.job.id.clone());
        Holder { program: Program::Ui, url, job }.announce(&server.lock)
    }

    /// URL of the job's page.
    pub(crate) fn page(&self) -> String {
        format!("{}/jobs/{}", self.url, self.job.id)
    }

    /// Whether the run was stopped before the job's end, so that no process works on it.
    pub(crate) fn is_stopped(&self) -> bool {
        self.server.is_some() && !is_ended(&self.job)
    }

    pub(crate) async fn close(self) -> Result<()> {
        let Some(server) = self.server else { return Ok(()) };
        server.stop.cancel();
        Ok(server.served.await.context("the coordinator panicked")??)
    }
}

/// The last job of the store that is served at a URL: those before it failed, or were canceled.
async fn newest(url: &str, directory: &Path) -> Result<(Client, v1::Job)> {
    let cannot = || cannot_read(directory, url);
    let client = Client::connect(url)?;
    let (rows, _) = client.rows(v1::ListJobsRequest::default(), 1).await.with_context(cannot)?;
    let Some(row) = rows.first() else {
        bail!("{} has no job: the run was stopped before it was submitted", directory.display())
    };
    let job = client.get(&row.id).await.with_context(cannot)?;
    Ok((client, job))
}

fn cannot_read(directory: &Path, url: &str) -> String {
    format!("cannot read {}, which is served at {url}", directory.display())
}

/// The lock that a run holds: two coordinators would take the store from each other.
fn lock(directory: &Path) -> Result<File> {
    let lock = lock::lock(directory);
    let lock = lock.with_context(|| format!("cannot lock {}", directory.display()))?;
    let in_use = || match Holder::of(directory) {
        Some(by) => InUse::Served { directory: directory.to_owned(), by },
        None => InUse::Other(directory.to_owned()),
    };
    Ok(lock.ok_or_else(in_use)?)
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    async fn refusal(directory: &Path) -> String {
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let opened = LocalRun::open(directory, 0, metrics).await;
        format!("{:#}", opened.err().expect("it is refused"))
    }

    #[tokio::test]
    async fn what_is_no_finished_run_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refusal(dir.path()).await.contains("is not the directory of a `foil run`"));
        for file in [SPEC, RESULT] {
            std::fs::write(dir.path().join(file), "{}").unwrap();
        }
        assert!(refusal(dir.path()).await.contains("--fresh"));
        std::fs::create_dir(dir.path().join(STORE)).unwrap();
        assert!(refusal(dir.path()).await.contains("has no job"));
        let held = lock(dir.path()).unwrap();
        assert!(refusal(dir.path()).await.contains("in use by a `foil run`"));
        drop(held);
    }

    #[tokio::test]
    async fn a_directory_that_is_served_is_read_from_there() {
        let dir = tempfile::tempdir().unwrap();
        for file in [SPEC, RESULT] {
            std::fs::write(dir.path().join(file), "{}").unwrap();
        }
        let handle = || PrometheusBuilder::new().build_recorder().handle();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut serve = Serve::new(Store::in_memory(), listener, handle());
        (serve.address, serve.take_over) = (url.clone(), true);
        let stop = CancellationToken::new();
        let served = tokio::spawn(foil_coordinator::serve(serve, stop.clone()).await.unwrap());
        let held = lock(dir.path()).unwrap();
        let read = async || {
            let read = LocalRun::read(dir.path(), handle()).await;
            format!("{:#}", read.err().expect("it is refused"))
        };
        assert!(read().await.contains("in use by a `foil run`"));
        for (program, name) in [(Program::Ui, "foil ui"), (Program::Run, "foil run")] {
            Holder { program, url: url.clone(), job: "j".into() }.announce(&held).unwrap();
            let told = refusal(dir.path()).await;
            assert!(told.contains(&format!("open in another `{name}`, at {url}/jobs/j")), "{told}");
            let told = read().await;
            assert!(told.contains("there is no job j"), "the other coordinator has answered: {told}");
        }
        stop.cancel();
        served.await.unwrap().unwrap();
    }
}

//! The Results service over gRPC, on a job whose results are made up.

mod completions;
mod distributions;
mod stepping;
mod steps;
mod timeline;

use foil_proto::v1::results_client::ResultsClient;

use super::made_up::write_datasets;
use super::*;
use crate::job::Submitted;
use crate::job::fixture::{Edit, datasets, job};
use crate::plan;

/// A coordinator with a finished job.
struct Finished {
    coordinator: Coordinator,
    store: Store,
    client: ResultsClient<Channel>,
}

/// Runs a job to its end; `change` may give it other data sets.
async fn finished(edits: &[Edit], change: impl FnOnce(&mut Vec<v1::Dataset>)) -> Finished {
    let store = Store::in_memory();
    let coordinator = Coordinator::start(&store).await;
    let mut sets = datasets();
    change(&mut sets);
    write_datasets(&store, &sets).await;
    let phases = plan::plan(&job(edits), &sets).iter().map(Into::into).collect();
    let plan = v1::Plan { phases, datasets: Vec::new() };
    let submitted = Submitted { plan, datasets: sets, ..submitted(edits) };
    coordinator.handle.submit(JOB.into(), submitted).await.unwrap();
    let (_address, worker) = start_worker(&store, coordinator.address, Deaths::default());
    watch_until(&mut coordinator.jobs().await, 0, |_| false).await;
    worker.abort();
    let client = ResultsClient::new(coordinator.channel().await);
    Finished { coordinator, store, client }
}

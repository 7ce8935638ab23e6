//! The delivery status shown to users.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foil_common::spec::Tracker;
use foil_common::storage::{Store, StoreError};
use foil_proto::v1;
use serde::{Deserialize, Serialize};

use super::batch::prefix;

/// The state of one job's delivery to one tracker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) phases: u32,
    /// Empty while there is no problem.
    pub(super) problem: String,
    pub(super) page: String,
}

/// The states of the deliveries of this process. Cheap to clone; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<HashMap<(String, Tracker), State>>>);

/// The record in the store of a completed delivery.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Receipt {
    pub(super) phases: u32,
    pub(super) page: String,
}

impl Board {
    pub(super) fn set(&self, job: &str, tracker: Tracker, state: State) {
        self.lock().insert((job.to_owned(), tracker), state);
    }

    /// Removes a delivery that is complete, or whose job no longer exists.
    pub(super) fn remove(&self, job: &str, tracker: Tracker) {
        self.lock().remove(&(job.to_owned(), tracker));
    }

    /// Removes all deliveries, because this process has stopped leading.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    /// The status of a job's delivery.
    pub(crate) async fn status(
        &self,
        store: &Store,
        job: &str,
        tracker: Tracker,
    ) -> Result<v1::TrackerStatus, StoreError> {
        let name = tracker.name().to_owned();
        let known = self.lock().get(&(job.to_owned(), tracker)).cloned();
        if let Some(State { phases, problem, page }) = known {
            return Ok(v1::TrackerStatus {
                tracker: name,
                complete: false,
                phases_delivered: phases,
                problem,
                url: page,
            });
        }
        let receipt = Receipt::read(store, job, tracker).await?;
        let complete = receipt.is_some();
        let Receipt { phases, page } = receipt.unwrap_or_default();
        Ok(v1::TrackerStatus {
            tracker: name,
            complete,
            phases_delivered: phases,
            problem: String::new(),
            url: page,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, Tracker), State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receipt {
    fn key(job: &str, tracker: Tracker) -> String {
        format!("{}/complete", prefix(job, tracker))
    }

    /// None if the delivery is not complete.
    pub(super) async fn read(store: &Store, job: &str, tracker: Tracker) -> Result<Option<Self>, StoreError> {
        match store.get(&Self::key(job, tracker)).await {
            // A damaged record still shows that the delivery is complete.
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_default())),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn write(&self, store: &Store, job: &str, tracker: Tracker) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        store.create(&Self::key(job, tracker), bytes).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_receipt_says_what_the_board_has_forgotten() {
        let (store, board) = (Store::in_memory(), Board::default());
        let status = async || board.status(&store, "j", Tracker::Mlflow).await.unwrap();
        assert!(!status().await.complete);
        let state = State { phases: 2, problem: "away".into(), page: "http://m/#/1".into() };
        board.set("j", Tracker::Mlflow, state);
        let told = status().await;
        assert_eq!((told.complete, told.phases_delivered, told.problem.as_str()), (false, 2, "away"));
        Receipt { phases: 3, page: "http://m/#/1".into() }.write(&store, "j", Tracker::Mlflow).await.unwrap();
        board.remove("j", Tracker::Mlflow);
        let told = status().await;
        assert_eq!((told.complete, told.phases_delivered, told.url.as_str()), (true, 3, "http://m/#/1"));
        assert!(!board.status(&store, "j", Tracker::TensorBoard).await.unwrap().complete);
    }
}

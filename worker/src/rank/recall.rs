//! What a rank has told of its present task: a later leader is told again.

use foil_common::version;
use foil_proto::v1;
use foil_proto::v1::rank_message::Message;

use super::RankOptions;

/// The last task and what was said of it. A leader that gives another task has made all before it durable, so nothing
/// older is kept.
#[derive(Debug, Default)]
pub(super) struct Recall {
    task: Option<v1::RankTask>,
    told: Vec<v1::RankMessage>,
}

impl Recall {
    pub(super) fn begin(&mut self, mut task: v1::rank_task::Task) {
        // What names the task is enough for a leader, which knows the work: that may be megabytes.
        let named = match &mut task {
            v1::rank_task::Task::Chunk(run) => run.task.as_mut(),
            v1::rank_task::Task::Gang(run) => {
                run.resume = None;
                run.task.as_mut()
            }
        };
        if let Some(named) = named {
            named.work = None;
        }
        self.task = Some(v1::RankTask { task: Some(task) });
        self.told.clear();
    }

    pub(super) fn note(&mut self, message: &v1::RankMessage) {
        match message.message {
            Some(
                Message::Step(_)
                | Message::Chunk(_)
                | Message::Rendezvous(_)
                | Message::Checkpoint(_)
                | Message::Gang(_)
                | Message::Failure(_),
            ) => self.told.push(message.clone()),
            // Progress is of the moment.
            Some(Message::Progress(_) | Message::Hello(_)) | None => {}
        }
    }

    /// What a stream begins with: a hello, then all that the leader at its other end may lack.
    pub(super) fn opening(&self, options: &RankOptions) -> Vec<v1::RankMessage> {
        let hello = v1::RankHello {
            session_id: options.session_id.clone(),
            job_id: options.job_id.clone(),
            attempt: options.attempt,
            rank: options.rank,
            task: self.task.clone(),
            secret: options.secret.as_str().to_owned(),
            version: version::VERSION.to_owned(),
            build: version::BUILD.to_owned(),
        };
        let hello = v1::RankMessage { message: Some(Message::Hello(hello)) };
        std::iter::once(hello).chain(self.told.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn artifact(objects: usize) -> Option<v1::Artifact> {
        let object = v1::Object { key: "k".repeat(100), blake3: "0".repeat(64), ..Default::default() };
        Some(v1::Artifact { objects: vec![object; objects], ..Default::default() })
    }

    #[test]
    fn a_task_is_named_again_without_its_work() {
        let work =
            v1::TrainPolicy { samples: artifact(10_000), scores: artifact(10_000), ..Default::default() };
        let work = Some(v1::task::Work::TrainPolicy(work));
        let task = v1::Task { phase: "r01.policy.train".into(), round: 1, work };
        let gang = v1::RunGang { task: Some(task), attempt: 2, ..Default::default() };
        assert!(gang.encoded_len() > 3 << 20);
        let mut recall = Recall::default();
        recall.begin(v1::rank_task::Task::Gang(gang));
        let told = recall.task.unwrap();
        assert!(told.encoded_len() < 100);
        let Some(v1::rank_task::Task::Gang(gang)) = told.task else { panic!("still a gang") };
        assert_eq!((gang.task.unwrap().phase.as_str(), gang.attempt), ("r01.policy.train", 2));
    }
}

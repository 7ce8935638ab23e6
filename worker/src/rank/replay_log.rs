//! The messages that a rank has sent about its current task, which are replayed to a new leader.

use foil_common::version;
use foil_proto::v1;
use foil_proto::v1::rank_message::Message;

use super::RankOptions;

/// The current task and the messages sent about it. A leader that assigns another task has made all earlier
/// messages durable, so older ones are dropped.
#[derive(Debug, Default)]
pub(super) struct ReplayLog {
    task: Option<v1::RankTask>,
    sent: Vec<v1::RankMessage>,
}

impl ReplayLog {
    pub(super) fn begin(&mut self, mut task: v1::rank_task::Task) {
        // The leader knows the task's work, which may be megabytes, so the task's name is enough.
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
        self.sent.clear();
    }

    pub(super) fn record(&mut self, message: &v1::RankMessage) {
        match message.message {
            Some(
                Message::Step(_)
                | Message::Chunk(_)
                | Message::Rendezvous(_)
                | Message::Checkpoint(_)
                | Message::Gang(_)
                | Message::Failure(_),
            ) => self.sent.push(message.clone()),
            // Progress is not replayed.
            Some(Message::Progress(_) | Message::Hello(_)) | None => {}
        }
    }

    /// The first messages of a stream: a hello and everything that a new leader may have missed.
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
        std::iter::once(hello).chain(self.sent.iter().cloned()).collect()
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
    fn a_task_is_replayed_without_its_work() {
        let work =
            v1::TrainPolicy { samples: artifact(10_000), scores: artifact(10_000), ..Default::default() };
        let work = Some(v1::task::Work::TrainPolicy(work));
        let task = v1::Task { phase: "r01.policy.train".into(), round: 1, work };
        let gang = v1::RunGang { task: Some(task), attempt: 2, ..Default::default() };
        assert!(gang.encoded_len() > 3 << 20);
        let mut replay = ReplayLog::default();
        replay.begin(v1::rank_task::Task::Gang(gang));
        let task = replay.task.unwrap();
        assert!(task.encoded_len() < 100);
        let Some(v1::rank_task::Task::Gang(gang)) = task.task else { panic!("still a gang") };
        assert_eq!((gang.task.unwrap().phase.as_str(), gang.attempt), ("r01.policy.train", 2));
    }
}

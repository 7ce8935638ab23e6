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
    pub(super) fn begin(&mut self, task: v1::rank_task::Task) {
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

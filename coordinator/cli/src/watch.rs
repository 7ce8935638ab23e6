//! Follows a job to its end.

use anyhow::Result;
use foil_proto::v1;
use foil_proto::v1::job_event::Event;
use tonic::Status;

use super::client::{Client, is_ended};
use super::output::Output;
use super::progress::Progress;
use super::reconnect::{GivenUp, Reconnect};
use super::stdout;

/// Receives the events of a job.
pub(crate) trait Observer {
    fn event(&mut self, event: &v1::JobEvent) -> Result<()>;

    /// Reports something that is not an event of the job.
    fn note(&mut self, text: &str);
}

impl Observer for Progress {
    fn event(&mut self, event: &v1::JobEvent) -> Result<()> {
        if !self.is_past_notice(event) {
            event.event.iter().for_each(|event| self.event(event));
        }
        Ok(())
    }

    fn note(&mut self, text: &str) {
        self.line(text);
    }
}

/// Prints events for programs.
#[derive(Debug)]
pub(crate) struct Printer {
    format: Output,
}

impl Printer {
    pub(crate) fn new(format: Output) -> Self {
        Self { format }
    }

    /// The text of an event: a line, or a document of YAML.
    fn text(&self, event: &v1::JobEvent) -> Result<String> {
        Ok(match self.format {
            Output::Yaml => format!("---\n{}", serde_norway::to_string(event)?.trim_end()),
            Output::Name => kind(event).to_owned(),
            Output::Json | Output::Table | Output::Wide => serde_json::to_string(event)?,
        })
    }
}

impl Observer for Printer {
    fn event(&mut self, event: &v1::JobEvent) -> Result<()> {
        Ok(stdout::line(&self.text(event)?)?)
    }

    fn note(&mut self, text: &str) {
        stdout::note(text);
    }
}

/// The kind of an event: the name of its field.
fn kind(event: &v1::JobEvent) -> &'static str {
    match event.event {
        Some(Event::Job(_)) => "job",
        Some(Event::PhaseStarted(_)) => "phase_started",
        Some(Event::PhaseProgress(_)) => "phase_progress",
        Some(Event::PhaseCommitted(_)) => "phase_committed",
        Some(Event::CheckpointCommitted(_)) => "checkpoint_committed",
        Some(Event::Notice(_)) => "notice",
        None => "unknown",
    }
}

/// Passes a job's events to an observer until the last one; returns the job. A broken stream of events
/// resumes where it broke.
pub(crate) async fn follow(client: &Client, id: &str, observer: &mut impl Observer) -> Result<v1::Job> {
    let (mut revision, mut reconnect) = (0, Reconnect::default());
    loop {
        let status = match stream(client, id, &mut revision, &mut reconnect, observer).await? {
            Ok(last) => {
                let job = client.try_get(id).await?;
                // A job that does not exist was deleted after it ended.
                match (job.filter(is_ended), last) {
                    (Some(job), _) => return client.complete(job).await,
                    (None, Some(last)) => return Ok(last),
                    (None, None) => Status::unavailable("the stream of events ended early"),
                }
            }
            Err(status) => status,
        };
        match reconnect.wait(status).await {
            Ok(true) => observer.note("lost the connection to the coordinator, reconnecting"),
            Ok(false) => {}
            Err(GivenUp { status, timed_out }) => {
                let error = client.user_error(&status);
                let advice = || format!("the job continues; follow it with `foil watch {id}`");
                return Err(if timed_out { error.context(advice()) } else { error });
            }
        }
    }
}

/// Passes on a stream of events to its end; returns the job of the last event, if it has ended.
async fn stream(
    client: &Client,
    id: &str,
    revision: &mut u64,
    reconnect: &mut Reconnect,
    observer: &mut impl Observer,
) -> Result<Result<Option<v1::Job>, Status>> {
    let mut events = match client.watch(id, *revision).await {
        Ok(events) => events,
        Err(status) => return Ok(Err(status)),
    };
    loop {
        let event = match events.message().await {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(Ok(None)),
            Err(status) => return Ok(Err(status)),
        };
        reconnect.heard();
        *revision = event.revision.max(*revision);
        observer.event(&event)?;
        if let Some(Event::Job(job)) = event.event
            && is_ended(&job)
        {
            return Ok(Ok(Some(job)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use foil_proto::v1::jobs_server::{Jobs, JobsServer};
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response};

    use super::*;

    type Events = tokio_stream::Iter<std::vec::IntoIter<Result<v1::JobEvent, Status>>>;

    /// A coordinator that breaks its first stream of events.
    struct Flaky {
        asked: std::sync::Arc<Mutex<Vec<u64>>>,
        /// Whether the job still exists after its end.
        is_kept: bool,
    }

    fn event(revision: u64, event: Event) -> Result<v1::JobEvent, Status> {
        Ok(v1::JobEvent { revision, at: None, event: Some(event) })
    }

    fn ended() -> v1::Job {
        let mut job = v1::Job { id: "j".into(), ..Default::default() };
        job.set_state(v1::JobState::Succeeded);
        job
    }

    #[tonic::async_trait]
    impl Jobs for Flaky {
        type WatchStream = Events;

        async fn watch(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<Events>, Status> {
            let after = request.into_inner().after_revision;
            let mut asked = self.asked.lock().unwrap();
            asked.push(after);
            let phase = "r01.policy.generate".to_owned();
            let events = if asked.len() == 1 {
                let started = v1::PhaseStarted { phase: phase.clone(), attempt: 1 };
                let progress = v1::PhaseProgress {
                    phase,
                    done: 3,
                    total: 9,
                    unit: "prompts".into(),
                    ..Default::default()
                };
                vec![
                    event(1, Event::Job(v1::Job::default())),
                    event(2, Event::PhaseStarted(started)),
                    event(2, Event::PhaseProgress(progress)),
                    Err(Status::unavailable("gone")),
                ]
            } else {
                let committed = v1::PhaseCommitted { phase, seconds: 1.0, ..Default::default() };
                vec![event(3, Event::PhaseCommitted(committed)), event(4, Event::Job(ended()))]
            };
            Ok(Response::new(tokio_stream::iter(events)))
        }

        async fn get(&self, _: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
            self.is_kept.then(|| Response::new(ended())).ok_or_else(|| Status::not_found("deleted"))
        }

        async fn submit(
            &self,
            _: Request<v1::SubmitRequest>,
        ) -> Result<Response<v1::SubmitResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn list(
            &self,
            _: Request<v1::ListJobsRequest>,
        ) -> Result<Response<v1::ListJobsResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn list_phases(
            &self,
            _: Request<v1::ListPartsRequest>,
        ) -> Result<Response<v1::ListPhasesResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn list_rounds(
            &self,
            _: Request<v1::ListPartsRequest>,
        ) -> Result<Response<v1::ListRoundsResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn list_artifacts(
            &self,
            _: Request<v1::ListPartsRequest>,
        ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        type LogsStream = tokio_stream::Empty<Result<v1::LogsResponse, Status>>;

        async fn logs(&self, _: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn delete(&self, _: Request<v1::DeleteJobRequest>) -> Result<Response<v1::Job>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn cancel(&self, _: Request<v1::CancelJobRequest>) -> Result<Response<v1::Job>, Status> {
            Err(Status::unimplemented(""))
        }
    }

    #[tokio::test]
    async fn a_broken_watch_resumes_where_it_broke_also_of_a_job_that_is_deleted_at_its_end() {
        for is_kept in [true, false] {
            let asked = std::sync::Arc::default();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let service = JobsServer::new(Flaky { asked: std::sync::Arc::clone(&asked), is_kept });
            let server = tonic::transport::Server::builder().add_service(service);
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

            let client = Client::connect(&url).unwrap();
            let job = follow(&client, "j", &mut Progress::new(true)).await.unwrap();
            assert_eq!(job.state(), v1::JobState::Succeeded);
            assert_eq!(*asked.lock().unwrap(), [0, 2]);
        }
    }

    #[test]
    fn events_are_printed_for_programs() {
        let started = v1::PhaseStarted { phase: "r00.sft".into(), attempt: 1 };
        let event = event(3, Event::PhaseStarted(started)).unwrap();
        let text = |format| Printer::new(format).text(&event).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text(Output::Json)).unwrap();
        assert_eq!(json["phase_started"]["phase"], "r00.sft");
        assert!(!text(Output::Json).contains('\n'), "one line per event");
        let yaml = text(Output::Yaml);
        assert!(yaml.starts_with("---\n") && yaml.contains("phase: r00.sft"), "{yaml}");
        assert_eq!(text(Output::Name), "phase_started");
        assert!(json.get(text(Output::Name)).is_some(), "the kind is the field's name");
    }
}

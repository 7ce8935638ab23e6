//! The driver as one principal sees it: jobs of tenants outside its scope do not exist.

use foil_proto::v1;

use super::command::{
    Command, Found, Inspect, Page, PinChange, Query, SendReply, Stopped, SubmitError, Subscription,
};
use super::core::{Core, DeleteError, PinError};
use super::handle::Handle;
use crate::auth::{Principal, Scope};
use crate::job::{JobState, Submitted};
use crate::tenant::Tenant;

/// Handle to the driver for a user. Services for users have no other access to jobs, so none of them can
/// forget the scope.
#[derive(Debug, Clone)]
pub struct UserHandle {
    handle: Handle,
    tenant: Tenant,
    scope: Scope,
}

impl Handle {
    /// The driver as this principal sees it.
    pub fn for_user(&self, principal: &Principal) -> UserHandle {
        let (tenant, scope) = (principal.tenant.clone(), principal.scope());
        UserHandle { handle: self.clone(), tenant, scope }
    }

    /// The driver without a principal's scope, for the services' own checks.
    pub fn unscoped(&self) -> UserHandle {
        self.for_user(&Principal::local())
    }
}

impl UserHandle {
    /// The job of a request id in the principal's own tenant.
    pub async fn find(&self, request_id: &str) -> Result<Option<Found>, Stopped> {
        let (tenant, request_id) = (self.tenant.clone(), request_id.to_owned());
        self.handle.ask(|reply| Command::Find { tenant, request_id, reply }).await
    }

    /// Commits a job unless its tenant already has one with the same request id; returns the job of the
    /// request id.
    pub async fn submit(&self, id: String, submitted: Submitted) -> Result<Found, SubmitError> {
        self.handle.submit(id, submitted).await
    }

    /// Checks that the principal's tenant may submit one more job.
    pub async fn check_submission(&self) -> Result<(), SubmitError> {
        self.handle.check_submission(self.tenant.as_str()).await
    }

    /// Number of devices of a kind on the connected workers, including busy ones.
    pub async fn devices(&self, kind: &str) -> Result<usize, Stopped> {
        self.handle.devices(kind).await
    }

    pub async fn get(&self, id: &str) -> Result<Option<v1::Job>, Stopped> {
        let (id, scope) = (id.to_owned(), self.scope.clone());
        self.handle.ask(|reply| Command::Get { id, scope, reply }).await
    }

    /// Runs a query of a job's state on the driver. The query must be short, because it blocks all other
    /// commands. None if there is no such job.
    pub async fn inspect<T: Send + 'static>(
        &self,
        id: &str,
        query: impl FnOnce(&JobState) -> T + Send + 'static,
    ) -> Result<Option<T>, Stopped> {
        let (id, scope) = (id.to_owned(), self.scope.clone());
        self.handle
            .ask(|reply| {
                let inspect = move |state: Option<&JobState>| -> SendReply {
                    let found = state.map(query);
                    Box::new(move || drop(reply.send(found)))
                };
                Command::Inspect { id, scope, query: Inspect(Box::new(inspect)) }
            })
            .await
    }

    /// Whole lines of the step metrics of a job's running phase: at most `bytes` starting at byte `from`, but
    /// at least one line. None if the phase is not running or there is no such job.
    pub async fn running_steps(
        &self,
        id: &str,
        phase: &str,
        from: usize,
        bytes: usize,
    ) -> Result<Option<String>, Stopped> {
        let (id, phase, scope) = (id.to_owned(), phase.to_owned(), self.scope.clone());
        let lines = move |core: &Core| {
            core.state(&id).filter(|state| scope.includes(state.submitted.tenant()))?;
            let lines = core.running_steps(&id, &phase)?;
            Some(whole_lines(lines.get(from..).unwrap_or_default(), bytes).to_owned())
        };
        self.handle.survey(lines).await
    }

    /// True if there is or was such a job.
    pub async fn is_known(&self, id: &str) -> Result<bool, Stopped> {
        let (id, scope) = (id.to_owned(), self.scope.clone());
        let known = move |core: &Core| {
            let tenant = core.state(&id).map(|state| state.submitted.tenant());
            let tenant = tenant.or_else(|| core.tombstone(&id).map(|tombstone| tombstone.tenant.as_str()));
            tenant.is_some_and(|tenant| scope.includes(tenant))
        };
        self.handle.survey(known).await
    }

    /// Lists jobs, newest first.
    pub async fn list(&self, query: Query) -> Result<Page, Stopped> {
        let scope = self.scope.clone();
        self.handle.ask(|reply| Command::List { query, scope, reply }).await
    }

    pub async fn watch(&self, id: &str, after_revision: u64) -> Result<Option<Subscription>, Stopped> {
        let (id, scope) = (id.to_owned(), self.scope.clone());
        self.handle.ask(|reply| Command::Watch { id, scope, after_revision, reply }).await
    }

    pub async fn cancel(&self, id: &str) -> Result<Option<v1::Job>, Stopped> {
        let (id, scope) = (id.to_owned(), self.scope.clone());
        self.handle.ask(|reply| Command::Cancel { id, scope, reply }).await
    }

    /// Deletes a job that has ended; its objects are deleted in the background. Succeeds if the job was
    /// deleted before.
    pub async fn delete(&self, id: &str, by: &str) -> Result<Result<v1::Job, DeleteError>, Stopped> {
        let (id, scope, by) = (id.to_owned(), self.scope.clone(), by.to_owned());
        self.handle.ask(|reply| Command::Delete { id, scope, by, reply }).await
    }

    /// Pins or unpins an artifact, or the whole job for an empty name; returns the job.
    pub async fn pin(
        &self,
        id: &str,
        artifact: &str,
        change: PinChange,
        by: &str,
    ) -> Result<Result<v1::Job, PinError>, Stopped> {
        let (id, artifact, by) = (id.to_owned(), artifact.to_owned(), by.to_owned());
        let scope = self.scope.clone();
        self.handle.ask(|reply| Command::Pin { id, scope, artifact, change, by, reply }).await
    }
}

/// The first whole lines of a text: as many as fit, but at least one.
pub(crate) fn whole_lines(text: &str, bytes: usize) -> &str {
    let fitting = &text[..text.floor_char_boundary(bytes)];
    let end = fitting.rfind('\n').or_else(|| text.find('\n'));
    end.map_or("", |end| &text[..=end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_whole() {
        let text = "ab\ncd\néé\nrest";
        assert_eq!(whole_lines(text, 100), "ab\ncd\néé\n");
        assert_eq!(whole_lines(text, 7), "ab\ncd\n", "not half a character");
        assert_eq!(whole_lines(text, 1), "ab\n", "at least one");
        assert_eq!(whole_lines("rest", 100), "");
    }
}

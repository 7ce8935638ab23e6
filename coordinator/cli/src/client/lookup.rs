//! Finds jobs by what a user types: an id, a prefix of one, or a name.

use anyhow::{Result, bail};
use foil_proto::v1;

use super::Client;

/// Number of jobs named for an ambiguous prefix.
const AMBIGUOUS_SHOWN: usize = 5;
/// Minimum length of an id prefix for commands that change a job. A shorter prefix may be a typo that happens
/// to match the only job.
const MIN_PREFIX: usize = 4;

impl Client {
    /// Finds a job by id, by a prefix of its id, or by name (its newest job).
    pub(crate) async fn find(&self, text: &str) -> Result<v1::Job> {
        if let Some(job) = self.try_get(text).await? {
            return self.complete(job).await;
        }
        let named = v1::ListJobsRequest { name: text.to_owned(), ..Default::default() };
        let mut rows = self.rows(named, 1).await?.0;
        if rows.is_empty() {
            let begun = v1::ListJobsRequest { id_prefix: text.to_owned(), ..Default::default() };
            rows = self.rows(begun, 100).await?.0;
        }
        let id = pick(text, &rows)?;
        self.get(&id).await
    }

    /// Like [`Self::find`], for a command that cannot be undone.
    pub(crate) async fn find_to_change(&self, text: &str) -> Result<v1::Job> {
        let job = self.find(text).await?;
        check_unambiguous(text, &job)?;
        Ok(job)
    }
}

fn pick(text: &str, jobs: &[v1::Job]) -> Result<String> {
    if let Some(job) = jobs.iter().find(|job| job.name == text) {
        return Ok(job.id.clone());
    }
    let begun: Vec<&v1::Job> = jobs.iter().filter(|job| job.id.starts_with(text)).collect();
    match begun.as_slice() {
        [job] => Ok(job.id.clone()),
        [] => bail!("there is no job {text}; `foil list` shows all jobs"),
        several => {
            let named = several.iter().take(AMBIGUOUS_SHOWN).map(|job| format!("{} ({})", job.id, job.name));
            let mut named = named.collect::<Vec<_>>().join(", ");
            if several.len() > AMBIGUOUS_SHOWN {
                named += ", …";
            }
            bail!("{} jobs' ids start with {text}: {named}; give a longer prefix", several.len())
        }
    }
}

/// Refuses a prefix that is too short to be sure of the job.
fn check_unambiguous(text: &str, job: &v1::Job) -> Result<()> {
    if text == job.id || text == job.name || text.chars().count() >= MIN_PREFIX {
        return Ok(());
    }
    bail!(
        "{text} is a prefix of the id of job {} ({}) but too short to be sure; give its name, or at least {MIN_PREFIX} \
         characters of its id",
        job.id,
        job.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_found_by_name_or_by_a_prefix_of_its_id() {
        let job = |id: &str, name: &str| v1::Job { id: id.into(), name: name.into(), ..Default::default() };
        let jobs = [job("03-a", "a"), job("02-b", "b"), job("01-a", "a")];
        assert_eq!(pick("a", &jobs).unwrap(), "03-a");
        assert_eq!(pick("02", &jobs).unwrap(), "02-b");
        let ambiguous = pick("0", &jobs).unwrap_err().to_string();
        assert!(ambiguous.contains("3 jobs' ids start with 0: 03-a (a), 02-b (b), 01-a (a);"), "{ambiguous}");
        assert!(pick("x", &jobs).unwrap_err().to_string().contains("no job x"));
    }

    #[test]
    fn commands_that_cannot_be_undone_need_a_longer_prefix() {
        let job = v1::Job { id: "01m8jcg9".into(), name: "a".into(), ..Default::default() };
        for sure in ["a", "01m8", "01m8j", "01m8jcg9"] {
            check_unambiguous(sure, &job).unwrap();
        }
        for slip in ["0", "01", "01m"] {
            let error = check_unambiguous(slip, &job).unwrap_err().to_string();
            assert!(error.contains("01m8jcg9 (a)") && error.contains("at least 4"), "{error}");
        }
    }
}

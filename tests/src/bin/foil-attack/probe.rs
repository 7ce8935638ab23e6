//! A user who lists jobs all the time, each time by a connection of its own.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use foil_common::rpc;
use foil_proto::v1::ListJobsRequest;
use foil_proto::v1::jobs_client::JobsClient;

const PAUSE: Duration = Duration::from_millis(50);
/// For an answer; a list that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) struct Probe {
    told: Arc<Mutex<Told>>,
}

/// How lists went.
#[derive(Default)]
pub(crate) struct Told {
    took: Vec<Duration>,
    failures: Vec<String>,
}

impl Probe {
    /// Lists for as long as this process runs.
    pub(crate) fn start(url: &str) -> Result<Self> {
        let told = Arc::new(Mutex::new(Told::default()));
        let (url, probed) = (url.to_owned(), Arc::clone(&told));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::spawn(move || {
            loop {
                let began = Instant::now();
                let listed = runtime.block_on(async {
                    let line = rpc::connect(&url).map_err(|error| error.to_string())?;
                    let request = rpc::request(ListJobsRequest::default(), PATIENCE);
                    JobsClient::new(line).list(request).await.map_err(|status| status.to_string())
                });
                if let Ok(mut told) = probed.lock() {
                    match listed {
                        Ok(_) => told.took.push(began.elapsed()),
                        Err(failure) => told.failures.push(failure),
                    }
                }
                thread::sleep(PAUSE);
            }
        });
        Ok(Self { told })
    }

    /// What happened since this was last asked.
    pub(crate) fn take(&self) -> Told {
        self.told.lock().map(|mut told| std::mem::take(&mut *told)).unwrap_or_default()
    }
}

impl Told {
    pub(crate) fn failed(&self) -> usize {
        self.failures.len()
    }

    pub(crate) fn first_failure(&self) -> &str {
        self.failures.first().map(String::as_str).unwrap_or_default()
    }

    pub(crate) fn longest(&self) -> Duration {
        self.took.iter().max().copied().unwrap_or_default()
    }

    /// What all but so many in a thousand took at most.
    fn quantile(&self, thousandths: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        let last = took.len().saturating_sub(1);
        took.get((took.len() * thousandths / 1000).min(last)).copied().unwrap_or_default()
    }
}

/// Lists, those that failed, and in milliseconds the median, the 99th percentile and the longest.
impl fmt::Display for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |duration: Duration| format!("{:.1}", duration.as_secs_f64() * 1e3);
        let times = [self.quantile(500), self.quantile(990), self.longest()].map(milliseconds);
        let [median, most, longest] = times;
        write!(formatter, "{:>6} {:>6} {median:>8} {most:>8} {longest:>8}", self.took.len(), self.failed())
    }
}

//! A user that lists jobs continuously, each time over a new connection.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use foil_common::rpc;
use foil_proto::v1::ListJobsRequest;
use foil_proto::v1::jobs_client::JobsClient;

const PAUSE: Duration = Duration::from_millis(50);
/// Timeout of a list request.
const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) struct Probe {
    latencies: Arc<Mutex<Latencies>>,
}

/// Latencies and failures of list requests.
#[derive(Default)]
pub(crate) struct Latencies {
    took: Vec<Duration>,
    failures: Vec<String>,
}

impl Probe {
    /// Starts listing until this process ends.
    pub(crate) fn start(url: &str) -> Result<Self> {
        let latencies = Arc::new(Mutex::new(Latencies::default()));
        let (url, probed) = (url.to_owned(), Arc::clone(&latencies));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::spawn(move || {
            loop {
                let began = Instant::now();
                let listed = runtime.block_on(async {
                    let channel = rpc::connect(&url).map_err(|error| error.to_string())?;
                    let request = rpc::request(ListJobsRequest::default(), PATIENCE);
                    JobsClient::new(channel).list(request).await.map_err(|status| status.to_string())
                });
                if let Ok(mut latencies) = probed.lock() {
                    match listed {
                        Ok(_) => latencies.took.push(began.elapsed()),
                        Err(failure) => latencies.failures.push(failure),
                    }
                }
                thread::sleep(PAUSE);
            }
        });
        Ok(Self { latencies })
    }

    /// The results since the last call.
    pub(crate) fn take(&self) -> Latencies {
        self.latencies.lock().map(|mut latencies| std::mem::take(&mut *latencies)).unwrap_or_default()
    }
}

impl Latencies {
    pub(crate) fn failed(&self) -> usize {
        self.failures.len()
    }

    pub(crate) fn first_failure(&self) -> &str {
        self.failures.first().map(String::as_str).unwrap_or_default()
    }

    pub(crate) fn max(&self) -> Duration {
        self.took.iter().max().copied().unwrap_or_default()
    }

    /// A quantile of the latencies, in thousandths.
    fn quantile(&self, thousandths: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        let last = took.len().saturating_sub(1);
        took.get((took.len() * thousandths / 1000).min(last)).copied().unwrap_or_default()
    }
}

/// The number of requests and failures, and the median, the 99th percentile and the maximum in milliseconds.
impl fmt::Display for Latencies {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |duration: Duration| format!("{:.1}", duration.as_secs_f64() * 1e3);
        let times = [self.quantile(500), self.quantile(990), self.max()].map(milliseconds);
        let [median, p99, max] = times;
        write!(formatter, "{:>6} {:>6} {median:>8} {p99:>8} {max:>8}", self.took.len(), self.failed())
    }
}

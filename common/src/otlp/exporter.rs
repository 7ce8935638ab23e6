//! The tasks that send spans and metrics. Data that a collector does not accept in time is dropped and
//! counted: nothing ever waits for a collector.

#![expect(
    clippy::disallowed_methods,
    reason = "metrics are sent by the clock, and a warning is repeated after a while"
)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backon::{ExponentialBuilder, Retryable};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::collector::{Collector, Failure, Rejected};
use super::config::{Config, ConfigError, ENDPOINT};
use super::{Span, page};

/// Maximum number of spans waiting to be sent; more are dropped.
const QUEUE: usize = 2048;
/// Maximum number of spans of one request.
const BATCH: usize = 512;
/// Time for which a span waits for others to fill a batch.
const DELAY: Duration = Duration::from_secs(1);
/// Number of retries of a request while the collector is unavailable, and the first pause.
const RETRIES: usize = 4;
const PAUSE: Duration = Duration::from_secs(1);
/// Interval at which a failing collector is reported.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Queue of spans to send; empty if this process sends none.
static SPANS: OnceLock<mpsc::Sender<Span>> = OnceLock::new();

/// Whether this process sends spans.
pub fn sends_spans() -> bool {
    SPANS.get().is_some()
}

/// Sends a span, if this process sends spans and the span's trace is recorded. Never waits.
pub fn send(span: Span) {
    if let Some(queue) = SPANS.get() {
        enqueue(queue, span);
    }
}

pub(super) fn enqueue(queue: &mpsc::Sender<Span>, span: Span) {
    if span.context.is_sampled() && queue.try_send(span).is_err() {
        dropped("traces", 1);
    }
}

fn dropped(signal: &'static str, number: u64) {
    metrics::counter!("foil_otlp_dropped_total", "signal" => signal).increment(number);
}

/// Nanoseconds since the Unix epoch.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// The tasks that send this process's spans and metrics.
#[derive(Debug, Default)]
pub struct Exporter {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Exporter {
    /// Starts sending, once per process. `page` renders the `/metrics` page, if the process has one. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// A collector's address or TLS files that cannot be used.
    pub fn start<P>(config: Config, page: Option<P>) -> Result<Self, ConfigError>
    where
        P: Fn() -> String + Send + 'static,
    {
        let Config { traces, metrics, interval, resource } = config;
        let mut exporter = Self::default();
        let collector = |target, variable: &str| {
            Collector::new(target, &resource)
                .map_err(|problem| ConfigError { variable: variable.to_owned(), problem })
        };
        if let Some(target) = traces {
            let collector = collector(target, ENDPOINT)?;
            let (sender, queue) = mpsc::channel(QUEUE);
            // A second exporter of a process has nothing to send.
            if SPANS.set(sender).is_ok() {
                tracing::info!(collector = collector.address(), "sending traces");
                exporter.tasks.spawn(send_spans(collector, queue, PAUSE, exporter.stop.clone()));
            }
        }
        if let Some((target, page)) = metrics.zip(page) {
            let collector = collector(target, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")?;
            tracing::info!(
                collector = collector.address(),
                seconds = interval.as_secs_f64(),
                "sending metrics"
            );
            exporter.tasks.spawn(send_metrics(collector, page, interval, exporter.stop.clone()));
        }
        Ok(exporter)
    }

    /// Sends what is queued, for at most `limit`, and nothing afterwards.
    pub async fn shut_down(&mut self, limit: Duration) {
        self.stop.cancel();
        let ended = timeout(limit, async { while self.tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            self.tasks.abort_all();
            tracing::warn!(
                "the OTLP collector did not take the last traces or metrics in time; they are lost"
            );
        }
    }
}

/// Sends spans until `stop` is canceled or no more can come, and then those still queued. `pause` is the
/// first pause between tries.
pub(super) async fn send_spans(
    collector: Collector,
    mut queue: mpsc::Receiver<Span>,
    pause: Duration,
    stop: CancellationToken,
) {
    let mut trouble = Trouble::new("traces");
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let is_last = tokio::select! {
            biased;
            () = stop.cancelled() => true,
            received = queue.recv_many(&mut batch, BATCH) => {
                // More may come.
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = timeout(DELAY, fill(&mut batch, &mut queue)) => {}
                }
                received == 0
            }
        };
        if is_last {
            while let Ok(span) = queue.try_recv() {
                batch.push(span);
            }
        }
        for part in batch.chunks(BATCH) {
            let sent = retried(|| collector.send_spans(part), pause, &stop).await;
            trouble.note(&collector, sent, part.len() as u64);
        }
        batch.clear();
        if is_last {
            return;
        }
    }
}

/// Waits until the batch is full.
async fn fill(batch: &mut Vec<Span>, queue: &mut mpsc::Receiver<Span>) {
    while batch.len() < BATCH && queue.recv_many(batch, BATCH - batch.len()).await > 0 {}
}

/// Retries a call while the collector is unavailable, with pauses no shorter than it requests. Once the
/// process is to end, there is one more try, even if a try was in progress.
async fn retried<F>(
    call: impl Fn() -> F,
    pause: Duration,
    stop: &CancellationToken,
) -> Result<Option<Rejected>, Failure>
where
    F: Future<Output = Result<Option<Rejected>, Failure>>,
{
    let pauses = ExponentialBuilder::default()
        .with_min_delay(pause)
        .with_max_delay(10 * pause)
        .with_max_times(RETRIES)
        .with_jitter();
    let ending = stop.clone();
    let is_last = AtomicBool::new(false);
    let call = || {
        is_last.store(stop.is_cancelled(), Ordering::Relaxed);
        call()
    };
    call.retry(pauses)
        .when(|failure| failure.is_transient && !is_last.load(Ordering::Relaxed))
        .adjust(|failure, pause| pause.map(|pause| pause.max(failure.pause())))
        .sleep(move |pause| ending.clone().run_until_cancelled_owned(sleep(pause)))
        .await
}

/// Sends the metrics of `page` every `period`, and once more when `stop` is canceled.
pub(super) async fn send_metrics(
    collector: Collector,
    page: impl Fn() -> String,
    period: Duration,
    stop: CancellationToken,
) {
    let mut trouble = Trouble::new("metrics");
    let start = now();
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_last = tokio::select! {
            biased;
            () = stop.cancelled() => true,
            _ = ticks.tick() => false,
        };
        let metrics = page::metrics(&page(), start, now());
        let points = page::points(&metrics);
        // The next metrics include what these would have reported.
        let sent = collector.send_metrics(metrics).await;
        if let Err(failure) = &sent {
            ticks.reset_after(period.max(failure.pause()));
        }
        trouble.note(&collector, sent, points);
        if is_last {
            return;
        }
    }
}

/// Counts what a collector does not accept, and logs it periodically.
struct Trouble {
    signal: &'static str,
    /// Number of items lost since the last log line.
    lost: u64,
    warned: Option<Instant>,
    /// Whether the trouble that continues has been logged.
    is_told: bool,
}

impl Trouble {
    fn new(signal: &'static str) -> Self {
        Self { signal, lost: 0, warned: None, is_told: false }
    }

    fn note(&mut self, collector: &Collector, sent: Result<Option<Rejected>, Failure>, number: u64) {
        let (number, why) = match sent {
            Ok(None) => return self.recovered(),
            Ok(Some(Rejected { number, reason })) => (number, format!("it rejected them: {reason}")),
            Err(failure) => (number, failure.reason),
        };
        dropped(self.signal, number);
        self.lost += number;
        if self.warned.is_none_or(|warned| warned.elapsed() >= WARN_INTERVAL) {
            let why = collector.shown(why);
            let (signal, lost, collector) = (self.signal, self.lost, collector.address());
            tracing::warn!(signal, lost, collector, why, "an OTLP collector does not accept data");
            (self.lost, self.warned, self.is_told) = (0, Some(Instant::now()), true);
        }
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.is_told) {
            let lost = std::mem::take(&mut self.lost);
            tracing::info!(signal = self.signal, lost, "the OTLP collector accepts data again");
        }
    }
}

//! Starts the processes of a group, waits for them, and ends them if one fails.

#![expect(clippy::disallowed_methods, reason = "ranks have a timeout")]

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use foil_proto::v1;
use foil_torch::c10d::Store;
use foil_worker::agent::{DeviceKind, set_compute_environment};
use nix::sys::signal::Signal;

use super::rank::{HOST, Report, key};

/// Interval at which processes are polled.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Time for processes to end after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of output lines shown for a failed rank.
const TAIL: usize = 15;

const RANK_FAILED: &str = "a rank could not be started or failed; see its output above, check the driver with \
                           `nvidia-smi` and the GPU's processes, and set NCCL_DEBUG=INFO to see what NCCL does";
const WRONG_SUMS: &str = "sums of these GPUs cannot be trusted; try again with NCCL_P2P_DISABLE=1 (a wrong PCIe or IOMMU \
                     setting: see `nvidia-smi topo -m`), and check the GPUs' memory with `nvidia-smi -q -d ECC`";

/// The processes of one size of group.
pub(crate) struct Group<'a> {
    pub(crate) device: DeviceKind,
    /// One device per rank.
    pub(crate) devices: &'a [v1::Device],
    pub(crate) mebibytes: u64,
    /// Time after which the group is considered hung.
    pub(crate) timeout: Duration,
}

impl Group<'_> {
    /// Loses the last rank between two all-reduces and returns how long the others take to end.
    ///
    /// # Errors
    /// They do not fail, or are still there after `limit`; the last rank ends in another way.
    pub(crate) fn survive(&self, limit: Duration) -> Result<Duration> {
        let store = Store::host(HOST, self.timeout)?;
        let last = self.devices.len() - 1;
        let ranks = (0..=last).map(|rank| self.start(rank, store.port(), Some(last)));
        let mut ranks = Ranks(ranks.collect::<Result<Vec<_>>>()?);
        let deadline = Instant::now() + limit;
        let mut lost: Option<Instant> = None;
        loop {
            // The last one is asked last: where another has failed after it, it has ended too.
            let statuses = ranks.poll()?;
            for (rank, status) in ranks.0.iter_mut().zip(&statuses).rev() {
                let Some(status) = status else { continue };
                let is_killed = status.signal() == Some(Signal::SIGKILL as i32);
                if rank.number == last && is_killed {
                    lost.get_or_insert_with(Instant::now);
                } else if rank.number == last || lost.is_none() || status.success() {
                    return Err(
                        rank.failure(&format!("ended with {status}, though rank {last} was to be lost"))
                    );
                }
            }
            if let Some(lost) = lost
                && statuses.iter().all(Option::is_some)
            {
                return Ok(lost.elapsed());
            }
            ranks.require_time(&statuses, deadline, limit)?;
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// The report of the slowest rank.
    ///
    /// # Errors
    /// A rank that fails, hangs or computes wrong sums, with advice.
    pub(crate) fn check(&self) -> Result<Report> {
        let store = Store::host(HOST, self.timeout)?;
        let ranks = (0..self.devices.len()).map(|rank| self.start(rank, store.port(), None));
        Ranks(ranks.collect::<Result<Vec<_>>>()?).wait(self.timeout)?;
        let reports = (0..self.devices.len()).map(|rank| {
            let report: Report = serde_json::from_slice(&store.get(&key(rank))?)?;
            match &report.difference {
                None => Ok(report),
                Some(difference) => Err(anyhow!("rank {rank}: {difference}; {WRONG_SUMS}")),
            }
        });
        let reports = reports.collect::<Result<Vec<_>>>()?;
        let slowest = reports.into_iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
        slowest.ok_or_else(|| anyhow!("a group without ranks"))
    }

    /// Starts a rank. If one is to be `lost`, it kills itself between all-reduces.
    fn start(&self, rank: usize, port: u16, lost: Option<usize>) -> Result<Rank> {
        let numbers =
            [("--rank", rank as u64), ("--world", self.devices.len() as u64), ("--port", port.into())];
        let more = [("--mebibytes", self.mebibytes), ("--seconds", self.timeout.as_secs())];
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.arg("rank").args(["--device", self.device.name()]);
        for (name, number) in numbers.into_iter().chain(more) {
            command.args([name, &number.to_string()]);
        }
        if let Some(lost) = lost {
            command.args(["--lost", &lost.to_string()]);
        }
        set_compute_environment(&mut command, &self.devices[rank]);
        if self.device == DeviceKind::Cuda {
            // All ranks are on this machine, and the first interface that NCCL finds may not be reachable
            // from the machine itself.
            command.env("NCCL_SOCKET_IFNAME", foil_torch::network_interface(HOST)?.unwrap_or_default());
        }
        let output = tempfile::tempfile().context("a file for a rank's output")?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
        let child = command.spawn().with_context(|| format!("rank {rank}; {RANK_FAILED}"))?;
        Ok(Rank { number: rank, device: self.devices[rank].id.clone(), child, output })
    }
}

struct Rank {
    number: usize,
    device: String,
    child: Child,
    output: File,
}

impl Rank {
    fn failure(&mut self, reason: &str) -> anyhow::Error {
        let mut text = String::new();
        // If the output cannot be read, none is shown.
        let _ = self.output.rewind().and_then(|()| self.output.read_to_string(&mut text));
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].iter().map(|line| format!("\n  | {line}"));
        anyhow!(
            "rank {} on {} {reason}:{}\n{RANK_FAILED}",
            self.number,
            self.device,
            tail.collect::<String>()
        )
    }
}

/// The processes of a group, killed on drop.
struct Ranks(Vec<Rank>);

impl Ranks {
    /// Waits until all have succeeded or one has failed.
    fn wait(mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let statuses = self.poll()?;
            for (rank, status) in self.0.iter_mut().zip(&statuses) {
                if let Some(status) = status.filter(|status| !status.success()) {
                    return Err(rank.failure(&format!("ended with {status}")));
                }
            }
            if statuses.iter().all(Option::is_some) {
                return Ok(());
            }
            self.require_time(&statuses, deadline, timeout)?;
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// The exit statuses of the processes that have ended, asked in the order of ranks.
    fn poll(&mut self) -> Result<Vec<Option<ExitStatus>>> {
        let ask = |rank: &mut Rank| rank.child.try_wait().context("waiting for a rank");
        self.0.iter_mut().map(ask).collect()
    }

    /// Fails after the deadline if a process is still running.
    fn require_time(
        &mut self,
        statuses: &[Option<ExitStatus>],
        deadline: Instant,
        limit: Duration,
    ) -> Result<()> {
        let mut running = self.0.iter_mut().zip(statuses).filter(|(_, status)| status.is_none());
        match running.next() {
            Some((rank, _)) if Instant::now() >= deadline => {
                Err(rank.failure(&format!("did not end within {} s", limit.as_secs())))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in &mut self.0 {
            // Fails if the process has already ended.
            let _ = rank.child.kill();
        }
        // A process that the driver holds does not end at SIGKILL either.
        let deadline = Instant::now() + KILL_TIMEOUT;
        while Instant::now() < deadline && matches!(self.poll(), Ok(statuses) if statuses.contains(&None)) {
            thread::sleep(POLL_INTERVAL);
        }
    }
}

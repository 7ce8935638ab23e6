//! One process of a group: checks every collective against the host's results and measures all-reduce.

#![expect(clippy::disallowed_methods, reason = "bandwidth is measured")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use foil_common::failpoint;
use foil_torch::c10d::{ProcessGroup, ProcessGroupConfig, Store};
use foil_worker::agent::DeviceKind;
use nix::sys::signal::{Signal, raise};
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind, Tensor};

use super::sums::{difference, number, numbers, sum};

pub(crate) const HOST: &str = "127.0.0.1";

/// Lengths around the sizes at which libraries switch algorithms.
const LENGTHS: [usize; 4] = [1, 1000, 65_536, 1_000_003];
/// Number of all-reduces before the measurement and during it.
const WARMUP: u32 = 3;
const MEASURED: u32 = 10;

#[derive(Debug, clap::Args)]
pub(crate) struct RankArgs {
    #[arg(long)]
    rank: usize,
    #[arg(long)]
    world: usize,
    #[arg(long)]
    port: u16,
    #[arg(long, value_enum)]
    device: DeviceKind,
    #[arg(long)]
    mebibytes: usize,
    #[arg(long)]
    seconds: u64,
    /// The rank that kills itself between two all-reduces, in place of all checks.
    #[arg(long)]
    lost: Option<usize>,
}

/// The results of a rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Number of collectives that were checked.
    pub(crate) checked: usize,
    /// Description of the first collective with wrong results.
    pub(crate) difference: Option<String>,
    /// Size of the measured all-reduce.
    pub(crate) bytes: u64,
    /// Time of one all-reduce.
    pub(crate) seconds: f64,
}

/// The store's key of a rank's report.
pub(crate) fn key(rank: usize) -> String {
    format!("report/{rank}")
}

pub(crate) fn run(args: &RankArgs) -> Result<()> {
    failpoint::init()?;
    failpoint::hit("rank.start")?;
    tch::set_num_threads(1);
    let timeout = Duration::from_secs(args.seconds);
    let store = Store::connect(HOST, args.port, timeout)?;
    let config = ProcessGroupConfig { rank: args.rank, world: args.world, timeout, address: HOST.to_owned() };
    let (group, device) = match args.device {
        DeviceKind::Cpu => (ProcessGroup::gloo(&store, config)?, Device::Cpu),
        DeviceKind::Cuda if !Cuda::is_available() => {
            return Err(anyhow!("libtorch finds no GPU; is the driver as new as its CUDA?"));
        }
        DeviceKind::Cuda => (ProcessGroup::nccl(&store, config)?, Device::Cuda(0)),
    };
    let checks = Checks { group: &group, device, rank: args.rank, world: args.world };
    if let Some(lost) = args.lost {
        checks.measure(args.mebibytes)?;
        if lost == args.rank {
            raise(Signal::SIGKILL)?;
        }
        checks.measure(args.mebibytes)?;
        return Ok(());
    }
    let (checked, difference) = checks.all()?;
    let (bytes, seconds) = checks.measure(args.mebibytes)?;
    let report = Report { checked, difference, bytes, seconds };
    store.set(&key(args.rank), &serde_json::to_vec(&report)?)?;
    // A rank, and with it rank 0's sockets, may exit only after all have reported.
    group.barrier()?;
    group.shutdown().context("ending the group")
}

struct Checks<'a> {
    group: &'a ProcessGroup,
    device: Device,
    rank: usize,
    world: usize,
}

impl Checks<'_> {
    /// The number of collectives checked, and the error of the first that failed. All ranks check all of them
    /// even after an error, so that none waits for another indefinitely.
    fn all(&self) -> Result<(usize, Option<String>)> {
        let kinds = [Kind::Float, Kind::Double, Kind::Int64, Kind::BFloat16];
        let (mut checked, mut first) = (0, None);
        // Gloo's bf16 sums are not reliable.
        for kind in kinds.into_iter().filter(|kind| *kind != Kind::BFloat16 || self.device != Device::Cpu) {
            for length in LENGTHS {
                for (name, error) in self.collectives(kind, length)? {
                    checked += 1;
                    let error = error.map(|error| format!("{name} of {length} numbers in {kind:?}: {error}"));
                    first = first.or(error);
                }
            }
        }
        Ok((checked, first))
    }

    fn collectives(&self, kind: Kind, length: usize) -> Result<[(&'static str, Option<String>); 4]> {
        let (rank, world) = (self.rank, self.world);
        let own = || self.tensor(&numbers(rank, length), kind);

        let mut summed = own();
        self.group.all_reduce(&mut summed)?;
        let summed = difference(&on_host(&summed)?, |index| sum(world, index));

        let root = world - 1;
        let mut sent = own();
        self.group.broadcast(&mut sent, root)?;
        let sent = difference(&on_host(&sent)?, |index| number(root, index));

        let gathered = self.group.all_gather(&own())?;
        let gathered = difference(&on_host(&gathered)?, |index| number(index / length, index % length));

        let rows = self.tensor(&numbers(rank, world * length), kind).view([world as i64, length as i64]);
        let part = self.group.reduce_scatter(&rows)?;
        let part = difference(&on_host(&part)?, |index| sum(world, rank * length + index));
        Ok([("all-reduce", summed), ("broadcast", sent), ("all-gather", gathered), ("reduce-scatter", part)])
    }

    fn tensor(&self, numbers: &[i64], kind: Kind) -> Tensor {
        Tensor::from_slice(numbers).to_kind(kind).to_device(self.device)
    }

    /// Bytes of an all-reduce in fp32, and its mean time in seconds.
    fn measure(&self, mebibytes: usize) -> Result<(u64, f64)> {
        let bytes = mebibytes << 20;
        let mut tensor = Tensor::zeros([(bytes / 4) as i64], (Kind::Float, self.device));
        for _ in 0..WARMUP {
            self.group.all_reduce(&mut tensor)?;
        }
        self.group.barrier()?;
        let started = Instant::now();
        self.group.all_reduce_repeatedly(&mut tensor, MEASURED)?;
        Ok((bytes as u64, started.elapsed().as_secs_f64() / f64::from(MEASURED)))
    }
}

fn on_host(tensor: &Tensor) -> Result<Vec<f64>> {
    let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Double).reshape([-1]);
    Ok(Vec::<f64>::try_from(flat)?)
}

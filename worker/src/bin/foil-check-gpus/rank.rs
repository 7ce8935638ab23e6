//! One process of a group: every collective against the host's numbers, then the time of all-reduce.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use foil_common::failpoint;
use foil_torch::c10d::{ProcessGroup, ProcessGroupConfig, Store};
use foil_worker::agent::DeviceKind;
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind, Tensor};

use super::sums::{difference, number, numbers, sum};

pub(crate) const HOST: &str = "127.0.0.1";

/// Lengths below, at and across the sizes at which libraries change their ways.
const LENGTHS: [usize; 4] = [1, 1000, 65_536, 1_000_003];
/// All-reduces before the clock starts, and under it.
const WARM: u32 = 3;
const TIMED: u32 = 10;

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
}

/// What a rank has found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Collectives held against the host's numbers.
    pub(crate) checked: usize,
    /// The first collective that gave other numbers.
    pub(crate) difference: Option<String>,
    /// Bytes and seconds of one all-reduce.
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

/// Where a rank leaves its report.
pub(crate) fn key(rank: usize) -> String {
    format!("report/{rank}")
}

pub(crate) fn run(args: &RankArgs) -> Result<()> {
    failpoint::init()?;
    failpoint::hit("rank.start")?;
    tch::set_num_threads(1);
    let timeout = Duration::from_secs(args.seconds);
    let store = Store::connect(HOST, args.port, timeout)?;
    let member = ProcessGroupConfig { rank: args.rank, world: args.world, timeout, address: HOST.to_owned() };
    let (group, device) = match args.device {
        DeviceKind::Cpu => (ProcessGroup::gloo(&store, member)?, Device::Cpu),
        DeviceKind::Cuda if !Cuda::is_available() => {
            return Err(anyhow!("libtorch finds no GPU; is the driver as new as its CUDA?"));
        }
        DeviceKind::Cuda => (ProcessGroup::nccl(&store, member)?, Device::Cuda(0)),
    };
    let checks = Checks { group: &group, device, rank: args.rank, world: args.world };
    let (checked, difference) = checks.all()?;
    let (bytes, seconds) = checks.measure(args.mebibytes)?;
    let report = Report { checked, difference, bytes, seconds };
    store.set(&key(args.rank), &serde_json::to_vec(&report)?)?;
    // All have reported: only now may a rank, and rank 0's sockets with it, go.
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
    /// How many collectives were checked, and what was wrong with the first that failed. All ranks check all of them,
    /// whatever they find, so that none waits for another in vain.
    fn all(&self) -> Result<(usize, Option<String>)> {
        let kinds = [Kind::Float, Kind::Double, Kind::Int64, Kind::BFloat16];
        let (mut checked, mut first) = (0, None);
        // Gloo has no sums in bf16 that one could rely on.
        for kind in kinds.into_iter().filter(|kind| *kind != Kind::BFloat16 || self.device != Device::Cpu) {
            for length in LENGTHS {
                for (name, wrong) in self.collectives(kind, length)? {
                    checked += 1;
                    let told = wrong.map(|wrong| format!("{name} of {length} numbers in {kind:?}: {wrong}"));
                    first = first.or(told);
                }
            }
        }
        Ok((checked, first))
    }

    fn collectives(&self, kind: Kind, length: usize) -> Result<[(&'static str, Option<String>); 4]> {
        let (rank, world) = (self.rank, self.world);
        let mine = || self.tensor(&numbers(rank, length), kind);

        let mut summed = mine();
        self.group.all_reduce(&mut summed)?;
        let summed = difference(&on_host(&summed)?, |index| sum(world, index));

        let root = world - 1;
        let mut sent = mine();
        self.group.broadcast(&mut sent, root)?;
        let sent = difference(&on_host(&sent)?, |index| number(root, index));

        let gathered = self.group.all_gather(&mine())?;
        let gathered = difference(&on_host(&gathered)?, |index| number(index / length, index % length));

        let rows = self.tensor(&numbers(rank, world * length), kind).view([world as i64, length as i64]);
        let part = self.group.reduce_scatter(&rows)?;
        let part = difference(&on_host(&part)?, |index| sum(world, rank * length + index));
        Ok([("all-reduce", summed), ("broadcast", sent), ("all-gather", gathered), ("reduce-scatter", part)])
    }

    fn tensor(&self, numbers: &[i64], kind: Kind) -> Tensor {
        Tensor::from_slice(numbers).to_kind(kind).to_device(self.device)
    }

    /// Bytes of an all-reduce in fp32, and its seconds, the mean of several.
    fn measure(&self, mebibytes: usize) -> Result<(u64, f64)> {
        let bytes = mebibytes << 20;
        let mut tensor = Tensor::zeros([(bytes / 4) as i64], (Kind::Float, self.device));
        for _ in 0..WARM {
            self.group.all_reduce(&mut tensor)?;
        }
        self.group.barrier()?;
        let started = Instant::now();
        for _ in 0..TIMED {
            self.group.all_reduce(&mut tensor)?;
        }
        Ok((bytes as u64, started.elapsed().as_secs_f64() / f64::from(TIMED)))
    }
}

fn on_host(tensor: &Tensor) -> Result<Vec<f64>> {
    let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Double).reshape([-1]);
    Ok(Vec::<f64>::try_from(flat)?)
}

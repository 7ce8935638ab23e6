//! Checks that the gradient does not depend on how a global batch is split into micro-batches and over ranks,
//! which are processes.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use foil_common::spec::{Normalization, Sharding};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::super::order::global_batches;
use super::super::{
    Demonstrations, Objective, OrderKey, PairRanking, RowShape, StepPlan, StepRequests, TrainConfig, Trainer,
};
use super::{config, demonstrations, fixture, fixtures, optimizer, pairs};
use crate::collective::testing::{in_threads, rank_config};
use crate::collective::{Gang, Rendezvous, RendezvousHost};
use crate::model::{LanguageModel, Parameters, Precision, RewardModel};

const ROLE: &str = "FOIL_TEST_ROLE";
const PREFIX: &str = "ranks";
const JOIN_TIMEOUT: Duration = Duration::from_secs(120);

/// The task of a rank process.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Role {
    rank: usize,
    world: usize,
    work: Work,
    dir: std::path::PathBuf,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Work {
    /// Whether to train on pairs rather than demonstrations.
    reward: bool,
    batch: usize,
    budget: usize,
    /// Whether to shard the optimizer; this also clips gradients.
    zero1: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Outcome {
    micro_batches: usize,
    /// The first step's gradient of all parameters in order; empty if ranks hold only shards of it.
    gradient: Vec<f32>,
    /// The parameters after all steps.
    parameters: Vec<f32>,
    losses: Vec<f64>,
    /// The digest of the parameters after all steps.
    blake3: String,
}

fn random_model() -> LanguageModel {
    LanguageModel::random(&fixtures().join("model/llama-tied"), 3, Device::Cpu).unwrap()
}

fn run_rank(gang: &Gang, work: Work) -> Outcome {
    let cases = fixture("loops.json");
    if work.reward {
        let rows = pairs(&cases["pairs"]);
        let (human, golden) = rows.split_at(4);
        let model = RewardModel::with_fresh_head(random_model(), 4);
        let objective = PairRanking::new(&model, human, golden, Precision::Fp32, Normalization::Global);
        steps(gang, work, &objective, model.parameters())
    } else {
        let rows = demonstrations(&cases["demonstrations"]);
        let model = random_model();
        let objective = Demonstrations::new(&model, &rows, Precision::Fp32);
        steps(gang, work, &objective, model.parameters())
    }
}

fn steps(gang: &Gang, work: Work, objective: &dyn Objective, parameters: &Parameters) -> Outcome {
    let optimizer = optimizer(work.zero1.then_some(0.5), work.budget);
    let sharding = if work.zero1 { Sharding::Zero1 } else { Sharding::Ddp };
    let config = TrainConfig { sharding, ..config(optimizer) };
    let mut trainer = Trainer::new(parameters, &config, 4, gang).unwrap();
    let shapes: Vec<RowShape> = (0..objective.sets().iter().sum()).map(|row| objective.shape(row)).collect();
    let key = OrderKey { seed: 5, round: 1 };
    let batches = (0..4).flat_map(|epoch| global_batches(key, epoch, &objective.sets(), work.batch));
    let mut outcome = Outcome::default();
    for (step, rows) in batches.take(4).enumerate() {
        let plan = StepPlan::new(&rows, &shapes, trainer.rank_info(), work.budget);
        if step == 0 {
            trainer.warm_up(objective, &plan).unwrap();
        }
        outcome.losses.push(trainer.step(objective, &plan, StepRequests::default()).unwrap().0.loss);
        if step == 0 {
            outcome.micro_batches = plan.micro_batches.len();
            let gradients: Vec<Tensor> = parameters.tensors().iter().map(Tensor::grad).collect();
            if gradients.iter().all(Tensor::defined) {
                outcome.gradient = flat(&gradients);
            }
        }
    }
    outcome.parameters = flat(parameters.tensors());
    outcome.blake3 = parameters.blake3().unwrap();
    outcome
}

fn flat(tensors: &[Tensor]) -> Vec<f32> {
    let flat: Vec<Tensor> = tensors.iter().map(|tensor| tensor.detach().reshape([-1])).collect();
    Vec::try_from(Tensor::cat(&flat, 0)).unwrap()
}

fn relative_distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let distance = square(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    (distance / square(&mut expected.iter().copied())).sqrt()
}

/// Runs `work` on a gang of `world` processes of this test binary.
fn run_processes(world: usize, work: Work) -> Vec<Outcome> {
    let dir = tempfile::tempdir().unwrap();
    let start = |rank| {
        let role = Role { rank, world, work, dir: dir.path().to_owned() };
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::tests::ranks::rank_process", "--ignored", "--nocapture"])
            .env(ROLE, serde_json::to_string(&role).unwrap())
            .env("OMP_NUM_THREADS", "1")
            .spawn()
            .unwrap()
    };
    let ranks: Vec<Child> = (0..world).map(start).collect();
    for mut rank in ranks {
        assert!(rank.wait().unwrap().success());
    }
    let read = |rank| std::fs::read(dir.path().join(format!("rank{rank}.json"))).unwrap();
    (0..world).map(|rank| serde_json::from_slice(&read(rank)).unwrap()).collect()
}

/// Joins the gang. Rank 0 writes its port to a file, which the others wait for.
fn join(role: &Role) -> Gang {
    let config = rank_config();
    let port_file = role.dir.join("port");
    if role.rank == 0 {
        let host = RendezvousHost::open(config).unwrap();
        write_atomically(&port_file, host.port().to_string().as_bytes());
        return host.gather(role.world, PREFIX).unwrap();
    }
    let started = Instant::now();
    let port = loop {
        match std::fs::read_to_string(&port_file) {
            Ok(port) => break port.parse().unwrap(),
            Err(error) => assert!(started.elapsed() < JOIN_TIMEOUT, "rank 0 did not open its port: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let (host, prefix) = (config.address.clone(), PREFIX.to_owned());
    Gang::join(&Rendezvous { rank: role.rank, world: role.world, host, port, prefix }, &config).unwrap()
}

fn write_atomically(path: &Path, bytes: &[u8]) {
    let temporary = path.with_extension("part");
    std::fs::write(&temporary, bytes).unwrap();
    std::fs::rename(temporary, path).unwrap();
}

#[test]
#[ignore = "a rank process, started by the other tests"]
fn rank_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let role: Role = serde_json::from_str(&role).unwrap();
    tch::set_num_threads(1);
    let gang = join(&role);
    let outcome = run_rank(&gang, role.work);
    gang.shutdown().unwrap();
    let path = role.dir.join(format!("rank{}.json", role.rank));
    write_atomically(&path, &serde_json::to_vec(&outcome).unwrap());
}

fn assert_same_training(found: &Outcome, whole: &Outcome) {
    let distance = relative_distance(&found.gradient, &whole.gradient);
    assert!(distance < 1e-6, "relative distance of the gradients: {distance}");
    for (found, expected) in found.losses.iter().zip(&whole.losses) {
        assert!((found / expected - 1.0).abs() < 1e-4, "{found} not {expected}");
    }
}

#[test]
fn micro_batches_give_the_global_batchs_gradient() {
    for reward in [true, false] {
        let run = |budget| run_rank(&Gang::single(), Work { reward, batch: 6, budget, zero1: false });
        let whole = run(10_000);
        assert_eq!(whole.micro_batches, 1);
        let split = run(12);
        assert!(split.micro_batches > 3);
        assert_same_training(&split, &whole);
    }
}

#[test]
fn two_processes_give_one_ranks_gradient() {
    for reward in [true, false] {
        let whole = run_rank(&Gang::single(), Work { reward, batch: 6, budget: 10_000, zero1: false });
        let ranks = run_processes(2, Work { reward, batch: 6, budget: 12, zero1: false });
        assert!(ranks.iter().all(|rank| rank.micro_batches > 1));
        assert_eq!(ranks[0].blake3, ranks[1].blake3);
        assert_eq!(ranks[0].losses, ranks[1].losses);
        ranks.iter().for_each(|rank| assert_same_training(rank, &whole));
    }
}

#[test]
fn a_process_without_rows_takes_the_same_steps() {
    let whole = run_rank(&Gang::single(), Work { reward: true, batch: 2, budget: 10_000, zero1: false });
    let ranks = run_processes(3, Work { reward: true, batch: 2, budget: 10_000, zero1: false });
    assert_eq!(ranks[2].micro_batches, 0);
    assert!(ranks.iter().all(|rank| rank.blake3 == ranks[0].blake3));
    ranks.iter().for_each(|rank| assert_same_training(rank, &whole));
}

/// Neither the shortest row, which determines the reducer's buckets, nor the last micro-batch need have
/// response tokens.
#[test]
fn rows_without_response_tokens_reach_all_parameters() {
    let mut rows = demonstrations(&fixture("loops.json")["demonstrations"]);
    rows.iter_mut().skip(1).for_each(|row| row.response_start = row.ids.len());
    let loss = |gang: &Gang| {
        let model = random_model();
        let objective = Demonstrations::new(&model, &rows, Precision::Fp32);
        let optimizer = optimizer(None, 12);
        let config = config(optimizer);
        let mut trainer = Trainer::new(model.parameters(), &config, 1, gang).unwrap();
        let shapes: Vec<RowShape> = (0..rows.len()).map(|row| objective.shape(row)).collect();
        let plan = StepPlan::new(&(0..rows.len()).collect::<Vec<_>>(), &shapes, trainer.rank_info(), 12);
        trainer.warm_up(&objective, &plan).unwrap();
        trainer.step(&objective, &plan, StepRequests::default()).unwrap().0.loss
    };
    let whole = loss(&Gang::single());
    for found in in_threads(2, loss) {
        assert!((found / whole - 1.0).abs() < 1e-5, "{found} not {whole}");
    }
}

#[test]
fn zero1_takes_the_same_steps_as_ddp() {
    for (reward, world) in [(true, 2), (false, 3)] {
        let work = Work { reward, batch: 6, budget: 12, zero1: true };
        // A gang of one uses DDP, with the same clipping.
        let whole = run_rank(&Gang::single(), work);
        let ranks = run_processes(world, work);
        for rank in &ranks {
            assert!(rank.gradient.is_empty());
            assert_eq!(rank.blake3, ranks[0].blake3);
            let distance = relative_distance(&rank.parameters, &whole.parameters);
            assert!(distance < 1e-5, "relative distance of the parameters: {distance}");
            for (found, expected) in rank.losses.iter().zip(&whole.losses) {
                assert!((found / expected - 1.0).abs() < 1e-5, "{found} not {expected}");
            }
        }
    }
}

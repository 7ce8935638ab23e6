//! The CUDA and NCCL paths on a stand-in device, which rejects what a GPU would reject and traces its calls.
//!
//! `scripts/fake-gpu` also runs the long form: every method, sharding and number of ranks.

// Clippy does not recognize helpers of tests as test code.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::process::Command;

use foil_tests::{FakeGpu, Outcome, Run, foil, foil_worker};
use serde_json::Value;

mod budgets;
mod on_device;
mod training;

/// Whether the long form runs.
fn is_long() -> bool {
    std::env::var("FOIL_FAKE_GPU").is_ok_and(|form| form == "long")
}

fn check_job() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/jobs/check.yaml")
}

fn job(ranks: u32, settings: &[&str]) -> Run {
    Run::job(check_job()).ranks(ranks).set_all(settings)
}

fn on_gpu(run: Run, gpu: &FakeGpu) -> Run {
    let run = run.arg("--device").arg("cuda");
    gpu.environment().into_iter().fold(run, |run, (name, value)| run.env(name, value))
}

/// Runs a job on the stand-in and checks that it causes no trouble.
fn run_on_gpu(ranks: u32, settings: &[&str]) -> Option<(Run, Outcome)> {
    let gpu = FakeGpu::new("a job on the stand-in")?;
    let run = on_gpu(job(ranks, settings), &gpu);
    let outcome = run.finish();
    assert_eq!(outcome.json["state"], "succeeded", "{}", outcome.json);
    gpu.assert_no_trouble();
    Some((run, outcome))
}

/// Loss and gradient norm of every training step of a run.
fn figures(run: &Run) -> Vec<(String, f64, f64)> {
    let text = std::fs::read_to_string(run.out().join("metrics.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let figures = rows.filter_map(|row| {
        let name = format!("{} step {}", row["phase"], row["step"]);
        Some((name, row["loss"].as_f64()?, row["grad_norm"].as_f64()?))
    });
    figures.collect()
}

/// Checks that every step in fp32 equals that on the CPU.
#[track_caller]
fn assert_equal_to_cpu(ranks: u32, settings: &[&str]) {
    let Some((gpu, _)) = run_on_gpu(ranks, settings) else { return };
    let cpu = job(ranks, settings);
    cpu.finish();
    let (found, expected) = (figures(&gpu), figures(&cpu));
    assert!(expected.len() > 5 && found.len() == expected.len(), "{found:?} {expected:?}");
    for (found, expected) in found.iter().zip(&expected) {
        // A small loss is a difference of larger terms.
        let near = |found: f64, expected: f64| (found - expected).abs() <= 1e-5 * expected.abs().max(0.1);
        let equal = near(found.1, expected.1) && near(found.2, expected.2);
        assert!(equal, "{settings:?} on {ranks} ranks: {found:?} is not {expected:?}");
    }
}

#[test]
fn a_game_in_fp32_equals_the_cpus() {
    assert_equal_to_cpu(2, &["resources.sharding=zero1"]);
}

#[test]
fn a_game_in_bf16_meets_no_trouble() {
    let settings =
        ["resources.precision=bf16", "resources.activation_checkpointing=true", "sampling.top_p=0.9"];
    run_on_gpu(1, &settings);
}

/// Covers every method and loss on 1, 2 and 4 ranks, in both precisions and shardings.
#[test]
fn all_games_of_the_long_form() {
    if !is_long() {
        return;
    }
    let shardings = [(1, "ddp"), (2, "ddp"), (2, "zero1"), (4, "zero1"), (2, "fsdp"), (4, "fsdp")];
    for (ranks, sharding) in shardings {
        let sharding = format!("resources.sharding={sharding}");
        assert_equal_to_cpu(ranks, &[&sharding]);
        run_on_gpu(ranks, &[&sharding, "resources.precision=bf16"]);
    }
    let games: [&[&str]; 9] = [
        &["policy_step.dpo={beta: 0.1}"],
        &["policy_step.ipo={beta: 0.1}"],
        &["policy_step.rrhf={ranking_weight: 1}"],
        &["policy_step.grpo={beta: 0.05}"],
        &["policy_step.rloo={beta: 0.05, reference: initial}"],
        &["policy_step.simpo={beta: 2}"],
        &["policy_step.lora.rank=4", "reward_step.lora.rank=4"],
        &["sampling.top_k=5", "sampling.repetition_penalty=1.2", "sampling.min_new_tokens=4"],
        &["resources.activation_checkpointing=true", "resources.deterministic=false"],
    ];
    for game in games {
        assert_equal_to_cpu(2, game);
        run_on_gpu(2, &[game, &["resources.precision=bf16"]].concat());
    }
}

/// Faults at random times and at every failpoint change no weights.
#[test]
fn faults_of_the_long_form_change_no_weights() {
    if !is_long() {
        return;
    }
    let Some(gpu) = FakeGpu::new("faults") else { return };
    let mut chaos = Command::new(foil().with_file_name("foil-chaos"));
    chaos.args(["--device", "cuda", "--kills", "10", "--failpoints", "kill", "--store", "directory"]);
    let output = chaos.envs(gpu.environment()).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    println!("{stdout}");
    gpu.assert_no_trouble();
}

/// Without NVRTC, libtorch's own operations sample the same tokens.
#[test]
fn sampling_needs_no_compiler_of_kernels() {
    let Some(gpu) = FakeGpu::new("sampling without NVRTC") else { return };
    let settings = ["sft_step.epochs=1", "data.generator.sft=64"];
    let run = |without: &[(&str, &str)]| {
        let run = on_gpu(job(1, &settings), &gpu);
        let run = without.iter().fold(run, |run, (name, value)| run.env(name, *value));
        let outcome = run.finish();
        assert_eq!(outcome.json["state"], "succeeded", "{}", outcome.json);
        let samples = run.out().join("samples");
        let files = std::fs::read_dir(samples).unwrap().map(|file| file.unwrap().path());
        let mut texts: Vec<_> = files.map(|file| std::fs::read(file).unwrap()).collect();
        texts.sort_unstable();
        (texts, run.full_logs())
    };
    let (with, without) = (run(&[]), run(&[("FAKE_GPU_WITHOUT_NVRTC", "1")]));
    assert!(!with.0.is_empty() && with.0 == without.0, "the samples differ");
    let told = "cannot use the compiled sampling kernel";
    assert!(!with.1.contains(told) && without.1.contains(told), "{}", without.1);
    gpu.assert_no_trouble();
}

/// The full check of a host passes, but for its speed.
#[test]
fn a_full_check_passes() {
    let Some(gpu) = FakeGpu::new("a full check") else { return };
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new(foil_worker().with_file_name("foil-check-gpus"));
    command.args(["--device", "cuda", "--ranks", "2", "--mebibytes", "1", "--small"]);
    command.args(["--job", check_job(), "--full"]).arg(out.path());
    let output = command.envs(gpu.environment()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    for check in
        ["kernel of sampling compiles", "tokens sampled as on the host", "a shortage of device memory"]
    {
        let row = stdout.lines().find(|row| row.contains(check)).unwrap_or_else(|| panic!("{stdout}"));
        assert!(row.ends_with(" ok"), "{row}");
    }
    gpu.assert_no_trouble();
}

#[test]
fn nccl_sums_are_exact_at_every_number_of_ranks() {
    let Some(gpu) = FakeGpu::new("sums of NCCL") else { return };
    let mut command = Command::new(foil_worker().with_file_name("foil-check-gpus"));
    command.args(["--device", "cuda", "--ranks", "2", "--mebibytes", "1"]).envs(gpu.environment());
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    // Four collectives in four kinds at four lengths.
    assert_eq!(stdout.matches("64       exact").count(), 2, "{stdout}");
    gpu.assert_no_trouble();
}

/// The largest micro-batch of the plan does not fit, so all ranks continue with smaller ones.
#[test]
fn a_micro_batch_that_does_not_fit_is_cut() {
    let Some(gpu) = FakeGpu::new("a shortage of device memory") else { return };
    let settings = [
        "sft_step.optimizer.micro_batch_tokens=100000",
        "sft_step.batch_sequences=256",
        "generation.max_num_seqs=4",
    ];
    let run = on_gpu(job(1, &settings), &gpu).env("FAKE_GPU_BYTES", "23000000");
    assert_eq!(run.finish().json["state"], "succeeded");
    assert!(run.full_logs().contains("using smaller micro-batches"), "{}", run.logs());
}

/// The host does not wait for the device after each copy of a checkpoint.
#[test]
fn checkpoints_are_copied_beside_the_devices_other_work() {
    let copies = |steps: u32| {
        let gpu = FakeGpu::new("checkpoints")?;
        let settings =
            [format!("resources.checkpoint_steps={steps}"), "resources.checkpoint_seconds=0".to_owned()];
        let run = on_gpu(job(1, &settings.each_ref().map(String::as_str)), &gpu);
        let outcome = run.finish();
        assert_eq!(outcome.json["state"], "succeeded", "{}", outcome.json);
        gpu.assert_no_trouble();
        let all: Vec<_> = gpu.traces().into_iter().flat_map(|trace| trace.events).collect();
        let of = |how| all.iter().filter(|event| event.kind == "d2h" && event.text.starts_with(how)).count();
        Some((of("async"), of("sync")))
    };
    let (Some(without), Some(with)) = (copies(0), copies(2)) else { return };
    assert!(with.0 > without.0, "{with:?} with checkpoints, {without:?} without");
    assert_eq!(with.1, without.1, "a checkpoint waits for single copies");
}

/// A device-side assertion breaks the CUDA context. The rank ends, and a new process continues.
#[test]
fn a_broken_device_ends_its_rank() {
    let Some(gpu) = FakeGpu::new("a broken device") else { return };
    let marker = tempfile::tempdir().unwrap();
    let once = marker.path().join("broken");
    let run = on_gpu(job(1, &[]), &gpu).env("FAKE_GPU_BREAK", format!("3000 {}", once.display()));
    let outcome = run.finish();
    assert!(once.exists() && outcome.json["state"] == "succeeded", "{}", outcome.json);
    assert!(run.full_logs().contains("device-side assert triggered"), "{}", run.logs());
}

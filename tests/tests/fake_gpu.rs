//! The CUDA and NCCL paths on a stand-in device, which rejects what a GPU would reject and traces its calls.
//! Budgets of launches and copies may only decrease.
//!
//! `scripts/fake-gpu` also runs the long form: every method, sharding and number of ranks.

// Clippy does not recognize helpers of tests as test code.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use foil_tests::{FakeGpu, Outcome, Run, Trace, foil_worker};
use serde_json::{Value, json};

mod on_device;

use on_device::{DECODED, LAYERS, SLOTS, Scenario};

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
        let near = |found: f64, expected: f64| (found - expected).abs() <= 1e-5 * expected.abs().max(1e-3);
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
    for (ranks, sharding) in [(1, "ddp"), (2, "ddp"), (2, "zero1"), (4, "zero1")] {
        let sharding = format!("resources.sharding={sharding}");
        assert_equal_to_cpu(ranks, &[&sharding]);
        run_on_gpu(ranks, &[&sharding, "resources.precision=bf16"]);
    }
    let games: [&[&str]; 9] = [
        &["policy_step.dpo={beta: 0.1}"],
        &["policy_step.ipo={beta: 0.1}"],
        &["policy_step.rrhf={ranking_weight: 1}"],
        &["policy_step.grpo={beta: 0.05}"],
        &["policy_step.rloo={beta: 0.05}"],
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

/// Starts a process of `foil-bench` as a rank.
fn start_rank(gpu: &FakeGpu, workload: &Path) -> Child {
    let program = foil_worker().with_file_name("foil-bench");
    let mut command = Command::new(program);
    command.arg(workload).envs(gpu.environment()).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("foil-bench starts")
}

/// The traces of two ranks that train a reward model of six layers in bf16 for two steps.
fn training_of_two_ranks(gpu: &FakeGpu, sharding: &str) -> Vec<Trace> {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    on_device::save_model(&model);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let rendezvous = listener.local_addr().unwrap().to_string();
    drop(listener);
    let pair = |start: u32| json!({"prompt": [1, 2, start], "chosen": [3, 4, 5], "rejected": [6, start]});
    let workloads = [0, 1].map(|rank| {
        let path = folder.path().join(format!("rank-{rank}.json"));
        let workload = json!({
            "model": model, "work": "reward", "precision": "bf16", "device": "cuda", "world": 2, "rank": rank,
            "rendezvous": rendezvous, "sharding": sharding,
            "batches": [[pair(7), pair(8)], [pair(9), pair(10)]],
        });
        std::fs::write(&path, workload.to_string()).unwrap();
        path
    });
    let mut ranks = workloads.map(|workload| start_rank(gpu, &workload));
    for rank in &mut ranks {
        rank.stdin.take().unwrap().write_all(b"run\nquit\n").unwrap();
    }
    for rank in &mut ranks {
        let lines: Vec<_> = BufReader::new(rank.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
        assert!(rank.wait().unwrap().success(), "{lines:?}");
        let peak: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
        assert!(peak["peak_bytes"].as_u64().unwrap() > 4 << 20, "{lines:?}");
    }
    gpu.assert_no_trouble();
    ranks.iter().map(|rank| gpu.trace_of(rank.id())).collect()
}

/// Weights are read into pinned memory, from which they are copied while the next ones are read.
#[test]
fn weights_are_copied_to_the_device_while_others_are_read() {
    let Some(gpu) = FakeGpu::new("loading of weights") else { return };
    for trace in training_of_two_ranks(&gpu, "ddp") {
        let first = trace.events.iter().position(|event| event.text.contains("attention_forward")).unwrap();
        let loading = Trace { events: trace.events[..first].to_vec() };
        let copies = loading.events.iter().filter(|event| event.kind == "h2d");
        // Constants of rotary embeddings are smaller.
        let (is_async, bytes): (Vec<_>, Vec<usize>) = copies
            .map(|event| event.text.split_once(' ').unwrap())
            .map(|(how, rest)| (how == "async", rest.split(' ').next().unwrap().parse().unwrap()))
            .filter(|(_, bytes)| *bytes >= 256)
            .unzip();
        assert!(bytes.len() > 40, "{bytes:?} bytes are copied to the device");
        assert!(
            is_async.iter().all(|is_async| *is_async),
            "the host waits for copies: {bytes:?} {is_async:?}"
        );
    }
}

/// The positions at which the last two backward passes of a trace end.
fn last_backwards(trace: &Trace) -> [usize; 2] {
    let is_end = |text: &str| text.starts_with("aten::embedding_dense_backward");
    let ends: Vec<_> = (0..trace.events.len()).filter(|&at| is_end(&trace.events[at].text)).collect();
    let [.., before, last] = ends[..] else { panic!("{ends:?}") };
    [before, last]
}

/// The last backward pass of a trace.
fn last_backward(trace: &Trace) -> Trace {
    let [before, last] = last_backwards(trace);
    let forward =
        trace.events[before..last].iter().rposition(|event| event.text.contains("attention_forward"));
    Trace { events: trace.events[before + forward.unwrap()..last].to_vec() }
}

fn collectives(trace: &Trace, name: &str) -> usize {
    trace.events.iter().filter(|event| event.kind == "nccl" && event.text.starts_with(name)).count()
}

/// In bf16 the reducer sends the upper layers' bucket while lower layers are still computed.
#[test]
fn buckets_leave_before_the_backward_pass_ends() {
    let Some(gpu) = FakeGpu::new("overlap of all-reduce") else { return };
    for trace in training_of_two_ranks(&gpu, "ddp") {
        assert!(collectives(&last_backward(&trace), "allreduce") >= 1, "no bucket was sent during backward");
    }
}

/// The part of a trace from the end of the second-to-last backward pass to the end of the last one: the work
/// of one step.
fn last_step(trace: &Trace) -> Trace {
    let [before, last] = last_backwards(trace);
    Trace { events: trace.events[before..last].to_vec() }
}

/// With ZeRO-1 the units of all layers are sent during backward. Collectives work in place: a gradient is
/// copied once, where `ddp` adds it to a bucket, and parameters are not copied.
#[test]
fn flat_units_leave_before_the_backward_pass_ends_and_are_not_laid_out() {
    let Some(gpu) = FakeGpu::new("overlap of reduce-scatter") else { return };
    let copies = |trace: &Trace| last_step(trace).kernels("aten::copy_");
    let plain = copies(&training_of_two_ranks(&gpu, "ddp")[0]);
    for trace in training_of_two_ranks(&gpu, "zero1") {
        // The head and six layers.
        let backward = last_backward(&trace);
        assert!(collectives(&backward, "reduce_scatter") >= 7, "{:?}", backward.events);
        let step = last_step(&trace);
        // The same units plus norms and embeddings: one sum and one gathering each.
        assert_eq!(collectives(&step, "reduce_scatter"), 9);
        assert_eq!(collectives(&step, "allgather"), 9);
        // Seven matrices in each layer, 13 norms, the head and the embeddings.
        within("copies of a step with zero1 beyond those of ddp", copies(&trace) - plain, 6 * 7 + 15);
    }
}

/// Runs the scenarios of [`on_device`] in a process on the stand-in.
fn scenarios(gpu: &FakeGpu) -> Trace {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "on_device::scenarios_on_the_stand_in", "--ignored"]).envs(gpu.environment());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    gpu.assert_no_trouble();
    gpu.trace_of(pid)
}

/// Checks that `what` takes at most `bound`. A smaller number becomes the new bound.
#[track_caller]
fn within(what: &str, found: usize, bound: usize) {
    println!("{what}: {found} of {bound}");
    assert!(found <= bound, "{what}: {found}, more than {bound}");
}

#[test]
fn launches_and_copies_stay_within_their_budgets() {
    let Some(gpu) = FakeGpu::new("launches and copies") else { return };
    let trace = scenarios(&gpu);
    let part = |scenario: Scenario, layers| {
        let (from, to) = scenario.marks(layers);
        trace.between(from, to)
    };
    let [few, many] = LAYERS;
    let per_layer = |scenario, count: &dyn Fn(&Trace) -> usize| {
        let more = count(&part(scenario, many)) - count(&part(scenario, few));
        assert_eq!(more % (many - few), 0, "layers differ");
        more / (many - few)
    };
    let kernels = |trace: &Trace| trace.count("kernel");
    within("launches per layer forward", per_layer(Scenario::Forward, &kernels), 33);
    within("launches per layer forward, shared prompts", per_layer(Scenario::SharedForward, &kernels), 35);
    within("launches per layer backward", per_layer(Scenario::Backward, &kernels), 56);
    within("launches per layer forward, fp32", per_layer(Scenario::Fp32Forward, &kernels), 22);
    for scenario in [Scenario::Forward, Scenario::SharedForward, Scenario::Fp32Forward, Scenario::Preferences]
    {
        let (uploads, waits) = part(scenario, few).uploads();
        within(&format!("copies from the host per micro-batch, {scenario:?}"), uploads, 1);
        assert_eq!(waits, 0, "{scenario:?} waits for a copy from the host");
        assert_eq!(part(scenario, few).syncs(), 0, "{scenario:?} waits for the device");
    }
    let decode = |layers| {
        let (short, long) = (part(Scenario::ShortDecode, layers), part(Scenario::Decode, layers));
        let [less, more] = DECODED;
        move |count: &dyn Fn(&Trace) -> usize| (count(&long) - count(&short)) / (more - less)
    };
    let (shallow, deep) = (decode(few), decode(many));
    let per_layer = (deep(&kernels) - shallow(&kernels)) / (many - few);
    within("launches per decode layer", per_layer, 20);
    within("launches per decode step besides its layers", shallow(&kernels) - few * per_layer, 46);
    within("waits per decode step", shallow(&Trace::syncs), 1);
    within("copies from the host per decode step", shallow(&|trace: &Trace| trace.uploads().0), 0);
    assert_launched_before_read(&part(Scenario::Decode, few));
    for scenario in [Scenario::MixedDecode, Scenario::Fp32MixedDecode] {
        assert_few_shapes(scenario, &part(scenario, few));
    }
    for step in [Scenario::Step, Scenario::CheckpointedStep, Scenario::Fp32Step] {
        assert_memory(&trace, step);
    }
}

/// The kernels between each asynchronous copy to the host and the wait for it.
fn launched_while_copying(trace: &Trace) -> Vec<Vec<&str>> {
    let (mut all, mut current) = (Vec::new(), None);
    for event in &trace.events {
        match (event.kind.as_str(), &mut current) {
            ("d2h", _) => {
                assert!(event.text.starts_with("async"), "{event:?}");
                current = Some(Vec::new());
            }
            ("wait", _) => all.push(current.take().expect("a wait follows a copy")),
            ("h2d", Some(_)) => panic!("a step copies from the host: {event:?}"),
            ("kernel", Some(kernels)) => kernels.push(event.text.as_str()),
            _ => {}
        }
    }
    all
}

/// Checks that every step is launched before the host waits for the tokens of the one before.
#[track_caller]
fn assert_launched_before_read(trace: &Trace) {
    let launched = launched_while_copying(trace);
    assert_eq!(launched.len(), DECODED[1]);
    let (last, steps) = launched.split_last().unwrap();
    assert!(last.is_empty(), "a step is launched of which no token is needed: {last:?}");
    for kernels in steps {
        let attention = kernels.iter().filter(|kernel| kernel.starts_with("aten::_flash_attention_forward"));
        assert_eq!(attention.count(), LAYERS[0], "{kernels:?}");
    }
}

/// Checks that the launches of a step, with their shapes, depend only on the bucket of its rows.
#[track_caller]
fn assert_few_shapes(scenario: Scenario, trace: &Trace) {
    let steps = launched_while_copying(trace);
    let shapes: HashSet<_> = steps.iter().filter(|kernels| !kernels.is_empty()).collect();
    println!("{scenario:?}: {} steps, {} shapes", steps.len(), shapes.len());
    // 1, 2, 4, 8 and all slots.
    assert!(steps.len() > 20 && SLOTS > 8, "{} steps of {SLOTS} rows", steps.len());
    assert!((2..=5).contains(&shapes.len()), "{} shapes in {} steps", shapes.len(), steps.len());
}

/// Checks that a step's memory is within the plan's estimate and not far below it.
#[track_caller]
fn assert_memory(trace: &Trace, step: Scenario) {
    let layers = LAYERS[1];
    let (from, to) = step.marks(layers);
    let taken = trace.memory_at(to).peak - trace.memory_at(from).live;
    let planned = on_device::planned_memory(step, layers);
    let share = taken as f64 / planned as f64;
    println!("{step:?}: {taken} of {planned} planned bytes");
    assert!((0.6..=1.0).contains(&share), "{step:?}: {taken} of {planned} planned bytes");
}

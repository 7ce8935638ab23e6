//! The order of copies, collectives and computation when two ranks train.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use foil_tests::{FakeGpu, Trace, foil_worker};
use serde_json::{Value, json};

use super::budgets::within;
use super::on_device;

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
        // What is not in the model's files is smaller: a fresh head, constants of rotary embeddings.
        let (is_async, bytes): (Vec<_>, Vec<usize>) = copies
            .map(|event| event.text.split_once(' ').unwrap())
            .map(|(how, rest)| (how == "async", rest.split(' ').next().unwrap().parse::<usize>().unwrap()))
            .filter(|(_, bytes)| *bytes >= 4096)
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

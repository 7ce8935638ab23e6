//! Budgets of launches, copies and memory, which may only decrease.

use std::collections::HashSet;
use std::process::{Command, Stdio};

use foil_tests::{FakeGpu, Trace};

use super::on_device::{self, DECODED, LAYERS, SLOTS, Scenario};

/// Runs the scenarios of [`on_device`] in a process on the stand-in.
fn scenarios(gpu: &FakeGpu) -> Trace {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "on_device::scenarios_on_the_stand_in", "--ignored"]).envs(gpu.environment());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    gpu.assert_no_trouble();
    let trace = gpu.trace_of(pid);
    assert!(trace.count("nvrtc") > 0, "no kernel was compiled for a GPU");
    trace
}

/// Checks that `what` takes at most `bound`. A smaller number becomes the new bound.
#[track_caller]
pub(super) fn within(what: &str, found: usize, bound: usize) {
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
    within("launches per decode step besides its layers", shallow(&kernels) - few * per_layer, 20);
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

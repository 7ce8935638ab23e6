//! Tests the path of other devices, which use ATen's operations, on the CPU against fp64 autograd.

use foil_torch::Segment;
use foil_torch::ops::{
    RotaryAngles, Segments, add_rms_norm, attention, gather_rows, log_prob_gradient, rms_norm, rotary,
    swiglu, target_log_probs,
};
use foil_torch::runtime::use_cpu_kernels;
use tch::{Device, IndexOp, Kind, Tensor};

/// Runs `work` on the code path of other devices.
fn without_cpu_kernels<T>(work: impl FnOnce() -> T) -> T {
    use_cpu_kernels(false);
    let result = work();
    use_cpu_kernels(true);
    result
}

/// A separate random generator: libtorch's is shared by all tests of the process.
struct Noise(u64);

impl Noise {
    /// Normal numbers by Box–Muller from SplitMix64.
    fn normal(&mut self, size: &[i64]) -> Tensor {
        let mut uniform = || {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (((mixed ^ (mixed >> 31)) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
        };
        let mut draw = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        let numbers: Vec<f64> = (0..size.iter().product()).map(|_| draw()).collect();
        Tensor::from_slice(&numbers).view(size)
    }
}

/// ‖a − b‖ / ‖b‖.
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    ((a - &b).norm() / b.norm()).double_value(&[])
}

fn gradients(of: &Tensor, inputs: &[&Tensor]) -> Vec<Tensor> {
    Tensor::run_backward(&[of.to_kind(Kind::Double).sum(Kind::Double)], inputs, false, false)
}

/// A row of logits whose token 0 has the probability `p`; the others share the rest unevenly.
fn logits_with(p: f64, vocab: i64) -> Tensor {
    let rest = Noise(11).normal(&[vocab - 1]);
    let first = rest.logsumexp([0], true) + (p / (1.0 - p)).ln();
    Tensor::cat(&[first, rest], 0).unsqueeze(0)
}

#[test]
fn the_gradient_of_a_confident_token_keeps_its_bits_in_bf16() {
    const VOCAB: i64 = 32_000;
    let targets = Tensor::zeros([1], (Kind::Int64, Device::Cpu));
    let upstream = Tensor::from_slice(&[-0.37_f32]);
    for p in [0.5, 0.74, 0.98, 0.998] {
        let rounded = logits_with(p, VOCAB).to_kind(Kind::BFloat16);
        // Exact with respect to the bf16 values.
        let exact = rounded.to_kind(Kind::Double).softmax(-1, Kind::Double) * 0.37;
        exact.i((0, 0)).copy_(&(exact.i((0, 0)) - 0.37));
        // The CPU kernels sum the normalizer of this many tokens in fp32, an error that 1 − p amplifies.
        for (cpu_kernels, bound) in [(true, 0.02), (false, 0.005)] {
            let mut gradient = rounded.copy();
            use_cpu_kernels(cpu_kernels);
            let (_, normalizer) = target_log_probs(&gradient, &targets).unwrap();
            log_prob_gradient(&mut gradient, &normalizer, &targets, &upstream).unwrap();
            use_cpu_kernels(true);
            let error = relative_error(&gradient, &exact);
            assert!(error < bound, "p = {p}, CPU kernels {cpu_kernels}: relative error {error}");
        }
    }
}

/// With 64 completions of one prompt, the prompt's gradient is a sum of 64 terms.
#[test]
fn the_gradient_of_a_shared_prefix_is_summed_in_fp32() {
    const COMPLETIONS: i64 = 64;
    let mut noise = Noise(12);
    let x = noise.normal(&[3, 8]).to_kind(Kind::BFloat16).set_requires_grad(true);
    let indices = Tensor::arange(3, (Kind::Int64, Device::Cpu)).repeat([COMPLETIONS]);
    let upstream = noise.normal(&[3 * COMPLETIONS, 8]).abs().to_kind(Kind::BFloat16);
    let gathered = gather_rows(&x, &indices).unwrap();
    assert!(gathered.equal(&x.index_select(0, &indices)));
    let found = gradients(&(gathered.to_kind(Kind::Double) * &upstream), &[&x]).remove(0);
    assert_eq!(found.kind(), Kind::BFloat16);
    let exact =
        upstream.to_kind(Kind::Double).view([COMPLETIONS, 3, 8]).sum_dim_intlist(0, false, Kind::Double);
    let largest = ((found.to_kind(Kind::Double) - &exact).abs() / &exact).max().double_value(&[]);
    assert!(
        largest <= 1.0 / 256.0,
        "a sum that is rounded once is off by at most half a unit of 8 bits: {largest}"
    );
}

fn angles(tokens: i64, half: i64) -> RotaryAngles {
    let angle = Tensor::arange(tokens, (Kind::Float, Device::Cpu)).unsqueeze(1)
        * Tensor::arange(half, (Kind::Float, Device::Cpu)).unsqueeze(0).neg().exp();
    RotaryAngles { cos: angle.cos(), sin: angle.sin() }
}

/// The input tensors of the operations: those of a layer with 4 query and 2 key heads.
struct Inputs {
    x: Tensor,
    delta: Tensor,
    weight: Tensor,
    gate: Tensor,
    up: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

/// A prompt of three tokens, two completions of it, and a separate sequence.
const SEGMENTS: [Segment; 4] = [
    Segment { start: 0, length: 3, prefix_start: 0, prefix_length: 0 },
    Segment { start: 3, length: 2, prefix_start: 0, prefix_length: 3 },
    Segment { start: 5, length: 1, prefix_start: 0, prefix_length: 3 },
    Segment { start: 6, length: 3, prefix_start: 0, prefix_length: 0 },
];

impl Inputs {
    fn new(kind: Kind, head_dim: i64) -> Self {
        let mut noise = Noise(13);
        let mut leaf = |size: &[i64], kind| noise.normal(size).to_kind(kind).set_requires_grad(true);
        Self {
            x: leaf(&[9, 16], Kind::Float),
            delta: leaf(&[9, 16], kind),
            weight: leaf(&[16], Kind::Float),
            gate: leaf(&[9, 16], kind),
            up: leaf(&[9, 16], kind),
            q: leaf(&[9, 4, head_dim], kind),
            k: leaf(&[9, 2, head_dim], kind),
            v: leaf(&[9, 2, head_dim], kind),
        }
    }

    /// The same numbers in fp64.
    fn exact(&self) -> Self {
        let wide = |tensor: &Tensor| tensor.detach().to_kind(Kind::Double).set_requires_grad(true);
        Self {
            x: wide(&self.x),
            delta: wide(&self.delta),
            weight: wide(&self.weight),
            gate: wide(&self.gate),
            up: wide(&self.up),
            q: wide(&self.q),
            k: wide(&self.k),
            v: wide(&self.v),
        }
    }

    /// For each operation, its gradients with respect to its inputs, then its result.
    fn with_gradients(&self, [normed, added, activated, attended]: [Tensor; 4]) -> Vec<Tensor> {
        let mut found = Vec::new();
        for (result, inputs) in [
            (normed, vec![&self.x, &self.weight]),
            (added, vec![&self.x, &self.delta, &self.weight]),
            (activated, vec![&self.gate, &self.up]),
            (attended, vec![&self.q, &self.k, &self.v]),
        ] {
            let mixed = result.to_kind(Kind::Double)
                * Tensor::arange(result.numel() as i64, (Kind::Double, Device::Cpu)).sin().view_as(&result);
            found.extend(gradients(&mixed, &inputs));
            found.push(result.detach());
        }
        found
    }
}

/// Results and gradients of every operation on this thread's current path.
fn layers(kind: Kind, head_dim: i64) -> Vec<Tensor> {
    let inputs = Inputs::new(kind, head_dim);
    let Inputs { x, delta, weight, gate, up, q, k, v } = &inputs;
    let rotation = angles(9, head_dim / 2);
    let (sum, added) = add_rms_norm(x, delta, weight, 1e-5).unwrap();
    let mut found = vec![rotary(&q.detach(), &rotation).unwrap()];
    found.extend(inputs.with_gradients([
        rms_norm(x, weight, 1e-5, kind).unwrap(),
        sum + added,
        swiglu(gate, up).unwrap(),
        attention(q, k, v, &rotation, &Segments::new(&SEGMENTS, Vec::new())).unwrap(),
    ]));
    found
}

/// The same results from the formulas, in fp64.
fn formulas(kind: Kind, head_dim: i64) -> Vec<Tensor> {
    let inputs = Inputs::new(kind, head_dim).exact();
    let Inputs { x, delta, weight, gate, up, q, k, v } = &inputs;
    let rotation = angles(9, head_dim / 2);
    let norm = |x: &Tensor| {
        let squares = x.square().mean_dim(-1, true, Kind::Double) + 1e-5;
        x / squares.sqrt() * weight
    };
    let rotate = |x: &Tensor| {
        let (cos, sin) = (rotation.cos.unsqueeze(1), rotation.sin.unsqueeze(1));
        let halves = x.chunk(2, -1);
        Tensor::cat(&[&halves[0] * &cos - &halves[1] * &sin, &halves[1] * &cos + &halves[0] * &sin], -1)
    };
    let (rotated_q, rotated_k) = (rotate(q), rotate(k));
    let attend = |segment: &Segment| {
        let rows = |x: &Tensor, with_prefix: bool| {
            let own = x.narrow(0, segment.start, segment.length);
            match with_prefix {
                true => Tensor::cat(&[x.narrow(0, segment.prefix_start, segment.prefix_length), own], 0),
                false => own,
            }
        };
        // Two query heads share each key head: [heads, rows, head_dim].
        let shared = |x: &Tensor| rows(x, true).repeat_interleave_self_int(2, 1, None).transpose(0, 1);
        let scores = rows(&rotated_q, false).transpose(0, 1).matmul(&shared(&rotated_k).transpose(1, 2));
        let hidden = Tensor::ones(scores.size(), (Kind::Bool, Device::Cpu)).triu(segment.prefix_length + 1);
        let scores = (scores / (head_dim as f64).sqrt()).masked_fill(&hidden, f64::NEG_INFINITY);
        scores.softmax(-1, Kind::Double).matmul(&shared(v)).transpose(0, 1)
    };
    let sum = x + delta;
    let mut found = vec![rotate(&q.detach())];
    found.extend(inputs.with_gradients([
        norm(x),
        &sum + norm(&sum),
        gate.silu() * up,
        Tensor::cat(&SEGMENTS.iter().map(attend).collect::<Vec<_>>(), 0),
    ]));
    found
}

#[test]
fn every_operation_is_its_formula_on_both_paths() {
    // Flash attention does not support a head size of 6. Each bf16 number is off by up to 1/256; the norm of
    // a tensor by less.
    for (kind, head_dim, bound) in
        [(Kind::Float, 8, 1e-5), (Kind::Float, 6, 1e-5), (Kind::BFloat16, 8, 0.006)]
    {
        let exact = formulas(kind, head_dim);
        let (cpu, other) = (layers(kind, head_dim), without_cpu_kernels(|| layers(kind, head_dim)));
        assert_eq!((cpu.len(), other.len()), (exact.len(), exact.len()));
        for (path, found) in [("own loops", cpu), ("ATen", other)] {
            for (position, (found, exact)) in found.iter().zip(&exact).enumerate() {
                let error = relative_error(found, exact);
                assert!(error < bound, "{path}, {kind:?}, head size {head_dim}, tensor {position}: {error}");
            }
        }
    }
}

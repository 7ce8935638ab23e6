//! The key/value cache: slots, copies and their limits.

use foil_torch::runtime::use_cpu_kernels;
use tch::{Device, Tensor};

use super::super::{Inference, KvCache, PackedBatch, Precision};
use super::{distance, forward_each, llama, model, qwen3, rows};

fn prefill(inference: &Inference<'_>, cache: &mut KvCache, row: &[u32], slot: usize) -> Tensor {
    let batch = PackedBatch::from_sequences(&[row], Device::Cpu).unwrap();
    inference.prefill(&batch, cache, &[slot]).unwrap()
}

#[test]
fn one_prefill_serves_all_completions_of_a_prompt() {
    let model = model(&qwen3());
    let inference = model.inference(Precision::Fp32, 4).unwrap();
    let mut cache = inference.new_cache(4, 16);
    let _ = prefill(&inference, &mut cache, &[5, 6, 7], 0);
    cache.copy_slots(&[(0, 1), (0, 2), (0, 3)]).unwrap();
    let tokens = [8, 9, 10, 11];
    let hidden = inference.decode(&tokens, &mut cache).unwrap();
    let rows: Vec<Vec<u32>> = tokens.iter().map(|&token| vec![5, 6, 7, token]).collect();
    assert!(distance(&hidden, &forward_each(&model, &rows, Precision::Fp32)) < 1e-6);
}

#[test]
fn a_moved_sequence_continues_and_its_old_slot_is_free() {
    let model = model(&llama());
    let inference = model.inference(Precision::Fp32, 4).unwrap();
    let mut cache = inference.new_cache(3, 32);
    let rows = &rows()[..3];
    let batch = PackedBatch::from_sequences(rows, Device::Cpu).unwrap();
    let _ = inference.prefill(&batch, &mut cache, &[0, 1, 2]).unwrap();
    // Row 0 is done. The last row takes its slot, and a new short prompt takes the slot of a longer one.
    cache.move_slots(&[(2, 0)]).unwrap();
    assert_eq!((cache.length(0), cache.length(2)), (1, 0));
    cache.clear(1..2);
    let _ = prefill(&inference, &mut cache, &[4, 4], 1);
    let hidden = inference.decode(&[20, 21], &mut cache).unwrap();
    let expected = vec![vec![40, 20], vec![4, 4, 21]];
    assert!(distance(&hidden, &forward_each(&model, &expected, Precision::Fp32)) < 1e-6);
}

#[test]
fn slots_can_be_swapped_at_once() {
    let model = model(&llama());
    let inference = model.inference(Precision::Fp32, 4).unwrap();
    let mut cache = inference.new_cache(2, 16);
    let _ = prefill(&inference, &mut cache, &[3, 4, 5, 6], 0);
    let _ = prefill(&inference, &mut cache, &[7], 1);
    cache.copy_slots(&[(0, 1), (1, 0)]).unwrap();
    let hidden = inference.decode(&[8, 9], &mut cache).unwrap();
    let expected = vec![vec![7, 8], vec![3, 4, 5, 6, 9]];
    assert!(distance(&hidden, &forward_each(&model, &expected, Precision::Fp32)) < 1e-6);
}

#[test]
fn bf16_decoding_follows_the_bf16_forward() {
    let model = model(&llama());
    let inference = model.inference(Precision::Bf16, 4).unwrap();
    let mut cache = inference.new_cache(4, 16);
    let mut rows = rows();
    let batch = PackedBatch::from_sequences(&rows, Device::Cpu).unwrap();
    let _ = inference.prefill(&batch, &mut cache, &[0, 1, 2, 3]).unwrap();
    let hidden = inference.decode(&[1, 2, 3, 4], &mut cache).unwrap();
    for (row, token) in rows.iter_mut().zip(1..) {
        row.push(token);
    }
    assert!(distance(&hidden, &forward_each(&model, &rows, Precision::Bf16)) < 0.02);
    assert_eq!(inference.logits(&hidden).kind(), tch::Kind::Float);
}

#[test]
fn the_same_steps_give_the_same_bits() {
    let model = model(&llama());
    let run = || {
        let inference = model.inference(Precision::Fp32, 4).unwrap();
        let mut cache = inference.new_cache(4, 20);
        let batch = PackedBatch::from_sequences(&rows(), Device::Cpu).unwrap();
        let _ = inference.prefill(&batch, &mut cache, &[0, 1, 2, 3]).unwrap();
        let hidden = inference.decode(&[1, 2, 3, 4], &mut cache).unwrap();
        inference.logits(&hidden)
    };
    assert!(run().equal(&run()));
}

/// Decoding as on an accelerator, in buckets of rows.
#[test]
fn padding_rows_change_no_bits_of_other_rows() {
    use_cpu_kernels(false);
    let model = model(&llama());
    let inference = model.inference(Precision::Fp32, 4).unwrap();
    let decode = |ids: [i64; 8], positions: [i64; 8]| {
        let mut cache = inference.new_cache(9, 20);
        let batch = PackedBatch::from_sequences(&rows(), Device::Cpu).unwrap();
        let _ = inference.prefill(&batch, &mut cache, &[0, 1, 2, 3]).unwrap();
        let steps = (0..3_i64).map(|step| {
            let [ids, positions] = [ids, positions].map(|numbers| Tensor::from_slice(&numbers));
            let advanced = positions.narrow(0, 0, 4) + step;
            let positions = Tensor::cat(&[&advanced, &positions.narrow(0, 4, 4)], 0);
            let hidden = inference.decode_rows([&ids, &positions], &mut cache, 4).unwrap();
            assert_eq!(hidden.size()[0], 8);
            hidden.narrow(0, 0, 4)
        });
        Tensor::cat(&steps.collect::<Vec<_>>(), 0)
    };
    let lengths: Vec<i64> = rows().iter().map(|row| row.len() as i64).collect();
    let with_padding = |ids: [i64; 4], positions: [i64; 4]| {
        let joined = |own: &[i64], padding: [i64; 4]| [own, &padding].concat().try_into().unwrap();
        decode(joined(&[1, 2, 3, 4], ids), joined(&lengths, positions))
    };
    let hidden = with_padding([0; 4], [0; 4]);
    assert!(hidden.equal(&with_padding([30, 7, 7, 1], [0, 19, 3, 8])));
    let mut rows = rows();
    let expected = (0..3).map(|_| {
        for (row, token) in rows.iter_mut().zip(1..) {
            row.push(token);
        }
        forward_each(&model, &rows, Precision::Fp32)
    });
    assert!(distance(&hidden, &Tensor::cat(&expected.collect::<Vec<_>>(), 0)) < 1e-6);
}

#[test]
fn a_padding_row_needs_a_free_slot() {
    use_cpu_kernels(false);
    let model = model(&llama());
    let inference = model.inference(Precision::Fp32, 4).unwrap();
    let mut cache = inference.new_cache(3, 8);
    let _ = prefill(&inference, &mut cache, &[1, 2], 0);
    let _ = prefill(&inference, &mut cache, &[3], 1);
    let [ids, positions] = [[5_i64, 0], [2, 0]].map(|numbers| Tensor::from_slice(&numbers));
    let error = inference.decode_rows([&ids, &positions], &mut cache, 1).unwrap_err().to_string();
    assert!(error.contains("slot 1 of a padding row holds a sequence"), "{error}");
}

#[test]
fn misuse_is_an_error_that_names_the_slot() {
    let model = model(&llama());
    let inference = model.inference(Precision::Fp32, 4).unwrap();
    let mut cache = inference.new_cache(2, 4);
    let batch = |row: &[u32]| PackedBatch::from_sequences(&[row], Device::Cpu).unwrap();
    let too_long = inference.prefill(&batch(&[1, 2, 3, 4, 5]), &mut cache, &[0]);
    assert!(too_long.unwrap_err().to_string().contains("5 tokens"));
    assert!(
        inference.prefill(&batch(&[1]), &mut cache, &[2]).unwrap_err().to_string().contains("slot 2 of 2")
    );
    assert!(inference.prefill(&batch(&[1]), &mut cache, &[0, 1]).is_err());
    assert!(inference.decode(&[1], &mut cache).unwrap_err().to_string().contains("holds no sequence"));
    let _ = prefill(&inference, &mut cache, &[1, 2, 3, 4], 0);
    assert!(inference.decode(&[1], &mut cache).unwrap_err().to_string().contains("slot 0 is full"));
    assert!(inference.decode(&[], &mut cache).is_err());
    assert!(inference.decode(&[1, 2, 3], &mut cache).is_err());
    assert!(cache.copy_slots(&[(0, 1), (0, 1)]).is_err());
    assert_eq!(KvCache::bytes(model.config(), 2, 4, Precision::Fp32), 3 * 2 * 2 * 4 * 16 * 4);
}

//! Activation checkpointing (Chen et al. 2016): activations are dropped after the forward pass and recomputed
//! in the backward pass.

use tch::Tensor;

use crate::error::{During, Error, Result};
use crate::ffi::{self, Computation, list, tensors};

/// Runs `function` on `inputs` and keeps only the inputs for the backward pass, which runs it again.
///
/// `inputs` must contain every tensor that may require a gradient, including weights; captured tensors get no
/// gradient. `function` is first called without gradients, then with gradients in the backward pass, possibly
/// on another thread.
///
/// # Errors
/// Errors of `function` as text, including those from the backward pass; [`Error::Torch`] if libtorch fails.
pub fn checkpoint<E: std::fmt::Display>(
    inputs: &[Tensor],
    function: impl Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, E> + Send + 'static,
) -> Result<Vec<Tensor>, Error> {
    let function = move |inputs: &[Tensor]| function(inputs).map_err(|error| error.to_string());
    let mut results = ffi::new_tensor_list();
    ffi::checkpoint(Box::new(Computation::new(function)), &list(inputs), results.pin_mut())
        .during("checkpointed computation")?;
    Ok(tensors(&results))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tch::{Device, Kind, Tensor};

    use super::checkpoint;
    use crate::autograd::backward;

    fn leaves() -> [Tensor; 3] {
        [&[5, 4][..], &[3, 4], &[3]]
            .map(|shape| Tensor::randn(shape, (Kind::Double, Device::Cpu)).set_requires_grad(true))
    }

    fn two_results(inputs: &[Tensor]) -> Vec<Tensor> {
        let hidden = inputs[0].linear(&inputs[1], Some(&inputs[2])).tanh();
        vec![hidden.square(), hidden]
    }

    #[test]
    fn results_and_gradients_equal_autograds_and_the_function_runs_twice() {
        let leaves = leaves();
        let loss = |results: &[Tensor]| (&results[0] * 0.3 - &results[1]).square().sum(Kind::Double);
        let plain = two_results(&leaves);
        let expected = Tensor::run_backward(&[loss(&plain)], &leaves, false, false);

        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let found = checkpoint(&leaves, move |inputs| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::fmt::Error>(two_results(inputs))
        })
        .unwrap();
        assert!(found.iter().zip(&plain).all(|(found, plain)| found.equal(plain)));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        backward(&loss(&found)).unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        for (leaf, expected) in leaves.iter().zip(&expected) {
            assert!(leaf.grad().equal(expected));
        }
    }

    #[test]
    fn only_inputs_that_require_a_gradient_get_one() {
        let leaves = leaves();
        let _ = leaves[1].set_requires_grad(false);
        let found = checkpoint(&leaves, |inputs| Ok::<_, std::fmt::Error>(two_results(inputs))).unwrap();
        // The second result is not used.
        backward(&found[0].sum(Kind::Double)).unwrap();
        assert!(leaves[0].grad().defined() && leaves[2].grad().defined() && !leaves[1].grad().defined());
    }

    #[test]
    fn errors_and_panics_come_back_as_text() {
        let error = checkpoint(&leaves(), |_| Err("no such layer")).unwrap_err();
        assert!(error.to_string().contains("no such layer"), "{error}");
        let panics =
            checkpoint(&leaves(), |inputs| Ok::<_, std::fmt::Error>(vec![inputs[0].matmul(&inputs[0])]));
        assert!(panics.unwrap_err().to_string().contains("mat1 and mat2"));
        let leaves = leaves();
        let later = checkpoint(&leaves, |inputs| {
            if tch::Tensor::requires_grad(&(&inputs[0] * 1)) {
                return Err("only in backward");
            }
            Ok(vec![inputs[0].shallow_clone() * 2])
        });
        let error = backward(&later.unwrap()[0].sum(Kind::Double)).unwrap_err();
        assert!(error.to_string().contains("only in backward"), "{error}");
    }
}

//! Rust functions that the C++ side calls.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;

use super::{TensorList, native, tensors};

/// Gives tensors for tensors, and the same bits for the same bits.
type Function = dyn Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, String> + Send;

/// A function that autograd may call again.
pub(crate) struct Computation(Box<Function>);

impl Computation {
    pub(crate) fn new(
        function: impl Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, String> + Send + 'static,
    ) -> Self {
        Self(Box::new(function))
    }

    /// The C++ side's way in. A panic, as tch has for libtorch's exceptions, must not cross it.
    pub(crate) fn run(
        &self,
        inputs: &TensorList,
        mut results: std::pin::Pin<&mut TensorList>,
    ) -> std::result::Result<(), String> {
        let inputs = tensors(inputs);
        let made = catch_unwind(AssertUnwindSafe(|| (self.0)(&inputs)));
        let made = made.unwrap_or_else(|panic| Err(words(panic.as_ref())))?;
        for tensor in &made {
            results.as_mut().push(native(tensor));
        }
        Ok(())
    }
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}

//! Rust functions that the C++ side calls.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;

use super::{TensorList, native, tensors};

/// A deterministic function from tensors to tensors.
type Function = dyn Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, String> + Send;

/// A function that autograd may call repeatedly.
pub(crate) struct Computation(Box<Function>);

impl Computation {
    pub(crate) fn new(
        function: impl Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, String> + Send + 'static,
    ) -> Self {
        Self(Box::new(function))
    }

    /// Called by the C++ side. A panic must not unwind into C++, and tch turns libtorch's exceptions into
    /// panics.
    pub(crate) fn run(
        &self,
        inputs: &TensorList,
        mut results: std::pin::Pin<&mut TensorList>,
    ) -> std::result::Result<(), String> {
        let inputs = tensors(inputs);
        let outputs = catch_unwind(AssertUnwindSafe(|| (self.0)(&inputs)));
        let outputs = outputs.unwrap_or_else(|panic| Err(panic_message(panic.as_ref())))?;
        for tensor in &outputs {
            results.as_mut().push(native(tensor));
        }
        Ok(())
    }
}

/// The message of a panic.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic without a message").to_owned()
}

//! Containment of panics in libraries that parse user input.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, which calls a library that panics on malformed input, and returns the panic as an error. Does
/// not call the process's panic hook.
///
/// # Errors
/// The panic's message.
pub fn panics<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = take_hook();
        set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                hook(info);
            }
        }));
    });
    let outer = CONTAINED.replace(true);
    // Unwind safe: a value whose method panicked is not used again.
    let result = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(outer);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        text.lines().next().unwrap_or_default().chars().take(200).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(panics(|| 3), Ok(3));
        let empty: Vec<u8> = Vec::new();
        assert!(panics(|| empty[0]).unwrap_err().contains("index out of bounds"));
        assert_eq!(panics(|| -> u8 { panic!("a reason\nand more") }), Err("a reason".to_owned()));
        assert!(!CONTAINED.get());
    }
}

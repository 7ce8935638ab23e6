#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| foil_fuzz_targets::fuzz("event", input));

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cmf_tests::targets::converters(input));

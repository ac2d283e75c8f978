#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| eo_mount_fuzz::attached_index(input));

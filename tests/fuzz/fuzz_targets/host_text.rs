//! Fuzzes [`tallybook_decoders::host_text`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tallybook_decoders::host_text::run(bytes));

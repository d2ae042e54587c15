//! Fuzzes [`tallybook_decoders::payload`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tallybook_decoders::payload::run(bytes));

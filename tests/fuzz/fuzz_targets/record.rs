//! Fuzzes [`tallybook_decoders::record`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tallybook_decoders::record::run(bytes));

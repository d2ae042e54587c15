//! Fuzzes [`tallybook_decoders::line`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tallybook_decoders::line::run(bytes));

//! Fuzzes [`tallybook_decoders::journal`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tallybook_decoders::journal::run(bytes));

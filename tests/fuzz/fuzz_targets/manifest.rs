//! Fuzzes [`tallybook_decoders::manifest`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tallybook_decoders::manifest::run(bytes));

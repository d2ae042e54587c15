//! Fuzzes [`tallybook_decoders::store`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tallybook_decoders::store::run(bytes));

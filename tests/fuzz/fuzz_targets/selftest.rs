//! Fuzzes [`tallybook_decoders::selftest`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tallybook_decoders::selftest::run(bytes));

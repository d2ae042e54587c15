//! Fuzzes [`tallybook_decoders::transfer`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tallybook_decoders::transfer::run(bytes));

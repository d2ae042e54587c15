//! Fuzzes [`tallybook_decoders::inventory`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tallybook_decoders::inventory::run(bytes));

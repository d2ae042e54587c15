//! Fuzzes [`tallybook_decoders::receipts`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tallybook_decoders::receipts::run(bytes));

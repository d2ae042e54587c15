//! Fuzzes [`tallybook_decoders::ssh`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tallybook_decoders::ssh::run(bytes));

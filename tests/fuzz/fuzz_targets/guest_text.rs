//! Fuzzes [`tallybook_decoders::guest_text`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tallybook_decoders::guest_text::run(bytes));

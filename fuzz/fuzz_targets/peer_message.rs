#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (quorate::fuzzing::target("peer_message").run)(data);
});

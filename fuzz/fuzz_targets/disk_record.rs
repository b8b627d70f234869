#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (quorate::fuzzing::target("disk_record").run)(data);
});

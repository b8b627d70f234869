//! The files that commands read, as fuzz targets (`crate::fuzzing`).

use std::io::Cursor;
use std::path::PathBuf;

use crate::cli::exercise::look_at_history;
use crate::cli::replay::trace::{Format, Reading, Rows, TraceError, of};

/// How many requests of a trace are taken: rates can stand for any number of them.
const ARRIVALS_MAX: usize = 2_000;

/// A trace of any of the formats, its columns telling which.
pub fn trace(data: &[u8]) -> bool {
    let failed = |source| TraceError::Open { path: PathBuf::new(), source };
    let Ok(rows) = Rows::read(Cursor::new(data.to_vec()), failed) else { return false };
    let usage = ["requests=1", "input_tokens=input", "output_tokens=output/3"];
    let reading = Reading {
        path: PathBuf::new(),
        format: Format::Auto,
        tokens: None,
        usage: usage.iter().map(|rule| rule.parse().expect("a rule")).collect(),
        accounts: 10,
        seed: 1,
        scale: 1.0,
    };
    let Ok(trace) = of(rows, &reading) else { return false };
    let (mut last, mut read) = (0, false);
    for arrival in trace.arrivals.take(ARRIVALS_MAX).map_while(Result::ok) {
        assert!(arrival.at_ms >= last, "time goes back from {last} to {}", arrival.at_ms);
        (last, read) = (arrival.at_ms, true);
    }
    read
}

pub fn trace_seeds() -> Vec<Vec<u8>> {
    [
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
        "timestamp_ms,input_length,output_length\n0,6758,500\n3000,7322,490\n",
        "func,minute,count\nf0,721,2\nf0,722,1\nf1,721,3\n",
        "category,model,client,window_start_s,rate_rps,cv,pattern,param1,param2\nl,m,0,0,5,1,Gamma,1,1\nl,m,7,600,2,1,Weibull,0.8,1\n",
        "at_ms,account,feature,requests,video_seconds\n100,acme:u1,code.task,1,\n90,acme:u2,video.generate,1,8\n",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}

/// What `quorate exercise` wrote, or something else, looked at as a whole.
pub fn history(data: &[u8]) -> bool {
    look_at_history(data)
}

pub fn history_seeds() -> Vec<Vec<u8>> {
    vec![HISTORY.as_bytes().to_vec()]
}

const HISTORY: &str = include_str!("../../fuzz/history.jsonl");

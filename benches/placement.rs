//! Compares the plan's placement with random and round-robin placement: `cargo bench --bench placement`. Everything is
//! simulated; closed forms count the bytes.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up has nothing to report")]

mod lab;

use lab::{JOBS, Lab};
use serde_json::Value;

/// Returns the bytes between ranks in the whole run, and the time after its start.
fn totals(simulation: &Value) -> (f64, f64) {
    let number = |value: &Value| value.as_f64().unwrap();
    let stages = simulation["stages"].as_array().unwrap().iter().zip(simulation["exchanged"].as_array().unwrap());
    let moved = |(stage, exchanged): (&Value, &Value)| {
        // Inputs from files move once. For a stage that runs once, only partial results move besides.
        number(&exchanged["once_bytes"]) + number(&stage["runs"]) * number(&exchanged["each_run_bytes"])
    };
    let bytes: f64 = stages.map(moved).sum();
    (bytes, number(&simulation["makespan_ns"]) - number(&simulation["start_ns"]))
}

fn main() {
    let lab = Lab::new();
    println!("planned over other placements, simulated; 25 iterations, 16 ranks to a node, static and stealing alike");
    println!(
        "{:<20} {:>5} {:>14} {:>12} {:>12} {:>12} {:>12}",
        "job", "ranks", "moved MB", "bytes/rand", "bytes/robin", "time/rand", "time/robin"
    );
    for (job, local) in JOBS {
        for ranks in [4u32, 16, 64] {
            let run = |placement: &str| {
                let nodes = ranks.div_ceil(16).to_string();
                let arguments = ["--ranks", &ranks.to_string(), "--nodes", &nodes, "--iterations", "25"];
                let placed = [arguments.as_slice(), &["--placement", placement]].concat();
                totals(&lab.simulate(job, &placed.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()))
            };
            let (planned, random, robin) = (run("planned"), run("random"), run("round-robin"));
            let ratio = |a: f64, b: f64| if b == 0.0 { "-".to_owned() } else { format!("{:.2}", a / b) };
            println!(
                "{:<20} {ranks:>5} {:>14.3} {:>12} {:>12} {:>12} {:>12}",
                format!("{job}{}", if local { "" } else { " *" }),
                planned.0 / 1e6,
                ratio(planned.0, random.0),
                ratio(planned.0, robin.0),
                ratio(planned.1, random.1),
                ratio(planned.1, robin.1)
            );
        }
    }
    println!("* tasks that read files or nothing in common: there is no locality to keep");
}

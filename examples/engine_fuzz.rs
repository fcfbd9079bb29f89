//! Runs random modules on both tiers and compares them bit for bit:
//! `cargo run --release --example engine_fuzz -- [EXECUTIONS [SEED]]`, by default 100,000 executions from seed 0.
//!
//! An execution is one call of one function on both tiers. The first difference ends the run with status 1 and leaves
//! the module in `engine_fuzz_SEED.wasm` in the working directory. Modules with accesses out of bounds that stop only
//! baseline code are left there too. A seed gives the same modules and calls on every machine, so `engine_fuzz 1 SEED`
//! reproduces a difference.
#![expect(clippy::unwrap_used, reason = "arguments of a developer's tool")]

use std::time::Instant;

// The included file says `crate::engine`; this import makes that the library's module.
use exuvia::{engine, tensor};

#[path = "../src/engine/differential_tests.rs"]
mod differential;

/// The number of calls of one module. Compiling it takes far longer than a call.
const CALLS: u32 = 400;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().unwrap());
    let (executions, first) = (arguments.next().unwrap_or(100_000), arguments.next().unwrap_or(0));
    let (started, mut tally) = (Instant::now(), differential::Tally::default());
    let mut seed = first;
    while tally.executions < executions {
        let compared = std::panic::catch_unwind(|| {
            let mut tally = tally;
            differential::compare(seed, CALLS, &mut tally).map(|()| tally)
        });
        let compared = compared.unwrap_or_else(|_| Err(format!("seed {seed}: a compiler panics")));
        let file = format!("engine_fuzz_{seed}.wasm");
        let dropped = compared.as_ref().map_or(0, |new| new.dropped - tally.dropped);
        if compared.is_err() || dropped > 0 {
            std::fs::write(&file, differential::module(seed).0).unwrap();
        }
        if dropped > 0 {
            println!("seed {seed}: optimized code went on {dropped} times; the module is in {file}");
        }
        if let Err(difference) = compared.map(|new| tally = new) {
            println!("{difference}; the module is in {file}\n{tally:?}");
            std::process::exit(1);
        }
        seed += 1;
        if (seed - first).is_multiple_of(100) {
            println!("seed {seed}, {:.0} s: {tally:?}", started.elapsed().as_secs_f64());
        }
    }
    println!("seeds {first} to {} in {:.0} s: {tally:?}", seed - 1, started.elapsed().as_secs_f64());
}

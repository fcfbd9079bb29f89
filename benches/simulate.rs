//! Compares simulation with reality: `cargo bench --bench simulate`, or with `-- --small` on the small inputs of
//! `jobs/`.
//!
//! Each job runs on 1, 2 and 4 ranks on one core, and on 2 ranks on all cores. The simulator learns from these runs. It
//! then predicts runs on up to 16 ranks, which share the cores of this machine. The same runs are measured,
//! interleaved, with medians. The comparison uses the time inside stages, since the start of MPI is not simulated. On
//! the small inputs most jobs take less time than that start, and the system's scheduler decides the outcome.

mod lab;

use lab::{JOBS, Lab, in_stages, median, simulated_in_stages};

const ROUNDS: usize = 3;
const RANKS: [u32; 5] = [2, 3, 4, 8, 16];

/// The numbers of ranks that the simulator learns from. The flag says whether they have one core or all.
const LEARNED: [(u32, bool); 4] = [(1, true), (2, true), (4, true), (2, false)];

/// The measured times on each number of ranks, one for each measurement.
struct Measured {
    job: String,
    likes: Vec<String>,
    stealing: Vec<Vec<f64>>,
    fixed: Vec<Vec<f64>>,
}

fn main() {
    let lab = Lab::new();
    let small = std::env::args().any(|argument| argument == "--small");
    println!("{} cores; time inside stages in ms, medians of {ROUNDS}; predicted / measured", lab.cores);
    let mut all: Vec<Measured> = Vec::new();
    for (job, _) in &JOBS {
        let job = if small { (*job).to_owned() } else { lab.large(job) };
        // Fills the cache.
        lab.run(&job, 1, false, &["--tier", "optimized"], "warm.json");
        all.push(Measured {
            job,
            likes: Vec::new(),
            stealing: vec![Vec::new(); RANKS.len()],
            fixed: vec![Vec::new(); RANKS.len()],
        });
    }
    for round in 0..ROUNDS {
        for ((name, _), measured) in JOBS.iter().zip(&mut all) {
            let job = measured.job.as_str();
            for (ranks, pinned) in LEARNED {
                let name = format!("{name}-{ranks}-{pinned}-{round}.json");
                lab.run(job, ranks, pinned, &["--no-steal"], &name);
                let cores = if pinned { 1 } else { lab.cores };
                measured.likes.push(format!("{}@{cores}", lab.path(&name).display()));
            }
            for (number, ranks) in RANKS.into_iter().enumerate() {
                measured.stealing[number].push(in_stages(&lab.run(job, ranks, false, &[], "run.json")));
                if *name == "unbalanced" {
                    let report = lab.run(job, ranks, false, &["--no-steal"], "run.json");
                    measured.fixed[number].push(in_stages(&report));
                }
            }
        }
    }
    let mut errors = vec![Vec::new(); RANKS.len()];
    println!("{:<20} {}", "job", RANKS.map(|ranks| format!("{ranks:>16} ranks")).join(""));
    for ((name, _), measured) in JOBS.iter().zip(&all) {
        let predict = |ranks: u32, policy: &str| {
            let mut arguments: Vec<String> = vec!["--nodes".into(), "1".into(), "--ranks".into(), ranks.to_string()];
            arguments.extend(["--machine".into(), lab.path("machine.toml").display().to_string()]);
            arguments.extend(["--policy".into(), policy.into()]);
            measured.likes.iter().for_each(|like| arguments.extend(["--like".into(), like.clone()]));
            simulated_in_stages(&lab.simulate(&measured.job, &arguments))
        };
        let mut line = format!("{name:<20} ");
        for (number, ranks) in RANKS.into_iter().enumerate() {
            let (predicted, real) = (predict(ranks, "steal"), median(measured.stealing[number].clone()));
            let error = predicted / real - 1.0;
            errors[number].push(error.abs());
            let text = format!("{:.1} / {:.1} {:+.0} %", predicted / 1e6, real / 1e6, 100.0 * error);
            line.push_str(&format!("{text:>22}"));
        }
        println!("{line}");
        if !measured.fixed[0].is_empty() {
            for (number, ranks) in RANKS.into_iter().enumerate() {
                let fixed = [predict(ranks, "static"), median(measured.fixed[number].clone())];
                let stealing = [predict(ranks, "steal"), median(measured.stealing[number].clone())];
                let ratio = [0, 1].map(|at| fixed[at] / stealing[at]);
                // If the slowest run of the faster policy is slower than the fastest run of the other, neither policy
                // is faster.
                let overlap = overlap(&measured.fixed[number], &measured.stealing[number]);
                let ranking = match (ratio[0] > 1.0) == (ratio[1] > 1.0) {
                    true => "same ranking",
                    false if overlap => "not told apart by the runs",
                    false => "other ranking",
                };
                println!(
                    "  {ranks:>2} ranks, static over stealing: simulated {:.2}, measured {:.2}: {ranking}",
                    ratio[0], ratio[1]
                );
            }
        }
    }
    let medians = errors.iter().map(|errors| format!("{:>20.1} %", 100.0 * median(errors.clone())));
    println!("{:<20} {}", "median error", medians.collect::<String>());
    println!("median error of all {:.1} %", 100.0 * median(errors.concat()));
}

/// Whether two sets of times overlap: neither set has all the shorter times.
fn overlap(these: &[f64], those: &[f64]) -> bool {
    let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    least(these) <= most(those) && least(those) <= most(these)
}

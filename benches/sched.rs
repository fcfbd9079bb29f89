//! Measures the cost of handing out a task: `cargo bench --bench sched`.
//!
//! The first part drives the scheduler alone in a loop without clock or threads. It reports the nanoseconds per local
//! decision: a worker ends a task, becomes idle, and receives its next task. Blocks come and go meanwhile. The second
//! part makes whole runs of `exuvia run` on one rank with one worker, a kernel that does nothing, and one slice per
//! task. It reports the tasks per second of the stage, with all that a task needs (its views, its fences, the call).
//! Criterion is not used: loops of a million decisions need no statistics but a median. The last part measures the
//! planner: the time for plans of 100,000 ranks.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up has nothing to report")]

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use exuvia::cli::kernel_build;
use exuvia::job::Job;
use exuvia::plan::{self, Layout, Machine};
use exuvia::report::Report;
use exuvia::sched::{Action, CostClass, Costs, Event, Granularity, Message, Path as Way, Question, Scheduler, Team};
use exuvia::tensor::{Dtype, Shape};

const ROUNDS: usize = 7;
const DECISIONS: u64 = 1_000_000;
const CLASS: CostClass = CostClass(1);
const TASKS: u64 = 1_000_000;

/// A stage to plan.
struct Stage {
    what: &'static str,
    compute: &'static str,
    /// The names and extents of the inputs.
    inputs: &'static [(&'static str, &'static [u64])],
}

const PLANS: [Stage; 2] = [
    Stage { what: "a map of 10^9 elements", compute: "x[i,j,k] -> y[i,j,k]", inputs: &[("x", &[1000, 1000, 1000])] },
    Stage {
        what: "a product, n = 2^20",
        compute: "x[i,k], b[k,j] -> y[i,j]",
        inputs: &[("x", &[1 << 20; 2]), ("b", &[1 << 20; 2])],
    },
];
const TARGET_PLAN_S: f64 = 1.0;

const TARGET_DECISION_NS: f64 = 2_000.0;
const TARGET_TASKS_PER_S: f64 = 200_000.0;

/// A scheduler and its surroundings.
struct Case {
    what: &'static str,
    workers: usize,
    /// The number of blocks in memory at a time; the next field is the number of slices of each.
    in_flight: u64,
    slices: u64,
    ranks: u32,
    /// The number of decisions between two requests of a thief; 0 means that no rank steals.
    theft_every: u64,
}

const CASES: [Case; 5] = [
    Case { what: "alone, 1 worker", workers: 1, in_flight: 3, slices: 1000, ranks: 1, theft_every: 0 },
    Case { what: "alone, 64 workers", workers: 64, in_flight: 66, slices: 1000, ranks: 1, theft_every: 0 },
    Case { what: "10,000 blocks in memory", workers: 64, in_flight: 10_000, slices: 10, ranks: 1, theft_every: 0 },
    Case { what: "team of 1024, nobody asks", workers: 4, in_flight: 6, slices: 1000, ranks: 1024, theft_every: 0 },
    Case { what: "team of 1024, every 100th", workers: 4, in_flight: 6, slices: 1000, ranks: 1024, theft_every: 100 },
];

/// Returns the nanoseconds per decision.
fn decide(case: &Case) -> f64 {
    let blocks = DECISIONS.div_ceil(case.slices);
    let mut scheduler = Scheduler::new(blocks, case.in_flight, case.workers, Granularity::Fixed(1));
    if case.ranks > 1 {
        let way = Way { latency_ns: 2_000, ns_per_byte: 0.5 };
        let costs = Costs { node: way, network: way, unfetched_block_bytes: 8_000, fetched_block_bytes: 8_000 };
        scheduler = scheduler.in_team(Team::new(0, case.ranks, 0..16, 0..256)).stealing(costs);
    }
    let (mut now_ns, mut decisions, mut attempt, mut complete) = (0, 0, 0, false);
    let mut pending: VecDeque<Action> = scheduler.begin(now_ns).into();
    let started = Instant::now();
    for worker in 0..case.workers {
        pending.extend(scheduler.on(now_ns, Event::Idle { worker, class: CLASS }));
    }
    while let Some(action) = pending.pop_front() {
        let event = match action {
            Action::Fetch { block } => Event::Fetched { block, slices: case.slices },
            Action::Write { block } => Event::Written { block },
            Action::Start { worker, span } => {
                (now_ns, decisions) = (now_ns + 1_000, decisions + 1);
                pending.extend(scheduler.on(now_ns, Event::Finished { span, elapsed_ns: 20_000, class: CLASS }));
                if case.theft_every > 0 && decisions % case.theft_every == 0 {
                    attempt += 1;
                    let from = 1 + (decisions % u64::from(case.ranks - 1)) as u32;
                    let question = Question { attempt, ns_per_slice: 20_000, busy_ns: 0, wait_ns: 0, free_blocks: 4 };
                    let message = Message::Steal(question);
                    pending.extend(scheduler.on(now_ns, Event::Message { from, message }));
                }
                Event::Idle { worker, class: CLASS }
            }
            // Thieves answer at once and correctly.
            Action::Send { to, message: Message::Grant { attempt, pieces, .. } } => {
                for piece in pieces {
                    let message = Message::Returned { attempt, piece, ns_per_slice: 20_000 };
                    pending.extend(scheduler.on(now_ns, Event::Message { from: to, message }));
                }
                continue;
            }
            Action::Complete => {
                complete = true;
                continue;
            }
            _ => continue,
        };
        pending.extend(scheduler.on(now_ns, event));
    }
    assert!(complete, "{} does not end", case.what);
    started.elapsed().as_nanos() as f64 / decisions as f64
}

/// Returns the number of empty tasks per second on one rank.
fn empty_tasks(folder: &Path) -> f64 {
    let record = folder.join("report.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_exuvia"));
    command.arg("run").arg(folder.join("empty.toml")).args(["--threads", "1", "--tier", "optimized"]);
    command.args(["--task-slices", "1", "--cache-dir"]).arg(folder.join("cache")).arg("--report").arg(&record);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Report = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    assert_eq!(report.totals().tasks(), TASKS);
    TASKS as f64 * 1e9 / report.stages[0].wall_ns as f64
}

fn prepare(folder: &Path) {
    let text = "(module (memory 1) (func (export \"empty\") (param i32 i32) (result i32) i32.const 0))";
    fs::write(folder.join("empty.wat"), text).unwrap();
    kernel_build::build(&folder.join("empty.wat"), &folder.join("empty.wasm"), &[]).unwrap();
    let text = format!(
        "[tensors.v]\ncreate = \"out.h5\"\ndataset = \"v\"\ndtype = \"u8\"\n\
         [[stages]]\nkernel = \"empty.wasm\"\ncompute = \"-> v[x]\"\nsizes = {{ x = {TASKS} }}\n"
    );
    fs::write(folder.join("empty.toml"), text).unwrap();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// Returns the seconds for a plan of 100,000 ranks.
fn plan_s(Stage { compute, inputs, .. }: &Stage) -> f64 {
    let tensors: String =
        inputs.iter().map(|(name, _)| format!("{name} = {{ file = \"x.h5\", dataset = \"{name}\" }}\n")).collect();
    let text = format!(
        "[tensors]\n{tensors}y = {{ create = \"y.h5\", dataset = \"y\", dtype = \"f32\" }}\n\
         [[stages]]\nkernel = \"k.wasm\"\ncompute = \"{compute}\"\n"
    );
    let job = Job::parse(&text, Path::new("job.toml")).unwrap();
    let layout =
        |extents: &[u64]| Layout { dtype: Dtype::F32, shape: Shape::new(extents.to_vec()).unwrap(), chunk: None };
    let layouts = inputs.iter().map(|(name, extents)| ((*name).to_owned(), layout(extents))).collect();
    let machine = Machine { ranks: 100_000, ranks_per_node: 64, threads: 1, memory_bytes: 2 << 40 };
    let started = Instant::now();
    plan::plan(&job, &layouts, &machine).unwrap();
    started.elapsed().as_secs_f64()
}

fn main() {
    println!("medians of {ROUNDS}; target: a local decision <= {TARGET_DECISION_NS} ns, thefts included");
    for case in &CASES {
        let ns = median((0..ROUNDS).map(|_| decide(case)).collect());
        println!("{:<28} {ns:>8.0} ns/decision   {}", case.what, verdict(ns <= TARGET_DECISION_NS));
    }
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    // The first run fills the cache.
    empty_tasks(folder.path());
    let per_s = median((0..ROUNDS).map(|_| empty_tasks(folder.path())).collect());
    println!("\n{TASKS} empty tasks on one rank with one worker; target >= {TARGET_TASKS_PER_S} tasks/s");
    println!(
        "{:<28} {per_s:>8.0} tasks/s, {:.0} ns a task   {}",
        "exuvia run",
        1e9 / per_s,
        verdict(per_s >= TARGET_TASKS_PER_S)
    );
    println!("\nplans of 100,000 ranks; target <= {TARGET_PLAN_S} s");
    for stage in &PLANS {
        let s = median((0..ROUNDS).map(|_| plan_s(stage)).collect());
        println!("{:<28} {s:>8.2} s   {}", stage.what, verdict(s <= TARGET_PLAN_S));
    }
}

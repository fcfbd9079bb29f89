//! `exuvia simulate`.

pub mod measured_runs;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use crate::cli::open_job::open;
use crate::cli::output::{Output, fail, print_json};
use crate::cli::simulate::measured_runs::MeasuredRuns;
use crate::exec::ExitCode;
use crate::job::Job;
use crate::plan::{self, Plan};
use crate::sched::Granularity;
use crate::simulate::{self, MachineModel, MovedBytes, Placement, Policy, Simulation, SimulationSetup};
use crate::text;

/// The default number of ranks per node.
const RANKS_PER_NODE: u32 = 64;

/// Arguments of `exuvia simulate`.
#[derive(Debug, Args)]
pub(super) struct SimulateArguments {
    /// Job file
    job: PathBuf,
    /// Number of ranks
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    ranks: u32,
    /// Number of nodes [default: one for every 64 ranks]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    nodes: Option<u32>,
    /// Worker threads per rank
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
    /// TOML file that describes the machine, see docs/simulate.md [default: the machine described there]
    #[arg(long)]
    machine: Option<PathBuf>,
    /// Slow rank, such as 2=4 for rank 2 at a quarter of the speed
    #[arg(long, value_name = "RANK=FACTOR", value_parser = slow)]
    slow: Vec<(u32, f64)>,
    /// Spread of the costs between the shards of the ranks [default: the machine's shard_spread]
    #[arg(long)]
    spread: Option<f64>,
    /// Scheduling policy
    #[arg(long, value_enum, default_value_t)]
    policy: PolicyName,
    /// Report of a run of the job, from which the costs of its stages are taken; may be repeated
    #[arg(long, value_name = "REPORT[@CORES]", value_parser = measured_runs::report)]
    like: Vec<(PathBuf, Option<u32>)>,
    /// Number of iterations [default: that of the reports, or the job's maximum]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    iterations: Option<u64>,
    /// Placement of blocks on ranks
    #[arg(long, value_enum, default_value_t)]
    placement: PlacementName,
    /// Number of slices per task [default: chosen by the scheduler]
    #[arg(long, hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    task_slices: Option<u64>,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum PolicyName {
    /// Ranks without work steal
    #[default]
    Steal,
    /// Each rank computes the blocks that it owns
    Static,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum PlacementName {
    /// As planned
    #[default]
    Planned,
    /// Random, different in every run of a stage
    Random,
    /// Round-robin
    RoundRobin,
}

fn slow(text: &str) -> Result<(u32, f64), String> {
    let parsed = || {
        let (rank, factor) = text.split_once('=')?;
        let factor = f64::from_str(factor).ok().filter(|factor| (1e-3..=1e6).contains(factor))?;
        Some((u32::from_str(rank).ok()?, factor))
    };
    parsed().ok_or_else(|| "expected a rank and a factor such as 2=4: rank 2 takes 4 times as long".to_owned())
}

pub(super) fn simulate(arguments: &SimulateArguments) -> ExitCode {
    try_simulate(arguments).unwrap_or_else(|code| code)
}

fn try_simulate(arguments: &SimulateArguments) -> Result<ExitCode, ExitCode> {
    let machine = machine(arguments)?;
    if let Some((rank, _)) = arguments.slow.iter().find(|(rank, _)| *rank >= arguments.ranks) {
        eprintln!("error: --slow names rank {rank}, but there are {}", text::count(u64::from(arguments.ranks), "rank"));
        return Err(ExitCode::Usage);
    }
    let (job, layouts) = open(&arguments.job)?;
    let nodes = arguments.nodes.unwrap_or(arguments.ranks.div_ceil(RANKS_PER_NODE));
    let planned = plan::Machine {
        ranks: arguments.ranks,
        ranks_per_node: arguments.ranks.div_ceil(nodes),
        threads: arguments.threads,
        memory_bytes: job.memory_bytes.unwrap_or(machine.memory_bytes),
    };
    let plan = plan::plan(&job, &layouts, &planned).map_err(|error| fail(&error, ExitCode::Usage, None))?;
    let mut setup = setup(arguments, machine);
    let mut count = arguments.iterations;
    if !arguments.like.is_empty() {
        let measured = measured_runs::read(&arguments.like, &job, &layouts, planned.memory_bytes)
            .map_err(|error| fail(AsRef::<dyn std::error::Error>::as_ref(&error), ExitCode::Usage, None))?;
        calibrate(&mut setup, &measured, &job, arguments.spread);
        count = count.or(measured.iterations);
    }
    setup.iterations = measured_runs::iterations(&job, count);
    let simulation = simulate::simulate(&plan, &setup);
    let moved = simulate::moved(&plan, &setup);
    match arguments.output {
        Output::Human => print_stages(&plan, &setup, &simulation, &moved),
        Output::Json => print_simulation(&plan, &setup, &simulation, &moved),
    }
    Ok(ExitCode::Done)
}

fn setup(arguments: &SimulateArguments, machine: MachineModel) -> SimulationSetup {
    SimulationSetup {
        machine,
        policy: match arguments.policy {
            PolicyName::Steal => Policy::Steal,
            PolicyName::Static => Policy::Static,
        },
        granularity: arguments.task_slices.map_or(Granularity::Adaptive, Granularity::Fixed),
        placement: match arguments.placement {
            PlacementName::Planned => Placement::Planned,
            PlacementName::Random => Placement::Random,
            PlacementName::RoundRobin => Placement::RoundRobin,
        },
        slow: arguments.slow.clone(),
        seed: arguments.seed,
        ..SimulationSetup::default()
    }
}

/// Sets the costs to those of measured runs. These include all spread but the requested one.
fn calibrate(setup: &mut SimulationSetup, measured: &MeasuredRuns, job: &Job, spread: Option<f64>) {
    let machine = &mut setup.machine;
    machine.rank_spread = 0.0;
    machine.shard_spread = spread.unwrap_or(0.0);
    machine.block_spread = 0.0;
    machine.slice_spread = 0.0;
    machine.start_ns = measured.start_ns;
    machine.optimize_ns = machine.optimize_ns.max(measured.optimize_ns);
    setup.iterations = measured_runs::iterations(job, measured.iterations);
    setup.costs = simulate::calibrate(&measured.runs, setup);
}

fn print_simulation(plan: &Plan, setup: &SimulationSetup, simulation: &Simulation, moved: &[MovedBytes]) {
    print_json(&serde_json::json!({
        "schema": 1,
        "job": plan.job_name,
        "ranks": plan.machine.ranks,
        "nodes": plan.machine.ranks.div_ceil(plan.machine.ranks_per_node),
        "threads_per_rank": plan.machine.threads,
        "policy": setup.policy,
        "placement": setup.placement,
        "iterations": setup.iterations.as_ref().map(|iterations| iterations.count),
        "seed": setup.seed,
        "machine": setup.machine,
        "start_ns": simulation.start_ns,
        "makespan_ns": simulation.makespan_ns,
        "optimized_at_ns": simulation.optimized_at_ns,
        "stages": simulation.stages,
        "exchanged": moved,
    }));
}

fn machine(arguments: &SimulateArguments) -> Result<MachineModel, ExitCode> {
    let mut machine = MachineModel::default();
    if let Some(path) = &arguments.machine {
        let text = std::fs::read_to_string(path).map_err(|error| {
            eprintln!("error: cannot read {}", path.display());
            eprintln!("caused by: {error}");
            ExitCode::Usage
        })?;
        machine = toml::from_str(&text).map_err(|error| {
            eprintln!("error: {} is not a machine file", path.display());
            eprintln!("caused by: {}", text::lines(&error.to_string()));
            ExitCode::Usage
        })?;
    }
    machine.shard_spread = arguments.spread.unwrap_or(machine.shard_spread);
    machine.check().map_err(|error| fail(&error, ExitCode::Usage, None))?;
    Ok(machine)
}

fn print_stages(plan: &Plan, setup: &SimulationSetup, simulation: &Simulation, moved: &[MovedBytes]) {
    let machine = &plan.machine;
    let nodes = machine.ranks.div_ceil(machine.ranks_per_node);
    let ranks = format!("{} ranks of {} threads on {nodes} nodes", machine.ranks, machine.threads);
    println!("simulated, not measured: {} on {ranks}, seed {}", plan.job_name, setup.seed);
    let seconds = |ns: u64| format!("{:.3} s", ns as f64 / 1e9);
    let size = |bytes: u64| bytesize::ByteSize(bytes).to_string();
    let start = seconds(simulation.start_ns);
    println!("makespan {}, including {start} before the first stage", seconds(simulation.makespan_ns));
    if let Some(at_ns) = simulation.optimized_at_ns {
        println!("optimized code available {} later", seconds(at_ns));
    }
    for (times, moved) in simulation.stages.iter().zip(moved) {
        let (percent, share) = (100.0 * times.efficiency, 100.0 * times.between_nodes);
        println!();
        match times.runs {
            1 => println!("stage {}", times.stage),
            runs => println!("stage {}, {runs} runs", times.stage),
        }
        println!("  makespan    {}", seconds(times.makespan_ns));
        println!("  ideal       {}, efficiency {percent:.1} %", seconds(times.ideal_ns));
        println!("  work        {} blocks, {} slices, {} tasks", times.blocks, times.slices, times.tasks);
        println!(
            "  steals      {} requests, {} grants, {} slices",
            times.steal_requests, times.steal_grants, times.slices_stolen
        );
        println!(
            "  moved       {} within nodes, {} between",
            size(times.moved_on_node_bytes),
            size(times.moved_between_nodes_bytes)
        );
        let (once, each) = (size(moved.once_bytes), size(moved.each_run_bytes));
        println!("  of these    {once} for inputs from files, {each} for others and for results in each run");
        println!("  elsewhere   {share:.2} % of {} computed on another node", size(times.data_bytes));
    }
}

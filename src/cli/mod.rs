//! The command line: one file per verb. Standard output is the result, standard error everything else.
//!
//! Refuses to do: anything but parsing, printing and exit statuses. The only user of clap.

mod bench;
mod cancel;
mod doctor;
mod estimate;
mod hosts;
mod inspect;
mod jobs;
pub mod kernel_build;
mod launch;
mod like;
mod logs;
mod plan;
mod progress;
mod quiet;
mod report;
mod run;
mod screen;
mod simulate;
mod status;
mod submission;
mod submit;
mod told;
mod top;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::exec::ExitCode;

/// Tensor jobs on MPI ranks, computed by portable WebAssembly kernels.
#[derive(Debug, Parser)]
#[command(name = "exuvia", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a job: alone on one rank, on as many as --ranks says, or on every rank that mpirun or srun starts
    Run(run::RunArguments),
    /// Show what a run would do, without running
    Plan(plan::PlanArguments),
    /// Show what a run would take on a machine that is not at hand
    Simulate(simulate::SimulateArguments),
    /// Run a job again and again on more ranks, more data or shorter tasks, and show how it scales
    #[command(subcommand)]
    Bench(bench::BenchVerb),
    /// Check a job and hand it to Slurm
    Submit(submit::SubmitArguments),
    /// Say how submitted jobs are getting on
    Status(status::StatusArguments),
    /// Take submitted jobs back, or end them
    Cancel(cancel::CancelArguments),
    /// Print the log of a submitted job
    Logs(logs::LogsArguments),
    /// Watch running jobs: ranks, tiers, queues, throughput, bytes, memory
    Top(top::TopArguments),
    /// Make one page with charts of the record of a run
    Report(report::ReportArguments),
    /// Describe a kernel module, or an HDF5 file or dataset
    Inspect(inspect::InspectArguments),
    /// Build kernels
    #[command(subcommand)]
    Kernel(KernelVerb),
    /// Check that this machine has what runs need
    Doctor(doctor::DoctorArguments),
    /// The optimizing compiler's process, started by `run`
    #[command(name = crate::engine::HELPER_VERB, hide = true)]
    CompileKernel,
}

#[derive(Debug, Subcommand)]
enum KernelVerb {
    /// Compile C, C++, Rust or WAT to a kernel module, with the flags that make it fast
    Build {
        /// Source file (.c, .cc, .cpp, .rs or .wat)
        source: PathBuf,
        /// Module to write
        #[arg(short, long)]
        out: PathBuf,
        /// More arguments for the compiler
        #[arg(last = true)]
        extra: Vec<String>,
    },
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Human,
    /// One JSON value on standard output
    Json,
}

/// Runs the program; returns its exit status.
pub fn main() -> i32 {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; clap knows where each goes.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::Usage as i32 } else { ExitCode::Done as i32 };
        }
    };
    log_to_stderr();
    crate::store::contain_crashes(told::ending());
    let code = match arguments.verb {
        Verb::Run(arguments) => run::run(&arguments),
        Verb::Plan(arguments) => plan::plan(&arguments),
        Verb::Simulate(arguments) => simulate::simulate(&arguments),
        Verb::Bench(verb) => bench::bench(&verb),
        Verb::Submit(arguments) => submit::submit(&arguments),
        Verb::Status(arguments) => status::status(&arguments),
        Verb::Cancel(arguments) => cancel::cancel(&arguments),
        Verb::Logs(arguments) => logs::logs(&arguments),
        Verb::Top(arguments) => top::top(&arguments),
        Verb::Report(arguments) => report::report(&arguments),
        Verb::Inspect(arguments) => inspect::inspect(&arguments),
        Verb::Kernel(KernelVerb::Build { source, out, extra }) => build(&source, &out, &extra),
        Verb::Doctor(arguments) => doctor::doctor(&arguments),
        Verb::CompileKernel => {
            return i32::from(crate::engine::compile_helper_main() != std::process::ExitCode::SUCCESS);
        }
    };
    code as i32
}

fn build(source: &std::path::Path, out: &std::path::Path, extra: &[String]) -> ExitCode {
    match kernel_build::build(source, out, extra) {
        Ok(()) => ExitCode::Done,
        Err(error) => fail(&error, ExitCode::Failed, None),
    }
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("EXUVIA_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let colour = std::env::var_os("NO_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    let _ = subscriber.without_time().with_target(false).try_init();
}

/// Prints an error with its causes and a way out, once.
fn fail(error: &dyn std::error::Error, code: ExitCode, help: Option<&str>) -> ExitCode {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        eprintln!("caused by: {inner}");
        cause = inner.source();
    }
    if let Some(help) = help {
        eprintln!("help: {help}");
    }
    code
}

/// Prints why Slurm did not do what it was asked to do.
fn slurm_failed(error: crate::slurm::SlurmError) -> ExitCode {
    let code = if error.is_environment() { ExitCode::Environment } else { ExitCode::Failed };
    fail(&error, code, error.help())
}

/// Prints a JSON value as the command's one result.
fn print_json(value: &impl serde::Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("error: the result cannot be written as JSON: {error}"),
    }
}

//! The command line: one file per verb. Standard output is the result, standard error everything else.
//!
//! Refuses to do: anything but parsing, printing and exit statuses. The only user of clap.

mod bench;
mod cancel;
mod check;
mod doctor;
mod inspect;
mod job_selector;
pub mod kernel_build;
mod kernel_call;
mod logs;
mod plan;
mod report;
pub(crate) mod run;
mod simulate;
mod status;
mod submit;
mod top;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Parser, Subcommand, ValueEnum};
use signal_hook::consts::SIGXFSZ;

use crate::exec::{ExitCode, render};
use crate::text;

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
    /// Try a job's kernels on samples of its data, cut in odd ways, and show what they do wrong
    Check(check::CheckArguments),
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
    /// Build kernels, and call them
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
    /// Call a kernel once on given data, without a job file
    Call(kernel_call::CallArguments),
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
    crate::store::contain_crashes(crate::launch::status_files::ending(), crate::store::CALL_LIMIT);
    survive_full_files();
    let code = match arguments.verb {
        Verb::Run(arguments) => run::run(&arguments),
        Verb::Plan(arguments) => plan::plan(&arguments),
        Verb::Check(arguments) => check::check(&arguments),
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
        Verb::Kernel(KernelVerb::Call(arguments)) => kernel_call::call(&arguments),
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
        Err(kernel_build::BuildError::Text { source_file, message }) => {
            // It shows the place, on several lines.
            eprintln!("error: {}: {}", text::line(&source_file.display().to_string()), text::lines(&message));
            ExitCode::Failed
        }
        Err(error) => fail(&error, ExitCode::Failed, None),
    }
}

/// Standard error for log lines: each write is one, and harmless, whatever names it has.
struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let mut line = text::line(text.trim_end_matches('\n'));
        line.push('\n');
        std::io::stderr().write_all(line.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// A write beyond the limit of a file's size then fails, and is told, where it would end the process without a word.
fn survive_full_files() {
    // A handler, since what is ignored would be ignored by the programs started from here too.
    if let Err(error) = signal_hook::flag::register(SIGXFSZ, Arc::default()) {
        tracing::warn!("SIGXFSZ cannot be caught: {error}");
    }
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("EXUVIA_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Log).with_ansi(false);
    let _ = subscriber.without_time().with_target(false).try_init();
}

/// Prints an error with its causes and a way out, once.
pub(crate) fn fail(error: &(dyn std::error::Error + 'static), code: ExitCode, help: Option<&str>) -> ExitCode {
    eprintln!("{}", render(error, help));
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

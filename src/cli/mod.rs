//! The command line: one module per command. Results go to standard output, everything else to standard error.
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
mod open_job;
mod output;
mod plan;
mod report;
mod run;
mod simulate;
mod status;
mod submit;
mod top;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use signal_hook::consts::SIGXFSZ;

use crate::cli::output::fail;
use crate::exec::ExitCode;
use crate::text;

/// Runs tensor jobs on MPI ranks with portable WebAssembly kernels
#[derive(Debug, Parser)]
#[command(name = "exuvia", version, about, max_term_width = 100)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a job: on one rank, on --ranks ranks, or on all ranks that mpirun or srun starts
    Run(run::arguments::RunArguments),
    /// Show how a job would be divided among ranks, without running it
    Plan(plan::PlanArguments),
    /// Test a job's kernels on samples of its data and report errors
    Check(check::CheckArguments),
    /// Predict run time on another machine
    Simulate(simulate::SimulateArguments),
    /// Measure how a job scales with ranks, data and task length
    #[command(subcommand)]
    Bench(bench::BenchVerb),
    /// Check a job and submit it to Slurm
    Submit(submit::arguments::SubmitArguments),
    /// List submitted jobs and their states
    Status(status::StatusArguments),
    /// Cancel queued or running jobs
    Cancel(cancel::CancelArguments),
    /// Print the log of a submitted job
    Logs(logs::LogsArguments),
    /// Monitor running jobs: ranks, tiers, queues, throughput, transfers, memory
    Top(top::TopArguments),
    /// Create an HTML page with charts from the report of a run
    Report(report::ReportArguments),
    /// Describe a kernel module, an HDF5 file or a dataset
    Inspect(inspect::InspectArguments),
    /// Build a kernel, or call one
    #[command(subcommand)]
    Kernel(KernelVerb),
    /// Check the installation and the limits of this machine
    Doctor(doctor::DoctorArguments),
    /// Run the optimizing compiler (started by `run`)
    #[command(name = crate::engine::HELPER_VERB, hide = true)]
    CompileKernel,
}

#[derive(Debug, Subcommand)]
enum KernelVerb {
    /// Compile C, C++, Rust or WAT to a kernel module, with flags for fast code
    Build {
        /// Source file (.c, .cc, .cpp, .rs or .wat)
        source: PathBuf,
        /// Kernel module to write
        #[arg(short, long)]
        out: PathBuf,
        /// Additional arguments for the compiler
        #[arg(last = true)]
        extra: Vec<String>,
    },
    /// Call a kernel once on given data, without a job file
    Call(kernel_call::CallArguments),
}

/// Runs the program; returns its exit status.
pub fn main() -> i32 {
    let arguments = match CommandLine::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are not errors; clap prints each to the right stream.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::Usage as i32 } else { ExitCode::Done as i32 };
        }
    };
    log_to_stderr();
    crate::store::contain_crashes(crate::launch::status_files::exit_file(), crate::store::CALL_LIMIT);
    catch_file_size_signal();
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
            // The message shows the place in the source, on several lines.
            eprintln!("error: {}: {}", text::line(&source_file.display().to_string()), text::lines(&message));
            ExitCode::Failed
        }
        Err(error) => fail(&error, ExitCode::Failed, None),
    }
}

/// Standard error for log messages: each write is one harmless line.
struct LogWriter;

impl Write for LogWriter {
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

/// Makes a write beyond the limit of a file's size fail with an error: by default, the signal ends the process
/// silently.
fn catch_file_size_signal() {
    // A handler, since child processes inherit an ignored signal.
    if let Err(error) = signal_hook::flag::register(SIGXFSZ, Arc::default()) {
        tracing::warn!("cannot catch SIGXFSZ: {error}");
    }
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("EXUVIA_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| LogWriter).with_ansi(false);
    let _ = subscriber.without_time().with_target(false).try_init();
}

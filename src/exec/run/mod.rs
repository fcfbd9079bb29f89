//! A whole run on one rank.

mod execute;
mod prepare;
mod publish;
pub mod startup;
mod state;
mod trace_collection;

use std::path::Path;

use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::shrink::ShrinkOutcome;
use crate::exec::comm::shutdown::FailureOutput;
use crate::exec::comm::signal::Signal;
use crate::exec::error::{ExitCode, RunError, RunFailure};
use crate::exec::options::Options;
use crate::exec::recovery::staging::Stagings;
use crate::exec::run::execute::execute;
use crate::exec::run::prepare::Prepared;
use crate::exec::run::publish::finish;
use crate::exec::run::state::{RunState, format_failed_ranks};
use crate::exec::trace::recorder::TraceEventKind;
use crate::fabric::Fabric;
use crate::report::Report;

/// Runs the job at `path` as one rank of `fabric`. The rank that is rank 0 in the end returns the report of the whole
/// run. It passes the report to `conclude` before the ranks leave: MPI may not return from that, and the process then
/// exits with the code of `conclude`. If the run fails, all other ranks have been told when this returns.
pub fn run(
    fabric: Box<dyn Fabric>,
    path: &Path,
    options: &Options,
    signal: Signal,
    conclude: impl FnOnce(&Report) -> ExitCode,
) -> Result<Option<Report>, RunFailure> {
    let mut comm = Communicator::new(fabric, signal);
    let mut state = RunState::new();
    loop {
        let mut stagings = Stagings::default();
        let shrunk = match run_rank(&mut comm, path, options, &mut state, &mut stagings) {
            Ok(report) => {
                state.progress.end();
                finalize(comm, report.as_ref().map_or(ExitCode::Done, conclude));
                return Ok(report);
            }
            Err(error) => comm.shrink(error),
        };
        match shrunk {
            Ok(ShrinkOutcome::Over) => {
                state.progress.end();
                finalize(comm, ExitCode::Done);
                return Ok(None);
            }
            Ok(ShrinkOutcome::Without(failed)) => {
                stagings.suspend();
                state.record_failed(&failed);
                failed.iter().for_each(|failed| comm.tracer.mark(|| TraceEventKind::Died { rank: failed.rank }));
                if comm.rank() == 0 {
                    options.notify(&[format_failed_ranks(&failed, comm.size(), &comm.hostnames())]);
                }
            }
            Err(error) => {
                state.progress.end();
                comm.await_others();
                let note = stagings.abandon().then_some("completed work is kept: run the same command again to resume");
                return Err(comm.fail(&error, FailureOutput { note, print_error: options.print_error }));
            }
        }
    }
}

/// Leaves MPI. The outputs are published by then, so an error changes no result.
fn finalize(comm: Communicator, code: ExitCode) {
    if let Err(error) = comm.finalize(code) {
        tracing::warn!("leaving MPI: {error}");
    }
}

/// Runs the job once, until it is done, fails, or has to shrink.
fn run_rank(
    comm: &mut Communicator,
    path: &Path,
    options: &Options,
    state: &mut RunState,
    stagings: &mut Stagings,
) -> Result<Option<Report>, RunError> {
    let prepared = Prepared::new(comm, path, options, state)?;
    prepared.open_manifest(comm, options, state, stagings)?;
    execute(comm, options, &prepared, state, stagings)?;
    finish(comm, options, &prepared, state, stagings)
}

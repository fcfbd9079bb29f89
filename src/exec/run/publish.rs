//! The end of a run: its outputs are published, and rank 0 joins the report.

use std::path::PathBuf;

use crate::encode::encode;
use crate::exec::comm::communicator::Communicator;
use crate::exec::dataset::outputs::publish;
use crate::exec::error::RunError;
use crate::exec::kernels::cost_history;
use crate::exec::options::Options;
use crate::exec::recovery::staging::Stagings;
use crate::exec::run::prepare::Prepared;
use crate::exec::run::state::RunState;
use crate::exec::run::trace_collection;
use crate::exec::trace::recorder::TraceEventKind;
use crate::plan::Machine;
use crate::report::{Environment, OutputReport, RankReport, Report, Trace};
use crate::store;
use crate::topology::Topology;

/// Publishes the outputs, and returns the report of the run on rank 0. Collective.
pub(super) fn finish(
    comm: &mut Communicator,
    options: &Options,
    prepared: &Prepared,
    state: &mut RunState,
    stagings: &mut Stagings,
) -> Result<Option<Report>, RunError> {
    let encoded_reports = comm.gather(encode(&state.report)?)?;
    let Some(encoded_reports) = encoded_reports else {
        // No rank leaves before the outputs are in place: a rank that fails now must still be heard.
        comm.leave()?;
        collect_trace(comm, prepared, state);
        return Ok(None);
    };
    let outputs = publish_outputs(comm, options, prepared, stagings)?;
    let mut ranks = Vec::new();
    for (rank, bytes) in (0..).zip(&encoded_reports) {
        let report: RankReport =
            serde_json::from_slice(bytes).map_err(|_| RunError::Protocol { rank, what: "its report" })?;
        ranks.push(report);
    }
    if let Some(cache) = &prepared.cache {
        cost_history::save(cache, &prepared.loaded.kernels, &ranks);
    }
    let hash = blake3::Hash::from_bytes(prepared.plan.hash()).to_hex().to_string();
    let environment = environment(&prepared.topology, &prepared.machine, options);
    let wall_ns = state.process_start.elapsed().as_nanos() as u64;
    let mut report = Report::join(prepared.job.name.clone(), hash, environment, wall_ns, ranks);
    report.outputs = outputs;
    if let Some(resumed) = state.resumed {
        report.resumed_bytes = resumed.bytes;
        report.resumed_tasks = resumed.tasks;
    }
    report.trace = collect_trace(comm, prepared, state);
    Ok(Some(report))
}

/// Puts the outputs in place, and lets the other ranks know.
fn publish_outputs(
    comm: &mut Communicator,
    options: &Options,
    prepared: &Prepared,
    stagings: &mut Stagings,
) -> Result<Vec<OutputReport>, RunError> {
    options.notify(&stagings.notes);
    let started = comm.tracer.begin();
    let targets: Vec<PathBuf> = stagings.files.keys().cloned().collect();
    prepared.setup.sources.check(&targets)?;
    let (outputs, notes) = publish(&prepared.job, &prepared.plan, stagings)?;
    options.notify(&notes);
    comm.tracer.end(started, || TraceEventKind::Part("publish"));
    comm.leave()?;
    stagings.manifest.conclude();
    Ok(outputs)
}

fn collect_trace(comm: &mut Communicator, prepared: &Prepared, state: &mut RunState) -> Option<Trace> {
    let incarnations = std::mem::take(&mut state.incarnations);
    trace_collection::collect(comm, incarnations, &prepared.topology, state.process_start)
}

fn environment(topology: &Topology, machine: &Machine, options: &Options) -> Environment {
    let mut cpus: Vec<String> = topology.hosts().iter().map(|host| host.cpu.name.clone()).collect();
    cpus.sort();
    cpus.dedup();
    let libraries = [
        ("mpi".to_owned(), crate::fabric::library()),
        ("hdf5".to_owned(), store::library_version()),
        ("compilers".to_owned(), crate::engine::COMPILER.to_owned()),
    ];
    Environment {
        exuvia: env!("CARGO_PKG_VERSION").to_owned(),
        libraries: libraries.into(),
        ranks: topology.size(),
        nodes: topology.node_count(),
        threads_per_rank: machine.threads,
        cpus,
        tier_policy: options.tier.name().to_owned(),
    }
}

//! `exuvia doctor`.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use crate::cli::output::{Output, print_json};
use crate::engine::{self, Cache, Cpu, Engine, Kernel, Pipeline};
use crate::exec::ExitCode;
use crate::text;
use crate::text::Limit;
use crate::topology::Launcher;
use crate::{fabric, store, topology};

/// Arguments of `exuvia doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// Cache of optimized code, as for `run`
    #[arg(long)]
    cache_dir: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Diagnosis {
    what: &'static str,
    ok: bool,
    found: String,
    /// Advice, if the check fails.
    help: Option<&'static str>,
}

pub(super) fn doctor(arguments: &DoctorArguments) -> ExitCode {
    let checks = [mpi(), hdf5(), compilers(), cache(arguments), threads(), shared_memory(), limits()];
    match arguments.output {
        Output::Json => print_json(&serde_json::json!({ "schema": 1, "checks": checks })),
        Output::Human => {
            for check in &checks {
                println!("{} {:<14} {}", if check.ok { "ok  " } else { "FAIL" }, check.what, check.found);
                if let Some(help) = check.help.filter(|_| !check.ok) {
                    println!("     {:<14} help: {help}", "");
                }
            }
        }
    }
    if checks.iter().all(|check| check.ok) { ExitCode::Done } else { ExitCode::Environment }
}

fn mpi() -> Diagnosis {
    let library = fabric::library();
    let (ok, launcher) = match topology::launcher() {
        Launcher::None => (true, "no launcher: `run` starts one rank".to_owned()),
        Launcher::Mpi { name, size_hint, .. } => {
            let size = size_hint.map_or("an unknown number of".to_owned(), |size| size.to_string());
            (true, format!("started by {name} with {size} ranks"))
        }
    };
    let help = Some("start ranks with the mpirun of the MPI library that exuvia is linked with");
    Diagnosis { what: "MPI", ok, found: format!("{library}, {launcher}"), help }
}

fn hdf5() -> Diagnosis {
    let version = store::library_version();
    let ok = !version.starts_with("1.8.");
    Diagnosis { what: "HDF5", ok, found: version, help: Some("install HDF5 1.10.7 or later") }
}

/// Compiles a small loop on both tiers. The optimizing pipeline reports an error if wasmer did not call it.
fn compilers() -> Diagnosis {
    const LOOP: &str = r#"(module (memory 1) (func (export "k") (param i32 i32) (result i32) (local i32)
        (loop (i32.store (i32.shl (local.get 2) (i32.const 2)) (i32.mul (local.get 2) (local.get 1)))
            (br_if 0 (i32.lt_u (local.tee 2 (i32.add (local.get 2) (i32.const 1))) (i32.const 1024))))
        i32.const 0))"#;
    let cpu = Cpu::host();
    let check = || -> Result<(), String> {
        let bytes = wat::parse_str(LOOP).map_err(|e| e.to_string())?;
        let kernel = Kernel::from_bytes("check", &bytes, None).map_err(|e| e.to_string())?;
        let engine = Engine::new(cpu.clone(), Pipeline::Full);
        engine.start_code(&kernel).map_err(|e| e.to_string())?;
        let artifact = engine::optimize(&kernel, &cpu, Pipeline::Full).map_err(|e| e.to_string())?;
        engine.load_artifact(&kernel, &artifact).map_err(|e| e.to_string())?;
        Ok(())
    };
    let result = check();
    let ok = result.is_ok();
    let found = match result {
        Ok(()) => format!("{}, full pipeline for {}", engine::COMPILER, cpu.name),
        Err(message) => message,
    };
    Diagnosis { what: "compilers", ok, found, help: Some("reinstall LLVM 15 (llvm-15-dev) and build exuvia again") }
}

fn cache(arguments: &DoctorArguments) -> Diagnosis {
    let help = Some("set EXUVIA_CACHE_DIR or --cache-dir to a directory that you own, with mode 700");
    match Cache::open(arguments.cache_dir.as_deref()) {
        Ok(cache) => {
            let mut found = cache.directory().display().to_string();
            for left in engine::orphaned_helpers(&cache) {
                let seconds = left.since.elapsed().unwrap_or_default().as_secs();
                let (kernel, process) = (text::name(&left.kernel), left.process);
                found += &format!("; process {process} still optimizes {kernel} for later runs, since {seconds} s");
            }
            Diagnosis { what: "cache", ok: true, found, help }
        }
        Err(error) => Diagnosis { what: "cache", ok: false, found: error.to_string(), help },
    }
}

fn threads() -> Diagnosis {
    let host = topology::host();
    let found = format!("{} CPUs for this process ({})", host.cpus_allowed.len(), host.cpu.name);
    let help = Some("let the launcher bind each rank to more cores (mpirun --bind-to none)");
    Diagnosis { what: "threads", ok: !host.cpus_allowed.is_empty(), found, help }
}

/// The limits that the system sets on a process.
fn limits() -> Diagnosis {
    // The needs of small runs. Kernels reserve much more address space than memory.
    let least: [(Limit, u64, &'static str); 4] = [
        (Limit::address_space(), 64 << 30, "raise `ulimit -v` to unlimited: kernels reserve address space, not memory"),
        (Limit::file_size(), 1 << 30, "raise `ulimit -f`: outputs and checkpoints do not fit"),
        (Limit::open_files(), 256, "raise `ulimit -n`: launchers and jobs with many files need more"),
        (Limit::processes(), 256, "raise `ulimit -u`: all threads of all ranks count"),
    ];
    let low = least.into_iter().find(|(limit, least, _)| limit.now.is_some_and(|now| now < *least));
    let found = Limit::all().map(|limit| limit.format()).join(", ");
    Diagnosis { what: "limits", ok: low.is_none(), found, help: low.map(|(_, _, help)| help) }
}

/// Ranks of a node exchange messages through /dev/shm.
fn shared_memory() -> Diagnosis {
    const NEEDED_BYTES: u64 = 64 << 20;
    let help = Some("mount a larger tmpfs on /dev/shm (containers: --shm-size)");
    match rustix::fs::statvfs("/dev/shm") {
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let found = format!("{} free in /dev/shm", ByteSize(free));
            Diagnosis { what: "shared memory", ok: free >= NEEDED_BYTES, found, help }
        }
        Err(error) => Diagnosis { what: "shared memory", ok: false, found: format!("/dev/shm: {error}"), help },
    }
}

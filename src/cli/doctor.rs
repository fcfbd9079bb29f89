use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use super::{Output, print_json};
use crate::engine::{self, Cache, Cpu, Engine, Kernel, Pipeline};
use crate::exec::ExitCode;
use crate::text;
use crate::text::Limit;
use crate::topology::Launcher;
use crate::{fabric, store, topology};

/// Arguments of `exuvia doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// Where optimized code is kept, as for `run`
    #[arg(long)]
    cache_dir: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    ok: bool,
    found: String,
    /// What to do, when it is not as it should be.
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

fn mpi() -> Check {
    let library = fabric::library();
    let (ok, launcher) = match topology::launcher() {
        Launcher::None => (true, "not under a launcher: `run` uses one rank".to_owned()),
        Launcher::Mpi { name, size_hint, .. } => {
            let size = size_hint.map_or("an unknown number of".to_owned(), |size| size.to_string());
            (true, format!("started by {name} with {size} rank(s)"))
        }
    };
    let help = Some("start ranks with the mpirun of the MPI that exuvia was built with");
    Check { what: "MPI", ok, found: format!("{library}, {launcher}"), help }
}

fn hdf5() -> Check {
    let version = store::library_version();
    let ok = !version.starts_with("1.8.");
    Check { what: "HDF5", ok, found: version, help: Some("HDF5 1.10.7 or later is needed") }
}

/// Compiles a small loop on both tiers: the optimizing pipeline reports an error if wasmer did not call it.
fn compilers() -> Check {
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
        Ok(()) => format!("{}, full pipeline active for {}", engine::COMPILER, cpu.name),
        Err(message) => message,
    };
    Check { what: "compilers", ok, found, help: Some("reinstall LLVM 15 (llvm-15-dev) and build exuvia again") }
}

fn cache(arguments: &DoctorArguments) -> Check {
    let help = Some("point EXUVIA_CACHE_DIR or --cache-dir to a directory of your own with mode 700");
    match Cache::open(arguments.cache_dir.as_deref()) {
        Ok(cache) => {
            let mut found = cache.directory().display().to_string();
            for left in engine::orphaned_helpers(&cache) {
                let seconds = left.since.elapsed().unwrap_or_default().as_secs();
                let (kernel, process) = (text::name(&left.kernel), left.process);
                found += &format!("; process {process} has optimized {kernel} for later runs for {seconds} s");
            }
            Check { what: "cache", ok: true, found, help }
        }
        Err(error) => Check { what: "cache", ok: false, found: error.to_string(), help },
    }
}

fn threads() -> Check {
    let host = topology::host();
    let found = format!("{} CPUs for this process ({})", host.cpus_allowed.len(), host.cpu.name);
    let help = Some("let the launcher bind ranks to more cores (mpirun --bind-to none)");
    Check { what: "threads", ok: !host.cpus_allowed.is_empty(), found, help }
}

/// Those that the system sets to a process.
fn limits() -> Check {
    // What small runs need; a limit of the address space is met by the memories that kernels reserve.
    let least: [(Limit, u64, &'static str); 4] = [
        (
            Limit::address_space(),
            64 << 30,
            "raise `ulimit -v`, best to unlimited: kernels reserve addresses, not memory",
        ),
        (Limit::file_size(), 1 << 30, "raise `ulimit -f`: outputs and checkpoints do not fit"),
        (Limit::open_files(), 256, "raise `ulimit -n`: launchers and ranks of many files need more"),
        (Limit::processes(), 256, "raise `ulimit -u`: ranks and their threads are counted"),
    ];
    let low = least.into_iter().find(|(limit, least, _)| limit.now.is_some_and(|now| now < *least));
    let found = Limit::all().map(|limit| limit.in_words()).join(", ");
    Check { what: "limits", ok: low.is_none(), found, help: low.map(|(_, _, help)| help) }
}

/// MPI moves messages between ranks of a node through it.
fn shared_memory() -> Check {
    const NEEDED_BYTES: u64 = 64 << 20;
    let help = Some("mount a larger tmpfs on /dev/shm (containers: --shm-size)");
    match rustix::fs::statvfs("/dev/shm") {
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let found = format!("{} free in /dev/shm", ByteSize(free));
            Check { what: "shared memory", ok: free >= NEEDED_BYTES, found, help }
        }
        Err(error) => Check { what: "shared memory", ok: false, found: format!("/dev/shm: {error}"), help },
    }
}

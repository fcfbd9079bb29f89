//! Exuvia: tensor jobs on MPI ranks, computed by portable WebAssembly kernels.
//!
//! A rank starts a kernel at once on baseline code and sheds that code for optimized code while the job runs.
//! `ARCHITECTURE.md` tells which module may use which, and the invariants that hold between them.
//!
//! The program runs a job with [`exec::run`] on the ranks that a launcher started. A single rank needs no launcher:
//!
//! ```
//! use exuvia::exec::{ExitCode, Options, Signal};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! // A kernel that writes 1 to its output, a scalar of i32.
//! let kernel = r#"(module (memory 1) (func (export "one") (param i32 i32) (result i32)
//!     (i32.store (i32.load (local.get 0)) (i32.const 1)) (i32.const 0)))"#;
//! std::fs::write(folder.path().join("one.wasm"), wat::parse_str(kernel)?)?;
//! let job = "[tensors.x]\ncreate = \"out.h5\"\ndataset = \"x\"\ndtype = \"i32\"\n\
//!            [[stages]]\nkernel = \"one.wasm\"\ncompute = \"-> x[]\"\n";
//! std::fs::write(folder.path().join("job.toml"), job)?;
//!
//! let options = Options { cache_dir: Some(folder.path().join("cache")), ..Options::default() };
//! let (rank, job) = (exuvia::fabric::solo(), folder.path().join("job.toml"));
//! let report = exuvia::exec::run(rank, &job, &options, Signal::default(), |_| ExitCode::Done);
//! let report = report.expect("the run succeeds").expect("rank 0 has the report");
//! assert_eq!(report.outputs[0].dataset, "x");
//! # Ok(())
//! # }
//! ```

pub mod check;
pub mod cli;
pub mod encode;
pub mod engine;
pub mod exec;
pub mod fabric;
pub mod job;
pub mod launch;
pub mod live;
pub mod manifest;
pub mod placement;
pub mod plan;
pub mod regular_file;
pub mod report;
pub mod sched;
pub mod simulate;
pub mod slurm;
pub mod store;
pub mod sweep;
pub mod tensor;
pub mod text;
pub mod topology;

//! Compiles, caches, calls and swaps kernels; the only user of wasmer and LLVM.
//!
//! A [`Kernel`] is a validated WebAssembly module. An [`Engine`] turns it into [`Code`] of a tier: baseline code at
//! once, optimized code from an artifact that [`optimize`] made, here or in another process or on another rank. An
//! [`Instance`] runs it, one per worker thread, and changes its code between two calls without losing its memory.
//!
//! This module has no scheduling, no MPI, and no files but its cache. A kernel imports nothing, so it can access only
//! its own memory. Invariant: both tiers give the same bits, NaNs included, for every accepted module.

mod arena;
mod artifact;
mod background_compile;
mod cache;
mod code;
mod compile_helper;
mod error;
mod first_page;
mod frames;
mod host_window;
mod inspect;
mod instance;
mod kernel;
mod llvm_functions;
mod location;
mod memory;
mod module_restrictions;
mod module_rewrite;
mod nan_canonicalization;
mod operand;
mod orphans;
mod pipeline;
mod probestack;
mod shared_memory;
mod start_function;
mod tier;
mod unwritten_outputs;
mod volatile_accesses;

pub use arena::TilePlacement;
pub use artifact::{ArtifactFingerprint, COMPILER, Pipeline};
pub use background_compile::{BackgroundCompile, CompileJob, CompileLimits, HELPER_VERB};
pub use cache::Cache;
pub use code::{Code, Engine, optimize, start_artifact};
pub use compile_helper::{OPTIMIZING_NS_PER_BYTE, compile_helper_main};
pub use error::{EngineError, KernelFault};
pub use first_page::mark_first_page;
pub use inspect::{Inspection, inspect};
pub use instance::Instance;
pub use kernel::{Kernel, MODULE_BYTES};
pub use operand::{Access, OperandSpec, View};
pub use orphans::{OrphanedHelper, list as orphaned_helpers};
pub use pipeline::Cpu;
pub use shared_memory::{Mapped, SharedBytes, SharedName};
pub use start_function::StartFunction;
pub use tier::Tier;

#[cfg(test)]
mod differential_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod spec_tests;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use super::start_function::StartFunction;

/// Why a module cannot be compiled, loaded or started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    #[error("cannot read kernel {}", file.display())]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{name} is not a WebAssembly module (it does not begin with \\0asm); build it with `exuvia kernel build`")]
    NotWasm { name: String },
    #[error("there is no kernel {}; {found}", file.display())]
    NoFile { file: PathBuf, found: String },
    #[error("{name} is not a valid kernel module: {message} ({place})")]
    Invalid { name: String, message: String, place: String },
    #[error(
        "{name} imports {imports}, but a kernel imports nothing; build it freestanding (`exuvia kernel build`), and \
         remove everything that needs a host (printing, files, clocks)"
    )]
    Imports { name: String, imports: String },
    #[error("{name} uses {what}, which kernels may not use: {advice}")]
    Refused { name: String, what: String, advice: &'static str },
    #[error("{name} has no memory, so it cannot receive tensors")]
    NoMemory { name: String },
    #[error("{name} exports no function '{export}' that takes (i32, i32) and returns i32; {found}")]
    NoExport { name: String, export: String, found: String },
    #[error("{name} exports {count} kernels ({kernels}); choose one with `export = \"...\"`")]
    AmbiguousExport { name: String, count: usize, kernels: String },
    #[error("{name}: {what} lies outside the module's memory of {memory_bytes} bytes")]
    DataOutOfBounds { name: String, what: String, memory_bytes: u64 },
    #[error(
        "{name} needs {needed_bytes} bytes of memory ({what}), but its limit is {limit_bytes} bytes; raise `limits = {{ memory = \"...\" }}`"
    )]
    MemoryLimit { name: String, needed_bytes: u64, what: String, limit_bytes: u64 },
    #[error("{compiler} cannot compile {name}: {message}")]
    Compile { name: String, compiler: &'static str, message: String },
    #[error("the compile helper {} failed on {name}: {message}", helper.display())]
    Helper { name: String, helper: PathBuf, message: String },
    #[error("compiled code of {name} cannot be used: {message}")]
    Artifact { name: String, message: String },
    #[error("the {function} of {name} failed")]
    Start { name: String, function: StartFunction, source: Box<KernelFault> },
    #[error("{name} cannot be started: {message}")]
    Instantiate { name: String, message: String },
    #[error("the cache directory {directory} cannot be used: {message}")]
    Cache { directory: PathBuf, message: String },
}

/// The fault of a kernel in one call. Its instance cannot be used again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelFault {
    #[error("the kernel trapped: {message}")]
    Trap { message: String },
    #[error(
        "the kernel touched memory it was not given (outside its tile and its own memory, an input \
         or a null pointer); `exuvia check` says more"
    )]
    OutOfBounds,
    #[error("the kernel ran out of stack (endless recursion, or frames larger than {stack_bytes} bytes in all)")]
    StackOverflow { stack_bytes: usize },
    #[error("the kernel returned status {0}")]
    Status(i32),
    #[error(
        "the kernel wrote outside operand {operand} of its tile, at byte {offset_bytes} of the {bytes} that it was given; \
         `exuvia check` says more"
    )]
    WroteOutside { operand: usize, bytes: u64, offset_bytes: i64 },
    #[error(
        "the kernel wanted {wanted_bytes} bytes of memory and its limit is {limit_bytes} ({outcome}); raise \
         `limits = {{ memory = \"...\" }}` of its stage"
    )]
    MemoryLimit { wanted_bytes: u64, limit_bytes: u64, outcome: String },
    #[error("the kernel did not write element {element} of operand {operand} of its tile; `exuvia check` says more")]
    Unwritten { operand: usize, element: usize },
    #[error("the instance failed before and cannot run again")]
    Unusable,
}

//! `exuvia kernel build`: compiles source to a kernel module, with flags for fast code on both tiers.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::engine::{EngineError, Kernel, mark_first_page};
use crate::store::real_path;

/// The header of the kernel interface, which sources in any folder include as `exuvia.h`.
const HEADER: &str = include_str!("../../examples/kernels/exuvia.h");

/// Why a kernel cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    #[error("cannot build a kernel from {}: expected .c, .cc, .cpp, .rs or .wat", source_file.display())]
    UnknownKind { source_file: PathBuf },
    #[error("cannot read {}", source_file.display())]
    Read { source_file: PathBuf, source: std::io::Error },
    #[error("cannot find {compiler}; install {packages}, or set {variable} to its path")]
    NoCompiler { compiler: &'static str, packages: &'static str, variable: &'static str },
    #[error("{compiler} failed on {} (its messages are above)", source_file.display())]
    Compiler { compiler: String, source_file: PathBuf },
    #[error("cannot start {compiler}; set {variable} to another compiler")]
    Start { compiler: String, variable: &'static str, source: std::io::Error },
    #[error("{}: {message}", source_file.display())]
    Text { source_file: PathBuf, message: String },
    #[error("the module built from {} cannot run", source_file.display())]
    Invalid { source_file: PathBuf, source: Box<EngineError> },
    #[error("cannot write {}", out.display())]
    Write { out: PathBuf, source: std::io::Error },
}

/// Compiles `source` to the module `out`; `extra` are additional arguments of the compiler.
pub fn build(source: &Path, out: &Path, extra: &[String]) -> Result<(), BuildError> {
    std::fs::metadata(source).map_err(|e| BuildError::Read { source_file: source.to_owned(), source: e })?;
    let write = |e| BuildError::Write { out: out.to_owned(), source: e };
    // A link is kept, and its target replaced.
    let target = real_path(out).map_err(write)?;
    if std::fs::metadata(&target).is_ok_and(|there| !there.is_file()) {
        return Err(write(std::io::Error::other("it exists and is not a regular file")));
    }
    let folder = target.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).map_err(write)?;
    // A failed build keeps an earlier module.
    let work = tempfile::Builder::new().prefix(".kernel-").tempdir_in(folder).map_err(write)?;
    let built = work.path().join("kernel.wasm");
    let kind = source.extension().and_then(|e| e.to_str());
    match kind {
        Some("c" | "cc" | "cpp") => {
            std::fs::File::create(work.path().join("exuvia.h"))
                .and_then(|mut file| file.write_all(HEADER.as_bytes()))
                .map_err(write)?;
            let object = work.path().join("kernel.o");
            let (compile, link) = clang(source, &object, &built, work.path(), extra)?;
            run(compile, "EXUVIA_CLANG", source)?;
            run(link, "EXUVIA_CLANG", source)?;
        }
        Some("rs") => run(rustc(source, &built, extra)?, "EXUVIA_RUSTC", source)?,
        Some("wat") => {
            let text = |message: String| BuildError::Text { source_file: source.to_owned(), message };
            let bytes = wat::parse_file(source).map_err(|e| text(e.to_string()))?;
            std::fs::write(&built, bytes).map_err(write)?;
        }
        _ => return Err(BuildError::UnknownKind { source_file: source.to_owned() }),
    }
    let mut module = std::fs::read(&built).map_err(write)?;
    let name = source.file_name().unwrap_or_default().to_string_lossy();
    Kernel::check_module(&name, &module)
        .map_err(|error| BuildError::Invalid { source_file: source.to_owned(), source: Box::new(error) })?;
    // WAT sources, and options that set the layout, place data themselves.
    let is_own = ["stack-first", "global-base"].iter().any(|word| extra.iter().any(|arg| arg.contains(word)));
    if kind != Some("wat") && !is_own && mark_first_page(&mut module) {
        std::fs::write(&built, module).map_err(write)?;
    }
    std::fs::rename(&built, &target).map_err(write)
}

fn run(mut command: Command, variable: &'static str, source: &Path) -> Result<(), BuildError> {
    let compiler = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(BuildError::Compiler { compiler, source_file: source.to_owned() }),
        Err(source) => Err(BuildError::Start { compiler, variable, source }),
    }
}

/// Returns the newest clang and its version.
pub fn find_clang() -> Result<(String, u32), BuildError> {
    let version = |program: &str| -> Option<u32> {
        let output = Command::new(program).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split("clang version ").nth(1)?.split('.').next()?.parse().ok()
    };
    if let Some(named) = std::env::var("EXUVIA_CLANG").ok().filter(|name| !name.is_empty()) {
        let version = version(&named).unwrap_or(0);
        return Ok((named, version));
    }
    let numbered = (16..=30).rev().map(|number| format!("clang-{number}"));
    let found = numbered.chain(["clang".to_owned()]).find_map(|name| version(&name).map(|v| (name, v)));
    found.filter(|(_, version)| *version >= 16).ok_or(BuildError::NoCompiler {
        compiler: "clang 16 or later",
        packages: "clang and lld",
        variable: "EXUVIA_CLANG",
    })
}

/// The commands that compile and link. When one call does both, clang runs the `wasm-opt` in PATH, and an old one
/// breaks modules. (`--no-wasm-opt` does not help: clang 16 does not know it, and clang 19 then skips the linker and
/// reports success.)
fn clang(
    source: &Path,
    object: &Path,
    out: &Path,
    include: &Path,
    extra: &[String],
) -> Result<(Command, Command), BuildError> {
    let (program, _) = find_clang()?;
    let base = || {
        let mut command = Command::new(&program);
        // A kernel imports nothing: there is no libc. `extra` goes to both calls, and each ignores a part of it.
        command.args(["--target=wasm32-unknown-unknown", "-nostdlib", "-Wno-unused-command-line-argument"]);
        command
    };
    let mut compile = base();
    compile.arg("-ffreestanding");
    // The host vectorizes to its own width, and code that is already vectorized or unrolled for 128 bits prevents that.
    compile.args(["-O2", "-fno-vectorize", "-fno-slp-vectorize", "-fno-unroll-loops"]);
    // Loop strength reduction creates address arithmetic that wraps. The host then cannot prove that loops are safe to
    // vectorize, and the code is up to four times slower.
    compile.args(["-mllvm", "-disable-lsr"]);
    // A conversion from float to integer that may trap prevents vectorization. Bulk memory turns copies and fills of
    // structures into instructions, where clang before 20 would call a memcpy that does not exist.
    compile.args(["-mnontrapping-fptoint", "-mbulk-memory"]);
    compile.arg("-I").arg(include).args(extra).arg("-c").arg(source).arg("-o").arg(object);
    let mut link = base();
    // The stack lies below all data, so that an overflow traps and overwrites nothing (the default of new linkers). Its
    // size is the usual 64 KiB plus the first page, which is inaccessible, so that null pointers trap too.
    link.args(["-Wl,--no-entry", "-Wl,--strip-all", "-Wl,--stack-first", "-Wl,-z,stack-size=69632"]);
    // -O0 comes after `extra`: without optimization, clang does not run `wasm-opt`.
    link.args(extra).arg("-O0").arg(object).arg("-o").arg(out);
    Ok((compile, link))
}

/// Returns the first rustc that can compile for wasm32.
fn find_rustc() -> Result<String, BuildError> {
    let named = std::env::var("EXUVIA_RUSTC").ok().filter(|name| !name.is_empty());
    let candidates = match named {
        Some(name) => vec![name],
        // Both Debian's compiler and that of rustup may have the target, and either may come first in PATH.
        None => ["rustc", "/usr/bin/rustc"].map(str::to_owned).to_vec(),
    };
    let has_target = |program: &String| {
        let output = Command::new(program).args(["--print", "target-libdir", RUST_TARGET]).output();
        output.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
    };
    candidates.into_iter().find(has_target).ok_or(BuildError::NoCompiler {
        compiler: "rustc for wasm32-unknown-unknown",
        packages: "rustc, lld-14 and libstd-rust-dev-wasm32 (or run `rustup target add wasm32-unknown-unknown`)",
        variable: "EXUVIA_RUSTC",
    })
}

const RUST_TARGET: &str = "--target=wasm32-unknown-unknown";

fn rustc(source: &Path, out: &Path, extra: &[String]) -> Result<Command, BuildError> {
    let mut command = Command::new(find_rustc()?);
    command.args([RUST_TARGET, "--crate-type=cdylib", "--edition=2021"]);
    command.args(["-C", "opt-level=2", "-C", "panic=abort", "-C", "strip=symbols"]);
    // The same flags as for clang.
    command.args(["-C", "no-vectorize-loops", "-C", "no-vectorize-slp", "-C", "llvm-args=-disable-lsr"]);
    command.args(["-C", "target-feature=+nontrapping-fptoint,+bulk-memory"]);
    command.args(extra).arg(source).arg("-o").arg(out);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_build_keeps_the_old_module() {
        let folder = tempfile::tempdir().unwrap();
        let (source, out) = (folder.path().join("k.c"), folder.path().join("sub/k.wasm"));
        let text = "#include \"exuvia.h\"\nEXUVIA_EXPORT(k) int32_t k(const exuvia_view *v, uint32_t n)\n\
                    { return v[0].rank == n; }\n";
        std::fs::write(&source, text).unwrap();
        build(&source, &out, &[]).unwrap();
        let module = std::fs::read(&out).unwrap();
        let found = crate::engine::inspect(&module).unwrap();
        assert_eq!((found.kernels.as_slice(), found.obstacles.len()), (&["k".to_owned()][..], 0));
        std::fs::write(&source, "no C at all").unwrap();
        assert!(matches!(build(&source, &out, &[]), Err(BuildError::Compiler { .. })));
        assert_eq!(std::fs::read(&out).unwrap(), module);
        let wat = folder.path().join("k.wat");
        std::fs::write(&wat, "(module").unwrap();
        assert!(build(&wat, &out, &[]).unwrap_err().to_string().contains("k.wat"));
        std::fs::write(&wat, "(module (func $f (result i32) f32.const 1))").unwrap();
        let error = build(&wat, &out, &[]).unwrap_err();
        let place = std::error::Error::source(&error).unwrap().to_string();
        assert!(place.contains("type mismatch") && place.contains("function 0 $f"), "{error}: {place}");
        assert_eq!(std::fs::read(&out).unwrap(), module);
        std::fs::write(&wat, "(module)").unwrap();
        build(&wat, &out, &[]).unwrap();
        let names: Vec<_> = std::fs::read_dir(out.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "temporary files are removed");
        assert!(build(Path::new("k.f90"), &out, &[]).is_err());
    }

    #[test]
    fn structure_copies_and_compiler_options_add_no_imports() {
        let folder = tempfile::tempdir().unwrap();
        let (source, out) = (folder.path().join("k.cc"), folder.path().join("k.wasm"));
        let text = "#include \"exuvia.h\"\nstruct Big { exuvia_view views[9]; };\nstatic Big kept;\n\
                    EXUVIA_EXPORT(k) int32_t k(const exuvia_view *v, uint32_t n)\n\
                    { kept = *(const Big *)v; Big zero = {}; kept.views[n] = zero.views[STATUS];\n\
                    return exuvia_is(v, EXUVIA_F32, n); }\n";
        std::fs::write(&source, text).unwrap();
        let extra = ["-O3", "-DSTATUS=2", "-Wl,-z,stack-size=131072"].map(str::to_owned);
        build(&source, &out, &extra).unwrap();
        let found = crate::engine::inspect(&std::fs::read(&out).unwrap()).unwrap();
        assert_eq!((found.kernels.as_slice(), found.imports.len()), (&["k".to_owned()][..], 0));
    }

    #[test]
    fn the_error_names_a_missing_compiler() {
        let missing = Command::new("no-such-compiler");
        let error = run(missing, "EXUVIA_RUSTC", Path::new("k.rs")).unwrap_err();
        assert!(error.to_string().contains("no-such-compiler") && error.to_string().contains("EXUVIA_RUSTC"));
    }
}

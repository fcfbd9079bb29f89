use std::path::Path;
use std::sync::Arc;

use wasmparser::{ExternalKind, Parser, Payload, Validator};

use super::module_restrictions::{FEATURES, baseline_obstacle, refusal};
use crate::engine::error::EngineError;
use crate::{regular_file, text};

/// Most bytes of a module.
pub const MODULE_BYTES: u64 = 256 << 20;

/// A validated module and the kernel in it that a stage runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Kernel(Arc<KernelModule>);

#[derive(Debug)]
struct KernelModule {
    name: String,
    bytes: Vec<u8>,
    hash: String,
    export: String,
    baseline_obstacle: Option<&'static str>,
    code_bytes: u64,
}

/// Bytes of code that Singlepass compiles in about half a second (measured: 0.5 us per byte).
const MUCH_CODE: u64 = 1 << 20;

impl Kernel {
    /// Reads and checks the module in `file`. `export` may be left out when the module exports a single kernel.
    pub fn load(file: &Path, export: Option<&str>) -> Result<Kernel, EngineError> {
        let bytes = regular_file::read(file, MODULE_BYTES).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                EngineError::NoFile { file: file.to_owned(), found: help_for_missing(file) }
            }
            _ => EngineError::Read { file: file.to_owned(), source },
        })?;
        let name = file.file_name().map_or_else(|| file.display().to_string(), |n| n.to_string_lossy().into_owned());
        Kernel::from_bytes(&name, &bytes, export)
    }

    /// Checks that bytes are a valid module with supported features; the error names the place.
    pub fn check_module(name: &str, bytes: &[u8]) -> Result<(), EngineError> {
        if !bytes.starts_with(b"\0asm") {
            return Err(EngineError::NotWasm { name: text::name(name) });
        }
        Validator::new_with_features(FEATURES).validate_all(bytes).map(drop).map_err(|e| EngineError::Invalid {
            name: text::name(name),
            message: text::line(e.message()),
            place: crate::engine::location::describe_location(bytes, e.offset()),
        })
    }

    /// Another kernel of the same module, which shares all code.
    pub fn sibling(&self, export: &str) -> Result<Kernel, EngineError> {
        Kernel::from_bytes(self.name(), self.bytes(), Some(export))
    }

    /// Checks a module given as bytes; `name` stands for it in messages.
    pub fn from_bytes(name: &str, bytes: &[u8], export: Option<&str>) -> Result<Kernel, EngineError> {
        validate(name, bytes)?;
        let kernels = kernel_exports(bytes);
        let export = match export {
            Some(wanted) if kernels.iter().any(|k| k == wanted) => wanted.to_owned(),
            None if kernels.len() == 1 => kernels[0].clone(),
            None if kernels.len() > 1 => {
                let (name, count) = (name.to_owned(), kernels.len());
                return Err(EngineError::AmbiguousExport { name, count, kernels: text::list(&kernels) });
            }
            _ => {
                let meant = export.and_then(|export| text::nearest(export, kernels.iter().map(String::as_str)));
                let found = match (kernels.as_slice(), meant) {
                    ([], _) => "it exports no kernel at all (see docs/kernel-interface.md)".to_owned(),
                    (some, None) => format!("its kernels are: {}", text::list(some)),
                    (some, Some(meant)) => {
                        format!("did you mean '{}'? its kernels are: {}", text::name(meant), text::list(some))
                    }
                };
                let export = text::name(export.unwrap_or("<any>"));
                return Err(EngineError::NoExport { name: name.to_owned(), export, found });
            }
        };
        let hash = blake3::hash(bytes).to_hex().to_string();
        let baseline_obstacle = baseline_obstacle(bytes);
        let code = Parser::new(0).parse_all(bytes).flatten().find_map(|payload| match payload {
            Payload::CodeSectionStart { size, .. } => Some(u64::from(size)),
            _ => None,
        });
        let (name, bytes, code_bytes) = (name.to_owned(), bytes.to_vec(), code.unwrap_or(0));
        Ok(Kernel(Arc::new(KernelModule { name, bytes, hash, export, baseline_obstacle, code_bytes })))
    }

    /// Name for messages: the file name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The bytes of the module.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Size of the code section.
    pub fn code_bytes(&self) -> u64 {
        self.0.code_bytes
    }

    /// BLAKE3 of the module in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.0.hash
    }

    /// The exported function that computes a tile.
    pub fn export(&self) -> &str {
        &self.0.export
    }

    /// Whether compiling baseline code may take long, or crash, and should happen in a separate process: if LLVM must
    /// compile it, or if there is much code.
    pub fn start_is_risky(&self) -> bool {
        self.0.baseline_obstacle.is_some() || self.0.code_bytes > MUCH_CODE
    }

    /// The feature that keeps this module off the baseline compiler, if it uses one.
    pub fn baseline_obstacle(&self) -> Option<&'static str> {
        self.0.baseline_obstacle
    }
}

/// A help for a missing module: a similar name in its folder.
fn help_for_missing(file: &Path) -> String {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let modules: Vec<String> = names.filter(|name| name.ends_with(".wasm")).collect();
    let wanted = file.file_name().unwrap_or_default().to_string_lossy();
    match text::nearest(&wanted, modules.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean '{}'?", text::name(meant)),
        None => "build it with `exuvia kernel build`".to_owned(),
    }
}

fn validate(name: &str, bytes: &[u8]) -> Result<(), EngineError> {
    Kernel::check_module(name, bytes)?;
    let name = || text::name(name);
    let (mut imports, mut has_memory) = (Vec::new(), false);
    for payload in Parser::new(0).parse_all(bytes).flatten() {
        match payload {
            Payload::ImportSection(section) => {
                imports.extend(section.into_iter().flatten().map(|i| format!("{}.{}", i.module, i.name)));
            }
            Payload::MemorySection(section) => has_memory = section.count() > 0,
            _ => {}
        }
    }
    if !imports.is_empty() {
        return Err(EngineError::Imports { name: name(), imports: text::list(&imports) });
    }
    if !has_memory {
        return Err(EngineError::NoMemory { name: name() });
    }
    match refusal(bytes) {
        Some((what, advice)) => Err(EngineError::Refused { name: name(), what, advice }),
        None => Ok(()),
    }
}

/// Exported functions of type `(i32, i32) -> i32`, in the module's order.
pub(super) fn kernel_exports(bytes: &[u8]) -> Vec<String> {
    let Ok(types) = Validator::new_with_features(FEATURES).validate_all(bytes) else { return Vec::new() };
    let types = types.as_ref();
    let mut kernels = Vec::new();
    for payload in Parser::new(0).parse_all(bytes).flatten() {
        let Payload::ExportSection(section) = payload else { continue };
        for export in section.into_iter().flatten().filter(|e| e.kind == ExternalKind::Func) {
            let signature = types[types.core_function_at(export.index)].unwrap_func();
            use wasmparser::ValType::I32;
            if signature.params() == [I32, I32] && signature.results() == [I32] {
                kernels.push(export.name.to_owned());
            }
        }
    }
    kernels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(wat: &str, export: Option<&str>) -> Result<Kernel, EngineError> {
        Kernel::from_bytes("k.wasm", &wat::parse_str(wat).unwrap(), export)
    }

    const TWO: &str = r#"(module (memory 1)
        (func (export "a") (param i32 i32) (result i32) i32.const 0)
        (func (export "b") (param i32 i32) (result i32) i32.const 0)
        (func (export "c") (param i32) (result i32) i32.const 0))"#;

    #[test]
    fn the_export_is_found_or_the_choice_is_named() {
        assert_eq!(kernel(TWO, Some("b")).unwrap().export(), "b");
        let message = |export| kernel(TWO, export).unwrap_err().to_string();
        assert!(message(None).contains("2 kernels (a, b)"));
        assert!(message(Some("c")).contains("its kernels are: a, b"));
    }

    #[test]
    fn what_no_kernel_may_be_is_refused_by_name() {
        let import = r#"(module (import "wasi" "fd_write" (func)) (memory 1))"#;
        assert!(kernel(import, None).unwrap_err().to_string().contains("imports wasi.fd_write"));
        assert!(kernel("(module)", None).unwrap_err().to_string().contains("no memory"));
        assert!(kernel("(module (memory 1 1 shared))", None).unwrap_err().to_string().contains("threads"));
        assert!(matches!(Kernel::from_bytes("t", b"text", None), Err(EngineError::NotWasm { .. })));
    }

    #[test]
    fn no_truncation_of_a_module_is_accepted() {
        let whole = wat::parse_str(TWO).unwrap();
        for length in 0..whole.len() {
            assert!(Kernel::from_bytes("t", &whole[..length], Some("a")).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn features_that_the_baseline_compiler_lacks_are_named() {
        assert_eq!(kernel(TWO, Some("a")).unwrap().baseline_obstacle(), None);
        let simd = r#"(module (memory 1) (func (export "k") (param i32 i32) (result i32)
            (v128.store (i32.const 0) (i32x4.splat (local.get 0))) i32.const 0))"#;
        assert_eq!(kernel(simd, None).unwrap().baseline_obstacle(), Some("SIMD128 instructions"));
        let multi = r#"(module (memory 1) (func (export "k") (param i32 i32) (result i32)
            (block (result i32 i32) i32.const 1 i32.const 2) i32.add))"#;
        assert_eq!(kernel(multi, None).unwrap().baseline_obstacle(), Some("multi-value blocks"));
    }
}

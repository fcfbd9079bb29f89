use serde::Serialize;
use wasmparser::{ExternalKind, Parser, Payload, Validator, WasmFeatures};

use super::kernel::kernel_exports;
use super::module_restrictions::{FEATURES, baseline_obstacle, refusal};
use crate::engine::location::describe_location;
use crate::text;

/// Description of a module, whether or not it can be a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inspection {
    pub bytes: usize,
    pub hash: String,
    /// Functions that a stage can run.
    pub kernels: Vec<String>,
    pub exports: Vec<String>,
    pub imports: Vec<String>,
    pub functions: u32,
    /// Initial size of its memory.
    pub memory_bytes: Option<u64>,
    pub has_start: bool,
    /// Features beyond WebAssembly 1.0 that it uses.
    pub features: Vec<String>,
    /// How each tier compiles it.
    pub baseline: String,
    pub optimized: String,
    pub obstacles: Vec<String>,
}

/// Describes a module; `None` if it does not begin like one.
pub fn inspect(bytes: &[u8]) -> Option<Inspection> {
    if !bytes.starts_with(b"\0asm") {
        return None;
    }
    let mut found = Inspection { bytes: bytes.len(), ..Inspection::default() };
    found.hash = blake3::hash(bytes).to_hex().to_string();
    if let Err(error) = Validator::new_with_features(FEATURES).validate_all(bytes) {
        let (message, place) = (text::line(error.message()), describe_location(bytes, error.offset()));
        found.obstacles.push(format!("it is not valid: {message} ({place})"));
    } else if let Some((what, advice)) = refusal(bytes) {
        found.obstacles.push(format!("it uses {what}, which kernels may not use: {advice}"));
    }
    for payload in Parser::new(0).parse_all(bytes).map_while(Result::ok) {
        match payload {
            Payload::ImportSection(section) => {
                found
                    .imports
                    .extend(section.into_iter().flatten().map(|i| text::name(&format!("{}.{}", i.module, i.name))));
            }
            Payload::FunctionSection(section) => found.functions = section.count(),
            Payload::MemorySection(section) => {
                found.memory_bytes = section.into_iter().flatten().next().map(|memory| memory.initial * 65_536);
            }
            Payload::ExportSection(section) => {
                found.exports.extend(section.into_iter().flatten().map(|e| {
                    let kind = if e.kind == ExternalKind::Func { "function" } else { "other" };
                    format!("{} ({kind})", text::name(e.name))
                }));
            }
            Payload::StartSection { .. } => found.has_start = true,
            _ => {}
        }
    }
    found.kernels = kernel_exports(bytes);
    found.features = features(bytes);
    if !found.imports.is_empty() {
        found.obstacles.push(format!("it imports {}; a kernel imports nothing", text::list(&found.imports)));
    }
    if found.memory_bytes.is_none() {
        found.obstacles.push("it has no memory".to_owned());
    }
    if found.kernels.is_empty() {
        found.obstacles.push("it exports no function that takes (i32, i32) and returns i32".to_owned());
    }
    found.baseline = match baseline_obstacle(bytes) {
        None => "Singlepass, at once".to_owned(),
        Some(obstacle) => format!("LLVM without optimization, since Singlepass cannot compile {obstacle}"),
    };
    found.optimized = "LLVM with the full pipeline for the CPU at hand".to_owned();
    Some(found)
}

/// Features beyond WebAssembly 1.0 without which the module is not valid.
fn features(bytes: &[u8]) -> Vec<String> {
    let named = [
        (WasmFeatures::SIMD, "simd128"),
        (WasmFeatures::MULTI_VALUE, "multi-value"),
        (WasmFeatures::BULK_MEMORY, "bulk memory"),
        (WasmFeatures::SIGN_EXTENSION, "sign extension"),
        (WasmFeatures::SATURATING_FLOAT_TO_INT, "saturating conversion"),
        (WasmFeatures::REFERENCE_TYPES, "reference types"),
    ];
    let valid = |features| Validator::new_with_features(features).validate_all(bytes).is_ok();
    if !valid(FEATURES) {
        return Vec::new();
    }
    let used = named.into_iter().filter(|(feature, _)| !valid(FEATURES.difference(*feature)));
    used.map(|(_, name)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_a_module_is_and_why_it_cannot_run() {
        let wat = r#"(module (import "env" "f" (func)) (memory 2)
            (func (export "k") (param i32 i32) (result i32) (i32.extend8_s (local.get 0))))"#;
        let found = inspect(&wat::parse_str(wat).unwrap()).unwrap();
        assert_eq!((found.kernels.as_slice(), found.memory_bytes), (&["k".to_owned()][..], Some(131_072)));
        assert_eq!(found.features, ["sign extension"]);
        assert_eq!(found.obstacles, ["it imports env.f; a kernel imports nothing"]);
        assert_eq!(inspect(b"text"), None);
        assert!(!inspect(b"\0asm\x01\0\0").unwrap().obstacles.is_empty());
    }
}

//! Modules that leave the first page of their memory unused. The host protects that page, so that null pointers trap.
//!
//! Address 0 is an ordinary address in WebAssembly, so only the builder of a module knows that it is unused. A custom
//! section of the module says so.

use std::borrow::Cow;

use wasm_encoder::{CustomSection, Section};
use wasmparser::{DataKind, Operator, Parser, Payload, ValType};

use super::arena::HOST_PAGE;

/// Name of that custom section.
pub(super) const SECTION: &str = "exuvia.first-page-unused";

/// Marks a module whose stack grows down to address 0, as `wasm-ld --stack-first` lays it out, as not using the last
/// page of the stack. Returns false and changes nothing for another layout, or if the stack has no more than two pages.
pub fn mark_first_page(module: &mut Vec<u8>) -> bool {
    let Some((stack, data)) = layout(module) else { return false };
    let leaves = match stack {
        Some(top) => top > 2 * HOST_PAGE && data.is_none_or(|data| data >= top),
        None => data.is_none_or(|data| data >= HOST_PAGE),
    };
    if leaves {
        CustomSection { name: SECTION.into(), data: Cow::Borrowed(&[]) }.append_to(module);
    }
    leaves
}

/// The initial stack pointer, if there is one, and the lowest address of its data; nothing of a module that cannot be
/// read.
fn layout(module: &[u8]) -> Option<(Option<u64>, Option<u64>)> {
    let constant = |expr: wasmparser::ConstExpr| match expr.get_operators_reader().read() {
        Ok(Operator::I32Const { value }) => Some(u64::from(value as u32)),
        _ => None,
    };
    let (mut stack, mut data) = (None, None::<u64>);
    for payload in Parser::new(0).parse_all(module) {
        match payload.ok()? {
            Payload::GlobalSection(section) => {
                // The linker's first.
                let first = section.into_iter().next()?.ok()?;
                if first.ty.mutable && first.ty.content_type == ValType::I32 {
                    stack = constant(first.init_expr);
                }
            }
            Payload::DataSection(section) => {
                for segment in section {
                    if let DataKind::Active { offset_expr, .. } = segment.ok()?.kind {
                        let address = constant(offset_expr)?;
                        data = Some(data.map_or(address, |data| data.min(address)));
                    }
                }
            }
            _ => {}
        }
    }
    Some((stack, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_modules_with_the_stack_first_are_marked() {
        let marked = |rest: &str| {
            let mut module = wat::parse_str(format!("(module (memory 2) {rest})")).unwrap();
            let before = module.len();
            let marked = mark_first_page(&mut module);
            assert_eq!(marked, module.len() > before);
            wasmparser::Validator::new().validate_all(&module).unwrap();
            marked
        };
        let stack = |top: u32| format!("(global (mut i32) (i32.const {top}))");
        assert!(marked(&stack(69_632)) && marked(""));
        assert!(marked(&format!(r#"{} (data (i32.const 69632) "1")"#, stack(69_632))));
        assert!(!marked(&format!(r#"{} (data (i32.const 1024) "1")"#, stack(69_632))), "data come first");
        assert!(!marked(&stack(8_192)), "the stack would have one page left");
        assert!(!marked(r#"(data (i32.const 8) "1")"#));
    }
}

use std::collections::HashMap;

use wasmparser::{KnownCustom, Name, Parser, Payload};

use crate::text;

/// Describes the location of a byte of a module for a person: function and instruction.
pub(super) fn describe_location(bytes: &[u8], offset: usize) -> String {
    let (mut imported, mut bodies, mut names) = (0, Vec::new(), HashMap::new());
    for payload in Parser::new(0).parse_all(bytes).map_while(Result::ok) {
        match payload {
            Payload::ImportSection(imports) => {
                let functions = |import: &wasmparser::Import<'_>| matches!(import.ty, wasmparser::TypeRef::Func(_));
                imported = imports.into_iter().flatten().filter(functions).count();
            }
            Payload::CodeSectionEntry(body) => bodies.push(body),
            Payload::CustomSection(section) => {
                let KnownCustom::Name(subsections) = section.as_known() else { continue };
                for subsection in subsections.into_iter().flatten() {
                    if let Name::Function(functions) = subsection {
                        names
                            .extend(functions.into_iter().flatten().map(|naming| (naming.index as usize, naming.name)));
                    }
                }
            }
            _ => {}
        }
    }
    let Some((number, body)) = bodies.iter().enumerate().find(|(_, body)| body.range().contains(&offset)) else {
        return format!("at byte {offset:#x}");
    };
    let index = imported + number;
    let function = names.get(&index).map(|name| format!(" ${}", text::name(name))).unwrap_or_default();
    let operators = body.get_operators_reader().map(|reader| reader.into_iter_with_offsets());
    let before = operators.into_iter().flatten().map_while(Result::ok).take_while(|(_, at)| *at <= offset);
    let at = before.enumerate().last().map(|(count, (operator, _))| {
        // Its operands may be many.
        let text: String = format!("{operator:?}").chars().take_while(|c| c.is_alphanumeric()).collect();
        format!(", instruction {} ({text})", count + 1)
    });
    format!("function {index}{function}{}, byte {offset:#x}", at.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use crate::engine::kernel::Kernel;

    #[test]
    fn a_type_error_is_found_by_function_and_instruction() {
        let wat = r#"(module (memory 1) (func $fine) (func $wrong (result i32) i32.const 1 f32.const 2 i32.add))"#;
        let error = Kernel::check_module("k", &wat::parse_str(wat).unwrap()).unwrap_err().to_string();
        assert!(error.contains("type mismatch: expected i32, found f32"), "{error}");
        assert!(error.contains("function 1 $wrong, instruction 3 (I32Add), byte 0x"), "{error}");
    }
}

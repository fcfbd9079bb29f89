//! The directions of imports that ARCHITECTURE.md promises, checked against the sources: between modules, inside
//! `exec`, and between files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules below all others, which each module may use.
const FOUNDATION: [&str; 3] = ["text", "encode", "regular_file"];

/// The beginnings of inline modules of unit tests.
const TEST_MODULES: [&str; 2] = ["#[cfg(test)]\nmod tests {", "#[cfg(test)]\npub(super) mod tests {"];

/// The path of a module: `["exec", "comm", "tag"]`. The crate itself is empty.
type Module = Vec<String>;

/// One import of a file.
struct Import {
    line: usize,
    /// The path as absolute segments, its item included.
    path: Module,
}

/// One source file without its comments, strings and unit tests.
struct Source {
    file: PathBuf,
    imports: Vec<Import>,
}

/// All files of `src`, by module.
struct Tree(BTreeMap<Module, Source>);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Tree {
    fn read() -> Tree {
        let mut texts = BTreeMap::new();
        let mut files = vec![root().join("src")];
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test_file(&path) {
                let file = path.strip_prefix(root()).unwrap().to_owned();
                texts.insert(module_of(&file), (file, code_of(&fs::read_to_string(&path).unwrap())));
            }
        }
        let modules: BTreeSet<Module> = texts.keys().cloned().collect();
        let read = |(module, (file, code)): (Module, (PathBuf, String))| {
            let imports = imports(&code, &module, &modules);
            (module, Source { file, imports })
        };
        Tree(texts.into_iter().map(read).collect())
    }

    /// The file that an import names: the longest prefix of its path that is a module.
    fn target(&self, import: &Import) -> Option<&Module> {
        (1..=import.path.len()).rev().find_map(|length| self.0.get_key_value(&import.path[..length])).map(|(m, _)| m)
    }

    /// Returns the files that import one another in a circle: strongly connected components of more than one file.
    fn circles(&self) -> Vec<Vec<&Module>> {
        let edges: BTreeMap<&Module, BTreeSet<&Module>> = (self.0.iter())
            .map(|(module, source)| (module, source.imports.iter().filter_map(|i| self.target(i)).collect()))
            .collect();
        let reaches = |from: &Module| {
            let mut seen = BTreeSet::new();
            let mut open: Vec<&Module> = edges[from].iter().copied().collect();
            while let Some(module) = open.pop() {
                if seen.insert(module) {
                    open.extend(&edges[module]);
                }
            }
            seen
        };
        let reached: BTreeMap<&Module, BTreeSet<&Module>> =
            self.0.keys().map(|module| (module, reaches(module))).collect();
        let mut circles: Vec<Vec<&Module>> = Vec::new();
        for module in self.0.keys().filter(|module| !module.is_empty()) {
            let circle: Vec<&Module> = self
                .0
                .keys()
                .filter(|other| *other == module || reached[module].contains(other) && reached[other].contains(module))
                .collect();
            if circle.len() > 1 && circle[0] == module {
                circles.push(circle);
            }
        }
        circles
    }
}

fn module_of(file: &Path) -> Module {
    let mut module: Module = file
        .with_extension("")
        .components()
        .skip(1)
        .map(|part| part.as_os_str().to_str().unwrap().to_owned())
        .collect();
    if ["mod", "lib", "main"].contains(&module.last().unwrap().as_str()) {
        module.pop();
    }
    module
}

fn is_test_file(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_str().unwrap();
    name == "tests"
        || name.ends_with("_tests")
        || name.starts_with("test_")
        || name == "main"
        || path.components().any(|c| c.as_os_str() == "tests")
}

/// Returns a source with comments, strings and inline test modules blanked. Lines keep their numbers.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    let blank = |code: &mut String, part: &str| code.extend(part.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
    while at < bytes.len() {
        let rest = &text[at..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            raw.find("\"#").map_or(rest.len(), |end| end + 5)
        } else if rest.starts_with('"') {
            string_end(rest)
        } else if rest.starts_with("'\"'") {
            3
        } else if rest.starts_with("'\\\"'") {
            4
        } else {
            let c = rest.chars().next().unwrap();
            code.push(c);
            at += c.len_utf8();
            continue;
        };
        blank(&mut code, &rest[..length]);
        at += length;
    }
    while let Some(start) = TEST_MODULES.iter().find_map(|module| code.find(module)) {
        let end = code[start..].find("\n}").map_or(code.len(), |end| start + end + 2);
        let tests = code[start..end].to_owned();
        let mut blanked = String::new();
        blank(&mut blanked, &tests);
        code.replace_range(start..end, &blanked);
    }
    code
}

/// The length of a string literal, its quotes included.
fn string_end(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Returns every path in `code` that starts with `crate`, `super`, `self` or a child module, with its braces expanded.
fn imports(code: &str, module: &Module, modules: &BTreeSet<Module>) -> Vec<Import> {
    let child = |name: &str| modules.contains(&[module.as_slice(), &[name.to_owned()]].concat());
    let mut imports = Vec::new();
    let mut at = 0;
    while let Some(offset) = code[at..].find("::") {
        let colons = at + offset;
        let start = code[..colons].rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |before| before + 1);
        let head = &code[start..colons];
        // The rest of a longer path, or a visibility such as `pub(in crate::exec)`.
        let is_part = code[..start].ends_with("::") || code[..start].ends_with("(in ");
        if !is_part && (["crate", "super", "self"].contains(&head) || child(head)) {
            let end = path_end(code, start);
            let line = code[..start].matches('\n').count() + 1;
            let paths = expand(&code[start..end]);
            imports.extend(paths.iter().map(|path| Import { line, path: absolute(path, module) }));
            at = end;
        } else {
            at = colons + 2;
        }
    }
    imports
}

/// Returns the end of the path that begins at `start`, its tree of braces included.
fn path_end(code: &str, start: usize) -> usize {
    let mut end = start;
    for c in code[start..].chars() {
        let depth = code[start..end].matches('{').count() - code[start..end].matches('}').count();
        let continues = c.is_alphanumeric() || "_:".contains(c);
        let opens = c == '{' && code[start..end].ends_with("::");
        if !(continues || opens || depth > 0) {
            break;
        }
        end += c.len_utf8();
    }
    end
}

fn expand(tree: &str) -> Vec<String> {
    let Some(open) = tree.find('{') else { return vec![tree.trim().to_owned()] };
    let inner = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in inner.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match (c, depth) {
            (',', 0) => parts.push(String::new()),
            _ => parts.last_mut().unwrap().push(c),
        }
    }
    let prefix = tree[..open].trim();
    let parts = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
    parts.flat_map(|part| expand(part).into_iter().map(|path| format!("{prefix}{path}"))).collect()
}

fn absolute(path: &str, module: &Module) -> Module {
    let mut absolute = module.clone();
    for (number, segment) in path.split("::").map(str::trim).filter(|segment| !segment.is_empty()).enumerate() {
        let name = segment.split(" as ").next().unwrap();
        match name {
            "crate" if number == 0 => absolute.clear(),
            "self" => {}
            "super" => drop(absolute.pop()),
            name => absolute.push(name.to_owned()),
        }
    }
    absolute
}

/// Returns the rows of the table in ARCHITECTURE.md under `heading`, as cells.
fn table(heading: &str) -> Vec<Vec<String>> {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let section = page.split(heading).nth(1).unwrap_or_else(|| panic!("ARCHITECTURE.md has no section '{heading}'"));
    let rows = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
    rows.skip(2).map(cells).collect()
}

fn names(cell: &str) -> Vec<String> {
    cell.split(',').map(|name| name.trim().to_owned()).collect()
}

fn fail_if_any(violations: &str, rule: &str) {
    assert!(violations.is_empty(), "\n{violations}{rule}\n");
}

#[test]
fn modules_use_only_those_that_the_table_allows() {
    let rows = table("## Modules, bottom to top");
    let allowed: BTreeMap<String, Vec<String>> = rows.iter().map(|row| (row[0].clone(), names(&row[2]))).collect();
    let mut violations = String::new();
    let mut used: BTreeSet<(String, String)> = BTreeSet::new();
    for (module, source) in &Tree::read().0 {
        let Some(own) = module.first() else { continue };
        let Some(allowed) = allowed.get(own) else { panic!("the table of ARCHITECTURE.md has no row for '{own}'") };
        for Import { line, path } in &source.imports {
            let Some(target) = path.first().filter(|target| *target != own) else { continue };
            used.insert((own.clone(), target.clone()));
            if !allowed.contains(target)
                && !allowed.contains(&"everything".to_owned())
                && !FOUNDATION.contains(&target.as_str())
            {
                let file = source.file.display();
                writeln!(violations, "{file}:{line}: `{own}` uses crate::{}", path.join("::")).unwrap();
            }
        }
    }
    fail_if_any(
        &violations,
        "rule: a module uses those that its row in ARCHITECTURE.md (Modules, bottom to top) names",
    );
    for (own, allowed) in &allowed {
        for name in allowed.iter().filter(|name| !["nothing", "everything"].contains(&name.as_str())) {
            assert!(used.contains(&(own.clone(), name.clone())), "ARCHITECTURE.md: `{own}` does not use `{name}`");
        }
    }
    let order: Vec<&String> = rows.iter().map(|row| &row[0]).collect();
    let level = |name: &String| order.iter().position(|row| *row == name);
    for (own, target) in &used {
        assert!(level(target) < level(own), "ARCHITECTURE.md: the row of `{own}` is not below that of `{target}`");
    }
}

#[test]
fn inside_exec_imports_point_down() {
    let rows = table("### Inside `exec`, top to bottom");
    let level = |room: &str| rows.iter().position(|row| names(&row[0]).iter().any(|name| name == room));
    let tree = Tree::read();
    let mut violations = String::new();
    for (module, source) in tree.0.iter().filter(|(module, _)| module.len() > 1 && module[0] == "exec") {
        let room = &module[1];
        let own = level(room).unwrap_or_else(|| panic!("ARCHITECTURE.md (Inside `exec`) has no row for '{room}'"));
        for import @ Import { line, path } in source.imports.iter().filter(|import| import.path[0] == "exec") {
            let Some(target) = tree.target(import) else { continue };
            let below = target.get(1).is_some_and(|target| target == room || level(target) > Some(own));
            if !below {
                let file = source.file.display();
                writeln!(violations, "{file}:{line}: `exec::{room}` imports crate::{}", path.join("::")).unwrap();
            }
        }
    }
    fail_if_any(&violations, "rule: a file of exec imports its own room and rooms of lower rows, never exec/mod.rs");
}

#[test]
fn no_files_import_one_another_in_a_circle() {
    let tree = Tree::read();
    let mut violations = String::new();
    for circle in tree.circles() {
        writeln!(violations, "{} files in a circle:", circle.len()).unwrap();
        for module in &circle {
            for import in &tree.0[*module].imports {
                if let Some(target) = tree.target(import).filter(|target| target != module && circle.contains(target)) {
                    let (from, to) = (tree.0[*module].file.display(), tree.0[target].file.display());
                    writeln!(violations, "  {from}:{}: {} ({to})", import.line, import.path.join("::")).unwrap();
                }
            }
        }
    }
    fail_if_any(&violations, "rule: imports between files run one way, through mod.rs too");
}

#[test]
fn unit_tests_have_names_that_say_test() {
    let mut violations = String::new();
    for (module, source) in &Tree::read().0 {
        let text = fs::read_to_string(root().join(&source.file)).unwrap();
        for (number, pair) in text.lines().collect::<Vec<_>>().windows(2).enumerate() {
            let name = pair[1].trim().strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'));
            if let Some(name) = name.filter(|name| pair[0].trim() == "#[cfg(test)]" && !is_test_file(Path::new(name))) {
                writeln!(violations, "{}:{}: {}::{name}", source.file.display(), number + 2, module.join("::"))
                    .unwrap();
            }
        }
    }
    fail_if_any(
        &violations,
        "rule: a file of unit tests is called tests.rs or *_tests.rs, their shared data test_*.rs",
    );
}

#[test]
fn paths_are_read_as_the_compiler_reads_them() {
    let modules: BTreeSet<Module> =
        ["", "a", "a b", "a c"].iter().map(|m| m.split_whitespace().map(str::to_owned).collect()).collect();
    let text = "use crate::a::{self, b::{One, Two as Three}};\n// use crate::x::Y;\nuse super::c::Four;\nlet s = \"crate::z\";\n\
                fn f() { b::g(crate::d::h()) }\n#[cfg(test)]\nmod tests {\n    use crate::t::T;\n}\n";
    let found: Vec<(usize, String)> = imports(&code_of(text), &vec!["a".to_owned()], &modules)
        .into_iter()
        .map(|import| (import.line, import.path.join("::")))
        .collect();
    let expected = [(1, "a"), (1, "a::b::One"), (1, "a::b::Two"), (3, "c::Four"), (5, "a::b::g"), (5, "d::h")];
    assert_eq!(found, expected.map(|(line, path)| (line, path.to_owned())));
}

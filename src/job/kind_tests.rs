//! Tests of what job files say of reductions, halos and iterations.

use super::*;
use crate::tensor::Boundary;

const HEAT: &str = r#"
[tensors]
u = { file = "h.h5", dataset = "u" }
v = { create = "o.h5", dataset = "v", dtype = "f64" }
residual = { dtype = "f64" }
[[stages]]
name = "step"
kernel = "heat.wasm"
compute = "u[y~1,x~1] -> v[y,x]"
boundary = "clamp"
[[stages]]
name = "check"
kernel = "heat.wasm"
compute = "u[y,x], v[y,x] -> residual[]"
combine = "max"
reduce = ["y", "x"]
[iterate]
stages = ["step", "check"]
count = 100
until = "residual < 1e-6"
exchange = [["u", "v"]]
"#;

/// Asserts that `HEAT` with `from` replaced by `to` is refused, with these words.
#[track_caller]
fn refused(from: &str, to: &str, words: &[&str]) {
    assert!(HEAT.contains(from), "{from}");
    let error = Job::parse(&HEAT.replacen(from, to, 1), Path::new("heat.toml")).expect_err(to).to_string();
    assert!(error.starts_with("heat.toml:"), "{error}");
    for word in words {
        assert!(error.contains(word), "no '{word}' in: {error}");
    }
}

#[test]
fn an_iterated_job_is_read() {
    let job = Job::parse(HEAT, Path::new("heat.toml")).unwrap();
    let iterate = job.iterate.unwrap();
    assert_eq!((iterate.stages, iterate.count), (0..2, 100));
    let until = iterate.until.unwrap();
    assert_eq!((until.tensor.as_str(), until.relation, until.bound), ("residual", Relation::Less, 1e-6));
    assert!(until.holds(1e-7) && !until.holds(1e-6) && !until.holds(f64::NAN));
    assert_eq!((iterate.exchange[0].read.as_str(), iterate.exchange[0].written.as_str()), ("u", "v"));
    assert_eq!((job.stages[0].boundary, job.stages[0].combine), (Some(Boundary::Clamp), None));
    assert_eq!((job.stages[1].boundary, job.stages[1].combine), (None, Some(Combine::Max)));
}

#[test]
fn conditions_take_every_relation() {
    for (sign, relation, at_bound) in [
        ("<", Relation::Less, false),
        ("<=", Relation::LessOrEqual, true),
        (">", Relation::Greater, false),
        (">=", Relation::GreaterOrEqual, true),
    ] {
        let text = HEAT.replace("residual < 1e-6", &format!("residual{sign} 2"));
        let until = Job::parse(&text, Path::new("heat.toml")).unwrap().iterate.unwrap().until.unwrap();
        assert_eq!((until.relation, until.holds(2.0)), (relation, at_bound));
    }
}

#[test]
fn halos_and_reductions_that_make_no_sense_are_refused() {
    refused("boundary = \"clamp\"", "", &["boundary", "periodic", "heat.toml:9:14"]);
    refused("\"clamp\"", "\"clmp\"", &["clmp", "did you mean 'clamp'"]);
    refused("u[y~1,x~1]", "u[y,x]", &["boundary", "halo"]);
    refused("-> v[y,x]\"\nboundary", "-> v[y~1,x]\"\nboundary", &["output", "y~1"]);
    refused("\"max\"", "\"argmax\"", &["two outputs", "value[d], place[d]"]);
    let columns = "residual[], columns[x]\"\ncombine = \"argmax\"\nreduce = [\"y\"]";
    refused("residual[]\"\ncombine = \"max\"\nreduce = [\"y\", \"x\"]", columns, &["same indices"]);
    let pairs = "residual[x], columns[2*x]\"\ncombine = \"argmax\"\nreduce = [\"y\"]";
    refused("residual[]\"\ncombine = \"max\"\nreduce = [\"y\", \"x\"]", pairs, &["same indices and multiples"]);
    // Two outputs, but 'residual' is no integer place.
    let places = "places[], residual[]\"\ncombine = \"argmin\"";
    let declared = HEAT.replace("residual = {", "places = { dtype = \"f32\" }\nresidual = {");
    let job = declared.replace("residual[]\"\ncombine = \"max\"", places);
    let error = Job::parse(&job, Path::new("heat.toml")).unwrap_err().to_string();
    assert!(error.contains("'residual' must be of an integer dtype"), "{error}");
    refused("\"max\"", "\"maximum\"", &["maximum", "max"]);
    refused("boundary = \"clamp\"", "boundary = \"clamp\"\ncombine = \"sum\"", &["combine", "no output has"]);
    refused("residual = { dtype = \"f64\" }", "residual = { dtype = \"f16\" }", &["f16", "f32"]);
}

/// What becomes of each index of a stage with this notation and these keys.
fn cuts(compute: &str, keys: &str) -> Vec<(Cut, Why)> {
    let sources = [("a", "file = \"i\", dataset = \"a\""), ("b", "file = \"i\", dataset = \"b\"")];
    let used = sources.into_iter().chain([("o", "dtype = \"f64\""), ("p", "dtype = \"f64\"")]);
    let used = used.filter(|(name, _)| compute.contains(&format!("{name}[")));
    let tensors: String = used.map(|(name, source)| format!("tensors.{name} = {{ {source} }}\n")).collect();
    let text = format!("{tensors}\n[[stages]]\nkernel = \"k\"\ncompute = \"{compute}\"\n{keys}\n");
    let job = Job::parse(&text, Path::new("cuts.toml")).unwrap_or_else(|error| panic!("{error}"));
    ["y", "x", "k"].map(|index| job.stages[0].cut(index)).to_vec()
}

#[test]
fn what_may_be_cut_follows_from_the_job_alone() {
    use Cut::{Reduced, Split, Whole};
    let sum = "combine = \"sum\"";
    let (split, only) = ((Split, Why::InEveryOutput), (Reduced, Why::OnlyCandidate));
    let (undecided, named) = ((Whole, Why::Undecided), (Reduced, Why::NamedReduced));
    // A product, and tables beside the data.
    assert_eq!(cuts("a[y,k], b[k,x] -> o[y,x]", sum), [split, split, only]);
    assert_eq!(cuts("a[y,x], b[k] -> o[]", sum), [undecided; 3]);
    let reduce = |names: &str| format!("{sum}\nreduce = {names}");
    let other = (Whole, Why::NotNamedReduced);
    assert_eq!(cuts("a[y,x], b[k] -> o[]", &reduce("[\"x\", \"y\"]")), [named, named, other]);
    assert_eq!(cuts("a[y,x], b[k] -> o[y]", &reduce("[\"x\"]")), [split, named, other]);
    // What is kept whole leaves one, or several.
    let whole = |names: &str| format!("{sum}\nwhole = {names}");
    let kept = (Whole, Why::NamedWhole);
    assert_eq!(cuts("a[y,x], b[k] -> o[y]", &whole("[\"k\"]")), [split, only, kept]);
    assert_eq!(cuts("a[y,x], b[k] -> o[]", &whole("[\"k\"]")), [undecided, undecided, kept]);
    assert_eq!(cuts("a[y,x], b[k] -> o[y]", &whole("[\"k\", \"y\"]")), [kept, only, kept]);
    // Without `combine`.
    assert_eq!(cuts("a[y,x,k] -> o[x,y]", ""), [split, split, (Whole, Why::NoCombine)]);
    assert_eq!(cuts("a[y,x,k] -> o[x,y], p[x]", "whole = [\"x\"]")[..2], [(Whole, Why::InSomeOutputs), kept]);
}

#[test]
fn reductions_over_what_cannot_be_reduced_are_refused() {
    let max = "combine = \"max\"\nreduce = [\"y\", \"x\"]";
    let with = |keys: &str, words: &[&str]| refused(max, keys, words);
    with("reduce = [\"y\"]", &["'reduce' needs 'combine'", "combine = \"sum\""]);
    with("combine = \"max\"\nreduce = []", &["'reduce'", "at least one index"]);
    with("combine = \"max\"\nreduce = \"y\"", &["'reduce' takes an array of indices", "a string"]);
    with("combine = \"max\"\nreduce = [\"y\", \"y\"]", &["'y' is there twice"]);
    with("combine = \"max\"\nreduce = [\"z\"]", &["no index 'z'", "indices that no output has: x, y"]);
    with("combine = \"max\"\nreduce = [\"y\"]\nwhole = [\"y\"]", &["'whole' names 'y' too"]);
    with("combine = \"max\"\nwhole = [\"y\", \"x\"]", &["'whole' does not name", "nothing to combine"]);
    with("combine = \"max\"\nwhole = [\"rows\"]", &["no index 'rows'", "its indices: x, y"]);
    let columns = "columns[x]\"\ncombine = \"max\"\nreduce = [\"y\", \"x\"]";
    refused("residual[]\"\ncombine = \"max\"\nreduce = [\"y\", \"x\"]", columns, &["columns[x] has 'x'"]);
    let slip = "rows[row], cols[col] -> residual[]\"\ncombine = \"max\"\nreduce = [\"rwo\"]";
    refused(&format!("u[y,x], v[y,x] -> residual[]\"\n{max}"), slip, &["did you mean 'row'?"]);
}

#[test]
fn iterations_that_make_no_sense_are_refused() {
    refused("\"check\"]", "\"chek\"]", &["chek", "check"]);
    refused("[\"step\", \"check\"]", "[\"check\", \"step\"]", &["follow each other"]);
    refused("count = 100", "count = 0", &["at least 1"]);
    refused("count = 100", "", &["count"]);
    refused("residual < 1e-6", "residual", &["no condition", "1e-6"]);
    refused("residual < 1e-6", "residual < tiny", &["tiny", "no number"]);
    refused("residual < 1e-6", "u < 1", &["'u'", "never changes"]);
    refused("residual < 1e-6", "v < 1", &["v[y,x]", "no scalar"]);
    refused("[[\"u\", \"v\"]]", "[[\"v\", \"u\"]]", &["'u'", "[\"u\", \"v\"]"]);
    refused("[[\"u\", \"v\"]]", "[[\"u\", \"v\"], [\"u\", \"residual\"]]", &["one other only"]);
    refused("[[\"u\", \"v\"]]", "[[\"w\", \"v\"]]", &["'w'", "not declared"]);
    refused("[[\"u\", \"v\"]]", "[\"u\", \"v\"]", &["pair"]);
    refused("[iterate]", "[iterat]", &["iterat", "iterate"]);
}

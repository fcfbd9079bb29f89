//! Tests of what job files say of reductions, halos and iterations.

use super::*;

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
    let columns = "residual[], columns[x]\"\ncombine = \"argmax\"";
    refused("residual[]\"\ncombine = \"max\"", columns, &["same indices"]);
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

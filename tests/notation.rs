//! Compares planner and data path with an interpreter of the index notation in numpy (`notation/interpreter.py`), on
//! random jobs, and tests the limits on cutting reductions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::lab::{EXUVIA, Lab, launch, python, root, text};
use exuvia::cli::kernel_build;
use exuvia::exec::{self, ExitCode, Options, Resume, Signal, TierPolicy};
use exuvia::fabric;
use exuvia::job::{Job, Source};
use exuvia::plan::{self, Machine, PlanError};
use exuvia::sched::Granularity;
use exuvia::store::Reader;
use exuvia::tensor::{Dtype, Region};

/// The number of jobs of a test run. `EXUVIA_RANDOM_JOBS` sets more, and `EXUVIA_RANDOM_SEED` another first seed.
const JOBS: u64 = 300;
/// A small memory for a rank: it makes blocks small, and may be insufficient.
const TIGHT_BYTES: u64 = 8 << 20;
/// The number of jobs written at a time.
const BATCH: u64 = 50;
/// One of this many jobs also runs with `mpirun`.
const LAUNCHED: u64 = 60;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// Writes the jobs of these seeds, each in a folder of its own, and returns their common folder.
fn written(lab: &Lab, first: u64, count: u64) -> PathBuf {
    let folder = lab.path(&format!("jobs-{first}"));
    let mut command = python("tests/notation/jobs.py");
    let output = command.arg(&folder).args([first, count].map(|n| n.to_string())).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    folder
}

fn bytes(file: &Path, dataset: &str) -> Result<Vec<u8>, String> {
    let reader = Reader::open(file, dataset).map_err(|error| format!("{dataset}: {error}"))?;
    let mut bytes = Vec::new();
    let read = reader.read(&Region::whole(&reader.info().shape), &mut bytes);
    read.map(|_| bytes).map_err(|error| format!("{dataset}: {error}"))
}

/// Compares the output of a job with the expected output.
fn compare(folder: &Path) -> Result<(), String> {
    let job = Job::load(&folder.join("job.toml")).map_err(|error| error.to_string())?;
    for decl in job.tensors.values() {
        let Source::Create { file, dataset, .. } = &decl.source else { continue };
        let (found, expected) = (bytes(file, dataset)?, bytes(&folder.join("expected.h5"), dataset)?);
        if found != expected {
            let at = found.iter().zip(&expected).position(|(a, b)| a != b);
            return Err(format!("'{dataset}' differs from byte {at:?} of {} on ({})", expected.len(), found.len()));
        }
    }
    Ok(())
}

/// Runs the job in `folder` on ranks of this process.
fn run_here(folder: &Path, ranks: u32, options: &Options) -> Result<(), String> {
    let job = folder.join("job.toml");
    let run = |fabric: Box<dyn fabric::Fabric>| {
        let report = exec::run(fabric, &job, options, Signal::default(), |_| ExitCode::Done);
        report.map(|_| ()).map_err(|failure| format!("{failure:?}"))
    };
    thread::scope(|scope| {
        let ranks: Vec<_> = fabric::local(ranks).into_iter().map(|fabric| scope.spawn(move || run(fabric))).collect();
        let results: Vec<_> = ranks.into_iter().map(|rank| rank.join()).collect();
        // The rank that has the text of an error gives the most information.
        let faults = results.into_iter().map(|result| result.unwrap_or_else(|_| Err("a rank has ended".to_owned())));
        faults.filter_map(Result::err).max_by_key(String::len).map_or(Ok(()), Err)
    })
}

/// Runs the job in `folder` on ranks in processes of their own.
fn launched(folder: &Path, ranks: u32, cache: &Path) -> Result<(), String> {
    let mut command = if ranks == 1 { Command::new(EXUVIA) } else { launch::ranks(ranks, EXUVIA.as_ref()) };
    command.args(["run", "--fresh", "--threads", "1"]).arg(folder.join("job.toml")).env("EXUVIA_CACHE_DIR", cache);
    let output = command.output().unwrap();
    if output.status.success() { Ok(()) } else { Err(text(&output)) }
}

#[test]
fn random_jobs_compute_what_their_notation_says() {
    let lab = Lab::bare(&[]);
    kernel_build::build(&root().join("tests/notation/kernel.c"), &lab.path("kernel.wasm"), &[]).unwrap();
    let (count, first) = (number("EXUVIA_RANDOM_JOBS").unwrap_or(JOBS), number("EXUVIA_RANDOM_SEED").unwrap_or(0));
    let next = AtomicU64::new(first);
    let [reductions, uncut, refused] = [const { AtomicU64::new(0) }; 3];
    // Seeds with different remainders by 5, 2, 3 and 7 cover every combination.
    let options = |seed: u64| Options {
        threads: Some(1 + (seed / 5 % 2) as u32),
        tier: TierPolicy::Baseline,
        cache_dir: Some(lab.path("cache")),
        resume: Resume::Never,
        granularity: if seed % 3 == 1 { Granularity::Fixed(1) } else { Granularity::Adaptive },
        memory_bytes: Some(if seed % 7 == 3 { TIGHT_BYTES } else { 1 << 32 }),
        ..Options::default()
    };
    let work = || {
        let mut faults = Vec::new();
        loop {
            let from = next.fetch_add(BATCH, Ordering::SeqCst);
            if from >= first + count {
                return faults;
            }
            let seeds = from..(from + BATCH).min(first + count);
            let jobs = written(&lab, from, seeds.end - from);
            for seed in seeds {
                let folder = jobs.join(seed.to_string());
                fs::copy(lab.path("kernel.wasm"), folder.join("kernel.wasm")).unwrap();
                let (ranks, options) = (1 + (seed % 5) as u32, options(seed));
                let job = Job::load(&folder.join("job.toml")).unwrap();
                let (threads, memory_bytes) = (options.threads.unwrap(), options.memory_bytes.unwrap());
                let machine = Machine { ranks, ranks_per_node: ranks, threads, memory_bytes };
                let plan = match plan::plan(&job, &exec::layouts(&job).unwrap(), &machine) {
                    Err(PlanError::OverBudget { .. }) if memory_bytes == TIGHT_BYTES => {
                        refused.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    plan => plan.unwrap(),
                };
                let stages =
                    |which: fn(&plan::StagePlan) -> bool| plan.stages.iter().filter(|s| which(s)).count() as u64;
                reductions.fetch_add(stages(|stage| stage.reduce.is_some()), Ordering::Relaxed);
                uncut.fetch_add(stages(|stage| stage.undecided().is_some()), Ordering::Relaxed);
                let mut result = run_here(&folder, ranks, &options).and_then(|()| compare(&folder));
                if seed % LAUNCHED == 3 && result.is_ok() {
                    result = launched(&folder, ranks, &lab.path("cache")).and_then(|()| compare(&folder));
                }
                if let Err(fault) = result {
                    faults.push(format!("seed {seed} on {ranks} ranks: {fault}"));
                    println!("{}", faults[faults.len() - 1]);
                }
            }
            fs::remove_dir_all(jobs).unwrap();
        }
    };
    let faults: Vec<String> = thread::scope(|scope| {
        let workers = [(); 2].map(|()| scope.spawn(work));
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let [reductions, uncut, refused] = [reductions, uncut, refused].map(AtomicU64::into_inner);
    println!(
        "{count} jobs from seed {first} on, {refused} of them refused for memory: {reductions} stages reduce by parts, \
         {uncut} leave open what may be cut"
    );
    assert!(faults.is_empty(), "{} of {count}: {}", faults.len(), faults.join("\n"));
    assert!(count < JOBS || (reductions > count / 10 && uncut > count / 50 && refused < count / 10));
}

/// Sums of row maxima, of a polynomial and of a table's entries: a dimension that is no range of the reduction stays
/// whole.
#[test]
fn what_a_reduction_must_not_cut_stays_whole() {
    let lab = Lab::bare(&[]);
    fs::write(lab.path("k.c"), SUMS).unwrap();
    kernel_build::build(&lab.path("k.c"), &lab.path("k.wasm"), &[]).unwrap();
    // Multiples of a half have sums that are exact in any order.
    let (rows, columns) = (4001u64, 4u64);
    let a: Vec<f64> = (0..rows * columns).map(|i| (i * 7919 % 1009) as f64 / 2.0 - 250.0).collect();
    lab.dataset_of("a.h5", Dtype::F64, &[rows, columns], a.iter().flat_map(|a| a.to_le_bytes()).collect());
    let image: Vec<u8> = (0..401 * 307).map(|i| (i * 31 % 4) as u8).collect();
    lab.dataset_of("image.h5", Dtype::U8, &[401, 307], image.clone());
    let table = [17i32, -3, 1009, 64];
    lab.dataset_of("table.h5", Dtype::I32, &[4], table.iter().flat_map(|t| t.to_le_bytes()).collect());
    let largest: f64 = a.chunks(4).map(|row| row.iter().copied().fold(f64::MIN, f64::max)).sum();
    let polynomial: f64 = a.iter().map(|a| ((4.0 * a + 3.0) * a + 2.0) * a + 1.0).sum();
    let total: i32 = image.iter().map(|i| table[usize::from(*i)]).sum();
    for (reduce, cut) in [("", false), ("reduce = [\"y\"]", true)] {
        let stage = |export: &str, compute: &str| {
            format!(
                "[[stages]]\nname = \"{export}\"\nkernel = \"k.wasm\"\nexport = \"{export}\"\ncompute = \"{compute}\"\ncombine = \"sum\"\n{reduce}\n"
            )
        };
        let output = |name: &str, dtype: &str| {
            format!("[tensors.{name}]\ncreate = \"out.h5\"\ndataset = \"{name}\"\ndtype = \"{dtype}\"\n")
        };
        let input = |name: &str| format!("[tensors.{name}]\nfile = \"{name}.h5\"\ndataset = \"x\"\n");
        let job = [
            ["a", "image", "table"].map(input).concat(),
            "[tensors.p]\nvalues = [1, 2, 3, 4]\ndtype = \"f64\"\n".to_owned(),
            output("s", "f64") + &output("q", "f64") + &output("total", "i32"),
            stage("rowmax", "a[y,x] -> s[]"),
            stage("poly", "a[y,x], p[k] -> q[]"),
            stage("lookup", "image[y,x], table[k] -> total[]"),
        ];
        fs::write(lab.path("job.toml"), job.concat()).unwrap();
        for ranks in [1, 2, 3, 4, 7] {
            let output = lab.output(ranks, &["--threads", "1", "--fresh"]);
            assert!(output.status.success(), "{}", text(&output));
            for (dataset, expected) in [("s", largest), ("q", polynomial)] {
                assert!(lab.read("out.h5", dataset) == expected.to_le_bytes(), "{dataset} on {ranks} ranks, {reduce}");
            }
            assert!(lab.read("out.h5", "total") == total.to_le_bytes(), "total on {ranks} ranks, {reduce}");
            let said = text(&output);
            let noted =
                said.contains("stage 'rowmax': every task gets all of y, x") && said.contains("reduce = [\"y\"");
            assert!(noted != cut, "{said}");
        }
        let plan = Command::new(EXUVIA).args(["plan", "--explain", "--ranks", "3"]).arg(lab.path("job.toml")).output();
        let said = text(&plan.unwrap());
        let (y, k) = match cut {
            true => {
                ("y is reduced ('reduce' names it)", "k is whole (no output has it, and 'reduce' does not name it)")
            }
            false => ("y is whole (no output has it, nor others", "k is whole (no output has it, nor others"),
        };
        assert!(said.contains(y) && said.contains(k), "{said}");
    }
}

/// A stage with the most possible dimensions, in which every dimension that no output has is reduced: it has more axes
/// than a tensor has dimensions.
#[test]
fn eight_dimensions_and_three_reductions_are_planned_and_right() {
    let lab = Lab::bare(&[]);
    fs::write(lab.path("k.c"), SUMS).unwrap();
    kernel_build::build(&lab.path("k.c"), &lab.path("k.wasm"), &[]).unwrap();
    let (a, b): (Vec<i32>, Vec<i32>) = ((0..256).collect(), (0..31 * 37 * 41).map(|i| i * 7919 % 1009).collect());
    let bytes = |numbers: &[i32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    lab.dataset_of("a.h5", Dtype::I32, &[2; 8], bytes(&a));
    lab.dataset_of("b.h5", Dtype::I32, &[31, 37, 41], bytes(&b));
    let text = "[tensors.a]\nfile = \"a.h5\"\ndataset = \"x\"\n[tensors.b]\nfile = \"b.h5\"\ndataset = \"x\"\n\
                [tensors.o]\ncreate = \"out.h5\"\ndataset = \"o\"\ndtype = \"i32\"\n\
                [[stages]]\nkernel = \"k.wasm\"\nexport = \"times_sum\"\ncombine = \"sum\"\n\
                reduce = [\"i\", \"j\", \"k\"]\ncompute = \"a[a,b,c,d,e,f,g,h], b[i,j,k] -> o[h,g,f,e,d,c,b,a]\"\n";
    fs::write(lab.path("job.toml"), text).unwrap();
    let job = Job::load(&lab.path("job.toml")).unwrap();
    let sum: i32 = b.iter().sum();
    let expected: Vec<i32> = (0..=255u8).map(|i| i32::from(i.reverse_bits()).wrapping_mul(sum)).collect();
    for ranks in [1, 2, 3, 5] {
        let machine = Machine { ranks, ranks_per_node: ranks, threads: 1, memory_bytes: 1 << 32 };
        let plan = plan::plan(&job, &exec::layouts(&job).unwrap(), &machine).unwrap();
        assert_eq!(plan.stages[0].split.len(), 11);
        lab.run(ranks, &["--threads", "1", "--fresh"]);
        assert!(lab.read("out.h5", "o") == bytes(&expected), "{ranks} ranks");
    }
}

const SUMS: &str = r#"
#include "exuvia.h"
EXUVIA_EXPORT(rowmax) int32_t rowmax(const exuvia_view *v, uint32_t c)
{
    const double *a = exuvia_data(&v[0]);
    double sum = 0;
    for (uint32_t y = 0; y < v[0].extent[0]; y++, a += v[0].extent[1]) {
        double top = a[0];
        for (uint32_t x = 1; x < v[0].extent[1]; x++)
            top = a[x] > top ? a[x] : top;
        sum += top;
    }
    *(double *)exuvia_data(&v[1]) = sum;
    return c != 2;
}
/* a[a,...,h], b[i,j,k] -> o[h,...,a]: each element of a times the sum of b */
EXUVIA_EXPORT(times_sum) int32_t times_sum(const exuvia_view *v, uint32_t c)
{
    const int32_t *a = exuvia_data(&v[0]), *b = exuvia_data(&v[1]);
    int32_t *o = exuvia_data(&v[2]);
    uint32_t sum = 0, count = 1, all = 1;
    for (uint32_t d = 0; d < 3; d++)
        count *= v[1].extent[d];
    for (uint32_t d = 0; d < 8; d++)
        all *= v[2].extent[d];
    for (uint32_t i = 0; i < count; i++)
        sum += b[i];
    for (uint32_t i = 0; i < all; i++) {
        uint32_t at = 0;
        for (uint32_t d = 8, rest = i; d-- > 0; rest /= v[2].extent[d])
            at += rest % v[2].extent[d] * v[0].stride[7 - d];
        o[i] = a[at] * sum;
    }
    return c != 3;
}
EXUVIA_EXPORT(poly) int32_t poly(const exuvia_view *v, uint32_t c)
{
    const double *a = exuvia_data(&v[0]), *p = exuvia_data(&v[1]);
    double sum = 0;
    for (uint32_t i = 0; i < v[0].extent[0] * v[0].extent[1]; i++) {
        double value = 0;
        for (uint32_t k = v[1].extent[0]; k-- > 0;)
            value = value * a[i] + p[k];
        sum += value;
    }
    *(double *)exuvia_data(&v[2]) = sum;
    return c != 3;
}
EXUVIA_EXPORT(lookup) int32_t lookup(const exuvia_view *v, uint32_t c)
{
    const uint8_t *image = exuvia_data(&v[0]);
    const int32_t *table = exuvia_data(&v[1]);
    int32_t sum = 0;
    for (uint32_t i = 0; i < v[0].extent[0] * v[0].extent[1]; i++)
        sum += table[image[i]];
    *(int32_t *)exuvia_data(&v[2]) = sum;
    return c != 3;
}
"#;

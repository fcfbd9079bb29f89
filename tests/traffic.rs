//! The bytes that move between ranks agree with the plan, the report and the counts of MPI itself, and are close to the
//! least possible number.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::lab::{Lab, root, text};
use exuvia::job::{Job, Source};
use exuvia::plan::{self, Layout, Machine, Plan, SHARED_BYTES};
use exuvia::report::Report;
use exuvia::store;
use exuvia::tensor::Dtype;

/// The number of bytes in the trailer after every transfer.
const STAMP_BYTES: u64 = 12;
/// The tag of messages with planned tensors. `exec::link` numbers the tags.
const SHARD: u64 = 7;
const PARTIAL: u64 = 8;
/// The header that identifies the sum of a partial result.
const PARTIAL_HEADER_BYTES: u64 = 16;
const KINDS: u64 = 16;

/// The numbers of messages and bytes.
type Sent = (u64, u64);

/// Builds a library that counts the data that MPI is asked to send.
fn counter(lab: &Lab) -> PathBuf {
    let library = lab.path("libcount.so");
    let compiler = std::env::var("MPICC").unwrap_or_else(|_| "mpicc".to_owned());
    let mut command = Command::new(&compiler);
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(root().join("tests/pmpi/count.c"));
    let output = command.output().unwrap_or_else(|error| panic!("{compiler}: {error}"));
    assert!(output.status.success(), "{}", text(&output));
    library
}

/// Returns the data that MPI sent between ranks, by kind of tag.
fn sent(lab: &Lab, ranks: u32) -> BTreeMap<u64, Sent> {
    let mut all = BTreeMap::new();
    for rank in 0..ranks {
        let lines = fs::read_to_string(lab.path(&format!("counts/{rank}"))).unwrap();
        for line in lines.lines() {
            let [_, tag, messages, bytes] = line.split(' ').map(|n| n.parse().unwrap()).collect::<Vec<u64>>()[..]
            else {
                panic!("{line}")
            };
            let sum: &mut Sent = all.entry(tag % KINDS).or_default();
            *sum = (sum.0 + messages, sum.1 + bytes);
        }
    }
    all
}

fn planned(lab: &Lab, ranks: u32) -> Plan {
    let job = Job::load(&lab.path("job.toml")).unwrap();
    let mut layouts = BTreeMap::new();
    for decl in job.tensors.values() {
        if let Source::File { file, dataset } = &decl.source {
            let info = store::describe(file, dataset).unwrap();
            layouts.insert(decl.name.clone(), Layout { dtype: info.dtype, shape: info.shape, chunk: info.chunk });
        }
    }
    let machine = Machine { ranks, ranks_per_node: ranks, threads: 1, memory_bytes: 1 << 32 };
    plan::plan(&job, &layouts, &machine).unwrap()
}

fn run(lab: &Lab, ranks: u32) -> Report {
    fs::create_dir_all(lab.path("counts")).unwrap();
    let environment = [("LD_PRELOAD", &*counter(lab)), ("PMPI_COUNTS", &*lab.path("counts"))];
    lab.run_with(ranks, &["--threads", "1", "--no-steal"], if ranks == 1 { &[] } else { &environment })
}

/// Returns the bytes of inputs that ranks read for other ranks that need the same part, and how many of these bytes are
/// in memory that they share.
fn given(plan: &Plan) -> (u64, u64) {
    let (mut given, mut shared) = (0, 0);
    for stage in &plan.stages {
        for operand in (0..stage.operands.len()).filter(|operand| stage.is_shared(*operand)) {
            for rank in 0..plan.machine.ranks {
                let bytes = stage.share(operand, rank).elements() * stage.operands[operand].dtype.size_bytes() as u64;
                let to_all = bytes * (stage.sharers(operand, rank).len() as u64 - 1);
                given += to_all;
                shared += if bytes >= SHARED_BYTES { to_all } else { 0 };
            }
        }
    }
    (given, shared)
}

/// Tests that a run moves the data that the plan predicts (by closed forms) and that MPI was asked to send, and little
/// more than the least possible.
#[test]
fn plans_foretell_the_bytes_that_mpi_sends() {
    let lab = Lab::new(&["heat", "matmul", "histogram", "transpose", "variance", "multigrid"]);
    let halos = [("heat3d", 1.10), ("multigrid", 1.16)];
    let others = [("matmul", 1.10), ("histogram", 1.0), ("transpose", 1.0), ("variance", 1.25)];
    for (name, limit) in halos.into_iter().chain(others) {
        // The plan describes one iteration after the first, which reads its file.
        lab.job(name, |job| match name {
            "multigrid" => job.split("[iterate]").next().unwrap().to_owned(),
            _ => job.replace("count = ", "count = 2 # "),
        });
        for ranks in [1, 2, 3, 4, 8, 16] {
            let (report, plan) = (run(&lab, ranks), planned(&lab, ranks));
            let (moved, total) = (report.totals().moved, report.totals().moved_bytes());
            assert_eq!(total, plan.totals().bytes.moved, "{name} on {ranks} ranks");
            if ranks == 1 {
                assert_eq!(total, 0, "{name}");
                continue;
            }
            let least: f64 = plan.stages.iter().map(|stage| stage.least_moved_bytes(1)).sum();
            println!("{name} on {ranks} ranks: {total} bytes, {:.3} times the least", total as f64 / least.max(1.0));
            assert!(total as f64 <= limit * least, "{name} on {ranks} ranks: {total} over {least}");
            let sent = sent(&lab, ranks);
            let of_kind = |kind| {
                let (messages, bytes) = sent.get(&kind).copied().unwrap_or_default();
                (messages, bytes - messages * STAMP_BYTES)
            };
            let (messages, bytes) = of_kind(PARTIAL);
            // Where two indices are reduced, some messages carry the group of the other index.
            let tensors = bytes - messages * PARTIAL_HEADER_BYTES;
            let reduced = moved.reduce.moved();
            assert!((reduced..=reduced + messages * 8).contains(&tensors), "{name} on {ranks} ranks: {tensors}");
            assert!(tensors == reduced || name == "multigrid");
            // The only operand that all ranks need is the number of rows that variance counts; collectives are not in
            // `sent`.
            let broadcast = moved.operand.moved();
            assert!(broadcast == 0 || name == "variance");
            let shared = given(&plan).1;
            assert_eq!(of_kind(SHARD).1, total - reduced - broadcast - shared, "{name} on {ranks} ranks");
        }
    }
}

/// Tests two products one after the other. For data that all ranks of a node need, each holds a part and the others
/// read it there.
#[test]
fn what_ranks_of_a_node_share_is_in_no_message() {
    let lab = Lab::bare(&["matmul"]);
    let numbers = |count: u64| (0..count).flat_map(|i| ((i * 7919 % 1009) as f32 - 504.0).to_le_bytes()).collect();
    for (name, shape) in [("a", [1024, 256]), ("b", [256, 1024]), ("e", [1024, 1024])] {
        lab.dataset_of(&format!("{name}.h5"), Dtype::F32, &shape, numbers(shape[0] * shape[1]));
    }
    let product = |name: &str, compute: &str| {
        format!("[[stages]]\nname = \"{name}\"\nkernel = \"matmul.wasm\"\ncompute = \"{compute}\"\ncombine = \"sum\"\n")
    };
    let file = |name: &str| format!("{name} = {{ file = \"{name}.h5\", dataset = \"x\" }}\n");
    let text = format!(
        "[tensors]\n{}{}{}c = {{ dtype = \"f32\" }}\n\
         d = {{ create = \"out.h5\", dataset = \"d\", dtype = \"f32\" }}\n{}{}",
        file("a"),
        file("b"),
        file("e"),
        product("first", "a[m,k], b[k,n] -> c[m,n]"),
        product("second", "c[m,n], e[n,p] -> d[m,p]"),
    );
    fs::write(lab.path("job.toml"), text).unwrap();
    let expected = lab.results(&run(&lab, 1));
    for ranks in [2, 3, 4, 7] {
        let (report, plan) = (run(&lab, ranks), planned(&lab, ranks));
        assert!(lab.results(&report) == expected, "{ranks} ranks");
        let (moved, shared) = given(&plan);
        println!("{ranks} ranks share {shared} of {moved} bytes");
        assert!(shared > 0, "{ranks} ranks");
        assert_eq!(report.totals().moved.input.node, moved, "{ranks} ranks");
        let (messages, bytes) = sent(&lab, ranks).get(&SHARD).copied().unwrap_or_default();
        assert_eq!(bytes - messages * STAMP_BYTES, moved - shared, "{ranks} ranks");
    }
}

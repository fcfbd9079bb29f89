use super::*;
use crate::job::{Cut, Why};
use crate::tensor::Region;
use crate::tensor::{Dtype, Shape};
use std::path::Path;

pub(super) fn machine(ranks: u32) -> Machine {
    Machine { ranks, ranks_per_node: 2, threads: 4, memory_bytes: 4 << 30 }
}

pub(super) fn layout(dtype: Dtype, shape: &[u64], chunk: Option<&[u64]>) -> Layout {
    Layout { dtype, shape: Shape::new(shape).unwrap(), chunk: chunk.map(<[u64]>::to_vec) }
}

pub(super) type Layouts = BTreeMap<String, Layout>;

pub(super) fn layouts(given: impl IntoIterator<Item = (&'static str, Layout)>) -> Layouts {
    given.into_iter().map(|(name, layout)| (name.to_owned(), layout)).collect()
}

pub(super) fn job(text: &str) -> Job {
    Job::parse(text, Path::new("jobs/test.toml")).unwrap()
}

pub(super) const KNN: &str = r#"
name = "digits-knn"
[tensors]
train = { file = "d.h5", dataset = "train" }
test = { file = "d.h5", dataset = "test" }
k = { value = 5, dtype = "u32" }
predicted = { create = "o.h5", dataset = "p", dtype = "u8", chunk = [256], deflate = 4 }
[[stages]]
name = "classify"
kernel = "knn.wasm"
compute = "test[q,d], train[n,d], k[] -> predicted[q]"
limits = { memory = "256MiB" }
"#;

pub(super) fn knn_layouts() -> Layouts {
    layouts([
        ("train", layout(Dtype::U8, &[60000, 784], Some(&[1000, 784]))),
        ("test", layout(Dtype::U8, &[1000, 784], None)),
    ])
}

pub(super) const TWO: &str = r#"
name = "blur-and-sum"
[tensors]
image = { file = "i.h5", dataset = "image" }
gain = { file = "i.h5", dataset = "gain" }
tmp = { dtype = "f32" }
sum = { create = "o.h5", dataset = "sum", dtype = "f64" }
[[stages]]
kernel = "gain.wasm"
compute = "image[y,x,c], gain[c] -> tmp[y,x,c]"
[[stages]]
kernel = "sum.wasm"
compute = "tmp[y,x,c] -> sum[]"
"#;

pub(super) fn two_layouts() -> Layouts {
    layouts([
        ("image", layout(Dtype::U16, &[2000, 3000, 3], Some(&[256, 256, 3]))),
        ("gain", layout(Dtype::F32, &[3], None)),
    ])
}

pub(super) const MATMUL: &str = r#"
name = "matmul"
[tensors]
a = { file = "m.h5", dataset = "a" }
b = { file = "m.h5", dataset = "b" }
c = { create = "o.h5", dataset = "c", dtype = "f32" }
[[stages]]
kernel = "matmul.wasm"
compute = "a[i,k], b[k,j] -> c[i,j]"
"#;

pub(super) fn matmul_layouts(n: u64) -> Layouts {
    layouts([("a", layout(Dtype::F32, &[n, n], None)), ("b", layout(Dtype::F32, &[n, n], None))])
}

#[test]
fn the_number_of_threads_that_is_said_to_fit_fits() {
    let with = |threads| Machine { threads, memory_bytes: 48 << 20, ..machine(2) };
    assert!(plan(&job(KNN), &knn_layouts(), &with(2)).is_ok());
    assert!(plan(&job(KNN), &knn_layouts(), &with(3)).is_err());
}

#[test]
fn blocks_shrink_to_fit_the_budget() {
    let peak = |memory_bytes| {
        let machine = Machine { memory_bytes, ..machine(1) };
        plan(&job(MATMUL), &matmul_layouts(4096), &machine).unwrap().totals().peak_bytes_per_rank
    };
    assert!(peak(4 << 30) > 16 << 20);
    assert!(peak(16 << 20) <= 16 << 20);
}

#[test]
fn one_rank_plans_read_each_tensor_once() {
    let plan = plan(&job(KNN), &knn_layouts(), &machine(1)).unwrap();
    assert_eq!(plan.totals().bytes, StageBytes { read: 60000 * 784 + 1000 * 784, moved: 0, written: 1000 });
    let seven = super::plan(&job(KNN), &knn_layouts(), &machine(7)).unwrap();
    // Two ranks are on a node, which has one copy.
    assert_eq!(seven.totals().bytes.moved, 3 * 60000 * 784);
    let apart = super::plan(&job(KNN), &knn_layouts(), &Machine { ranks_per_node: 1, ..machine(7) }).unwrap();
    assert_eq!(apart.totals().bytes.moved, 6 * 60000 * 784);
    assert!(apart.stages[0].peak_bytes_per_rank < 2 * 60000 * 784, "workers have no copies");
}

#[test]
fn what_ranks_of_a_node_need_alike_is_in_its_memory_once() {
    let text = MATMUL.replace("c[i,j]\"", "c[i,j]\"\ncombine = \"sum\"");
    let shape = |shape| layout(Dtype::F32, shape, None);
    let layouts = layouts([("a", shape(&[1 << 20, 64])), ("b", shape(&[64, 1 << 20]))]);
    let stage = |ranks_per_node| {
        let machine = Machine { ranks_per_node, ..machine(16) };
        plan(&job(&text), &layouts, &machine).unwrap().stages.remove(0)
    };
    let alone = stage(1);
    assert_eq!(alone.process_grid.as_ref().unwrap().parts, [4, 4, 1]);
    let part = alone.needs(0, 0)[0].elements() * 4;
    assert_eq!(alone.held_bytes, 2 * part);
    // A node has a row of the grid or all of it. Of 4 ranks with the same need, each fills a quarter of the shared copy
    // from bytes that it has read.
    for (ranks_per_node, held_bytes) in [(3, 2 * part), (4, part + part / 2), (16, part)] {
        let stage = stage(ranks_per_node);
        assert_eq!(stage.held_bytes, held_bytes, "{ranks_per_node} ranks a node");
        assert_eq!(alone.peak_bytes_per_rank - stage.peak_bytes_per_rank, alone.held_bytes - held_bytes);
    }
}

#[test]
fn a_stage_without_split_indices_is_one_task_on_rank_0() {
    let plan = plan(&job(TWO), &two_layouts(), &machine(3)).unwrap();
    let stage = &plan.stages[1];
    assert_eq!(stage.units(), 1);
    let blocks: Vec<Vec<Tile>> = (0..3).map(|rank| stage.blocks(rank).collect()).collect();
    assert_eq!(blocks.iter().map(Vec::len).collect::<Vec<_>>(), [1, 0, 0]);
    let tile = &blocks[0][0];
    assert_eq!(stage.task_name(&stage.task(tile, 0, 1)), "stage2@all");
    assert_eq!(stage.region(0, tile), Region::whole(&stage.operands[0].shape));
    assert_eq!(stage.region(1, tile), Region::default());
    // The parts of the output of stage 1 in the memory of ranks 1 and 2 go to rank 0.
    let tmp = &stage.operands[0];
    let elsewhere: u64 = (1..3).flat_map(|rank| plan.stages[0].owned(2, rank)).map(|r| r.elements() * 4).sum();
    assert!(tmp.resident && elsewhere > tmp.bytes() / 2);
    assert_eq!((stage.bytes.read, stage.bytes.moved), (0, elsewhere));
}

#[test]
fn empty_tensors_make_a_valid_plan_without_units() {
    let empty = layouts([
        ("test", layout(Dtype::U8, &[0, 784], Some(&[16, 784]))),
        ("train", layout(Dtype::U8, &[60000, 784], None)),
    ]);
    let plan = plan(&job(KNN), &empty, &machine(3)).unwrap();
    let stage = &plan.stages[0];
    assert_eq!((stage.units(), stage.block_count, stage.bytes.written), (0, 0, 0));
    assert!((0..3).all(|rank| stage.blocks(rank).next().is_none()));
    assert_eq!(stage.operands[3].chunk, None);
    assert!(!render(&plan).is_empty());
}

#[test]
fn tiles_and_tasks_have_names() {
    let plan = plan(&job(KNN), &knn_layouts(), &machine(2)).unwrap();
    let stage = &plan.stages[0];
    let block = stage.blocks(1).next().unwrap();
    assert_eq!(stage.tile_name(&block), "q=512..768");
    assert_eq!(stage.task_axis(&block), 0);
    assert_eq!(stage.task_name(&stage.task(&block, 16, 32)), "classify@q=528..560");
}

#[test]
fn hash_changes_with_everything_that_matters() {
    let hash = |text: &str, layouts: &Layouts, machine: &Machine| plan(&job(text), layouts, machine).unwrap().hash();
    let base = hash(KNN, &knn_layouts(), &machine(2));
    assert_eq!(base, hash(KNN, &knn_layouts(), &machine(2)));
    let edited = |from: &str, to: &str| hash(&KNN.replacen(from, to, 1), &knn_layouts(), &machine(2));
    let relaid =
        |name, layout| hash(KNN, &knn_layouts().into_iter().chain(layouts([(name, layout)])).collect(), &machine(2));
    let others = [
        hash(KNN, &knn_layouts(), &machine(3)),
        hash(KNN, &knn_layouts(), &Machine { threads: 5, ..machine(2) }),
        hash(KNN, &knn_layouts(), &Machine { ranks_per_node: 1, ..machine(2) }),
        hash(KNN, &knn_layouts(), &Machine { memory_bytes: 5 << 30, ..machine(2) }),
        edited("digits-knn", "digits"),
        edited("d.h5", "e.h5"),
        edited("dataset = \"p\"", "dataset = \"q\""),
        edited("value = 5", "value = 6"),
        edited("u32", "u64"),
        edited("256", "128"),
        edited("deflate = 4", "deflate = 5"),
        edited("classify", "class"),
        edited("knn.wasm", "knn2.wasm"),
        edited("256MiB", "257MiB"),
        relaid("test", layout(Dtype::I8, &[1000, 784], None)),
        relaid("test", layout(Dtype::U8, &[1001, 784], None)),
        relaid("test", layout(Dtype::U8, &[1000, 784], Some(&[8, 784]))),
        relaid("train", layout(Dtype::U8, &[60000, 784], None)),
    ];
    for (position, other) in others.iter().enumerate() {
        assert_ne!(*other, base, "{position}");
        assert!(!others[..position].contains(other), "{position}");
    }
}

/// Returns a job with a reduction that reads a table beside its data. `keys` names the indices that may be cut.
fn lookup(keys: &str) -> Job {
    job(&format!(
        "[tensors]\na = {{ file = \"i\", dataset = \"a\" }}\nt = {{ file = \"i\", dataset = \"t\" }}\n\
         o = {{ create = \"o\", dataset = \"o\", dtype = \"f64\" }}\n\
         [[stages]]\nkernel = \"k\"\ncompute = \"a[y,x], t[k] -> o[]\"\ncombine = \"sum\"\n{keys}\n"
    ))
}

#[test]
fn neither_extents_nor_ranks_decide_what_is_cut() {
    let cuts = |keys: &str, [y, x, k]: [u64; 3], ranks| -> Vec<(Cut, Why)> {
        let shapes = layouts([("a", layout(Dtype::F64, &[y, x], None)), ("t", layout(Dtype::F64, &[k], None))]);
        let plan = plan(&lookup(keys), &shapes, &machine(ranks)).unwrap();
        let noted = plan.stages[0].notes.iter().any(|note| note.contains("reduce = [\"y\", \"x\", \"k\"]"));
        assert_eq!(noted, keys.is_empty());
        plan.stages[0].indices.iter().map(|index| (index.cut, index.why)).collect()
    };
    for extents in [[2000, 3, 4], [3, 2000, 4], [3, 4, 90_000], [1, 1, 7], [1, 9, 1], [0, 9, 5]] {
        for ranks in [1, 2, 5] {
            assert_eq!(cuts("", extents, ranks), [(Cut::Whole, Why::Undecided); 3]);
            for (at, keys) in ["reduce = [\"y\"]", "reduce = [\"x\"]"].into_iter().enumerate() {
                let found = cuts(keys, extents, ranks);
                let expected =
                    if extents[at] > 1 { (Cut::Reduced, Why::NamedReduced) } else { (Cut::Whole, Why::OneElement) };
                assert_eq!((found[at], found[2]), (expected, (Cut::Whole, Why::NotNamedReduced)));
            }
        }
    }
}

#[test]
fn what_is_too_large_because_nobody_said_how_to_cut_it_says_so() {
    let shapes = layouts([("a", layout(Dtype::F64, &[1 << 16, 1 << 12], None)), ("t", layout(Dtype::F64, &[4], None))]);
    let refused = |keys: &str| plan(&lookup(keys), &shapes, &machine(2)).unwrap_err().to_string();
    let undecided = refused("");
    assert!(
        undecided.contains("blocks of all") && undecided.contains("'reduce' may name those of y, x"),
        "{undecided}"
    );
    let named = refused("reduce = [\"k\"]\nwhole = [\"y\"]");
    assert!(named.contains("'whole' keeps y from being cut"), "{named}");
    assert!(plan(&lookup("reduce = [\"y\"]"), &shapes, &machine(2)).is_ok());
}

/// Checks that every field of a plan is in its hash: a change to any field changes the hash.
#[test]
fn hash_covers_every_field() {
    let plan = plan(&job(KNN), &knn_layouts(), &machine(2)).unwrap();
    let edits: [fn(&mut Plan); 12] = [
        |p| p.job_hash.replace_range(0..1, "z"),
        |p| p.machine.threads += 1,
        |p| p.stages[0].unit[0] += 1,
        |p| p.stages[0].grid[0] += 1,
        |p| p.stages[0].block_units += 1,
        |p| p.stages[0].block[0] += 1,
        |p| p.stages[0].ranks += 1,
        |p| p.stages[0].arena_bytes += 1,
        |p| p.stages[0].indices[0].cut = Cut::Whole,
        |p| p.stages[0].operands[1].distribution = Distribution::Split,
        |p| p.stages[0].operands[3].deflate = None,
        |p| p.stages[0].notes.push(String::new()),
    ];
    for (position, edit) in edits.iter().enumerate() {
        let mut other = plan.clone();
        edit(&mut other);
        assert_ne!(other.hash(), plan.hash(), "{position}");
    }
}

#[test]
fn a_hundred_thousand_ranks_and_a_billion_units_make_a_small_plan() {
    let text = r#"
    [tensors]
    x = { file = "x.h5", dataset = "x" }
    y = { create = "y.h5", dataset = "y", dtype = "f32", chunk = [1, 1, 4] }
    [[stages]]
    kernel = "k.wasm"
    compute = "x[i,j,k] -> y[i,j,k]"
    "#;
    let given = layouts([("x", layout(Dtype::F32, &[1000, 1000, 4000], Some(&[1, 1, 4])))]);
    let job = job(text);
    // `benches/sched.rs` measures the speed. Here, an algorithm that visits all units or pairs of ranks would not
    // return.
    let plan = plan(&job, &given, &machine(100_000)).unwrap();
    let stage = &plan.stages[0];
    assert_eq!(stage.units(), 1_000_000_000, "{:?}", stage.unit);
    assert_eq!(stage.bytes.written, 16_000_000_000);
    assert!(serde_json::to_string(&plan).unwrap().len() < 4096);
    assert_eq!(stage.blocks(99_999).map(|tile| tile.0.elements()).sum::<u64>(), 10_000 * 4);
    // There are two axes, and each input lacks one of them.
    let job = self::job(MATMUL);
    let plan = super::plan(&job, &matmul_layouts(1 << 20), &machine(100_000)).unwrap();
    assert_eq!(plan.totals().bytes.written, 4 << 40);
}

#[test]
fn halos_wider_than_their_tensor_are_refused() {
    let text = "[tensors]\na = { file = \"i\", dataset = \"a\" }\nb = { create = \"o\", dataset = \"b\", dtype = \"u8\" }\n\
                [[stages]]\nkernel = \"k\"\ncompute = \"a[y~WIDTH] -> b[y]\"\nboundary = \"periodic\"\n";
    let planned = |width: &str| {
        let layouts = layouts([("a", layout(Dtype::U8, &[40], None))]);
        plan(&job(&text.replace("WIDTH", width)), &layouts, &machine(3)).map_err(|error| error.to_string())
    };
    assert!(planned("40").is_ok());
    for width in ["41", "9223372036854775807", "18446744073709551615"] {
        let error = planned(width).unwrap_err();
        assert!(error.contains("wider than dimension 0") && error.contains("at most y~40"), "{error}");
    }
}

/// Returns the plan of two stages, and the bytes that the second moves because the first left its tensor divided
/// differently.
fn shuffled(first: &str, second: &str, shape: &[u64], ranks: u32) -> (Plan, u64) {
    let text = format!(
        "[tensors]\na = {{ file = \"i\", dataset = \"a\" }}\nt = {{ dtype = \"f64\" }}\n\
         b = {{ create = \"o\", dataset = \"b\", dtype = \"f64\" }}\n\
         [[stages]]\nkernel = \"k\"\ncompute = \"{first}\"\nboundary = \"clamp\"\n\
         [[stages]]\nkernel = \"k\"\ncompute = \"{second}\"\n"
    );
    let layouts = layouts([("a", layout(Dtype::F64, shape, None))]);
    let plan = plan(&job(&text), &layouts, &machine(ranks)).unwrap();
    let moved = plan.stages[1].bytes.moved;
    (plan, moved)
}

/// A transposed copy moves nothing: the ranks of the second stage are numbered by the axes of the first.
#[test]
fn stages_that_only_rename_axes_move_nothing() {
    for ranks in [2, 3, 4, 8, 12, 16, 64, 100] {
        for second in ["t[y,x] -> b[y,x]", "t[y,x] -> b[x,y]"] {
            let (plan, moved) = shuffled("a[y~1,x~1] -> t[y,x]", second, &[600, 1200], ranks);
            assert_eq!(moved, 0, "{second} on {ranks} ranks: {:?}", plan.stages[1].process_grid);
        }
    }
    for ranks in [8, 12, 64] {
        let (plan, moved) = shuffled("a[z~1,y~1,x~1] -> t[z,y,x]", "t[z,y,x] -> b[x,z,y]", &[60, 80, 100], ranks);
        assert_eq!(moved, 0, "{ranks} ranks: {:?}", plan.stages[1].process_grid);
    }
}

/// Where grids must differ, a rank already has part of the data that it needs.
#[test]
fn a_change_of_grids_is_charged_for_what_moves() {
    // In the first stage only `y` has neighbours, in the second only `x`.
    for ranks in [2, 4, 16] {
        let (plan, moved) =
            shuffled("a[y~1,x] -> t[y,x]", "t[y~0,x~1] -> b[y,x]\"\nboundary = \"clamp", &[960, 960], ranks);
        let bytes = 960 * 960 * 8;
        println!("{ranks}: {:?} {moved}", plan.stages.iter().map(|s| s.process_grid.clone()).collect::<Vec<_>>());
        assert!(moved <= bytes / 8, "{moved}");
    }
}

const SCALED: &str = r#"
[tensors]
fine = { file = "i", dataset = "fine" }
coarse = { dtype = "f32" }
again = { create = "o", dataset = "again", dtype = "f32", chunk = [6, 10] }
[[stages]]
kernel = "k"
compute = "fine[2*y~1,3*x] -> coarse[y,x]"
boundary = "zero"
[[stages]]
kernel = "k"
compute = "coarse[y,x], fine[2*y,3*x] -> again[4*y,x]"
"#;

#[test]
fn a_multiple_of_an_index_is_as_many_elements() {
    let layouts = layouts([("fine", layout(Dtype::F32, &[70, 93], Some(&[5, 9])))]);
    let plan = plan(&job(SCALED), &layouts, &machine(3)).unwrap();
    let [first, second] = plan.stages.as_slice() else { panic!("two stages") };
    assert_eq!((first.extent(0), first.extent(1), &*first.operands[1].shape), (35, 31, &[35, 31][..]));
    // Chunks of 5 and 9 elements begin at multiples of 5 pairs and of 3 triples, the values of the indices.
    assert_eq!(first.unit, [5, 3]);
    let tile = Tile(Region { offset: vec![10, 3], extent: vec![5, 6] });
    assert_eq!(first.region(0, &tile), Region { offset: vec![20, 9], extent: vec![10, 18] });
    assert_eq!(first.region(1, &tile), tile.0);
    assert_eq!(first.split_operand_bytes(&tile), 4 * (12 * 18 + 5 * 6));
    assert_eq!(&*second.operands[2].shape, [140, 31]);
    // Chunks of 6 rows begin every 3 values, at 4 rows per value; chunks of 5 begin every 5 values.
    assert!(second.unit.iter().zip([15, 30]).all(|(unit, aligned)| unit.is_multiple_of(aligned)), "{:?}", second.unit);
    let note = "chunks of 5 (fine, 2 to each y) and 6 (again, 4 to each y) along y only meet every 15";
    assert!(second.notes.iter().any(|n| n.contains(note)), "{:?}", second.notes);
    let text = render(&plan);
    assert!(text.contains("fine[2*y,3*x]") && text.contains("again[4*y,x]"), "{text}");
}

#[test]
fn extents_and_multiples_must_agree() {
    let refused = |from: &str, to: &str, shape: [u64; 2], words: &[&str]| {
        let layouts = layouts([("fine", layout(Dtype::F32, &shape, None))]);
        let error = plan(&job(&SCALED.replace(from, to)), &layouts, &machine(2)).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "no '{word}' in: {error}");
        }
    };
    let here = "fine[2*y~1,3*x] (dimension 1 of [70, 92])";
    refused("", "", [70, 92], &["'3*x' needs a multiple of 3", here, "92 long", "90 or 93"]);
    let both = "index 'y' is 14 in fine[5*y,3*x] (dimension 0 of [70, 93]), but 35 in coarse[y,x]";
    refused("fine[2*y,3*x]", "fine[5*y,3*x]", [70, 93], &[both]);
    refused("2*y~1", "2*y~71", [70, 93], &["the halo of 71", "at most 2*y~70"]);
    let huge = "again[9223372036854775807*y,x]";
    refused("again[4*y,x]", huge, [70, 93], &[huge, "cannot exist"]);
}

const HEAT: &str = r#"
tensors.start = { file = "i", dataset = "start" }
tensors.end = { create = "o", dataset = "end", dtype = "f64" }
stages = [{ kernel = "k", compute = "start[y~2,x~1] -> end[y,x]", boundary = "BOUNDARY" }]
iterate = { count = 9, exchange = [["start", "end"]] }
"#;

/// The part of a box that needs no data of other ranks is most of the box, and comes first.
#[test]
fn boxes_are_cut_where_they_wait_for_others() {
    for (boundary, ranks) in [("clamp", 2), ("periodic", 2), ("clamp", 6), ("periodic", 9), ("zero", 7)] {
        let heat = job(&HEAT.replace("BOUNDARY", boundary));
        let layout = |side: u64| layouts([("start", layout(Dtype::F64, &[side, side + 13], None))]);
        let plan = |side| super::plan(&heat, &layout(side), &machine(ranks)).unwrap();
        let small = plan(100).stages.remove(0).process_grid.unwrap();
        assert_eq!(small.rim, [0, 0], "{boundary}, {ranks} ranks: not worth it");
        let plan = plan(1901);
        assert!(render(&plan).contains("borders  with other ranks computed last, y="));
        let stage = &plan.stages[0];
        let mut blocks = 0;
        for rank in 0..ranks {
            let own = &stage.owned(1, rank)[0];
            let waits =
                |tile: &Tile| stage.sources(0, &stage.region(0, tile)).iter().any(|part| !own.contains(&part.source));
            let tiles: Vec<Tile> = stage.blocks(rank).collect();
            blocks += tiles.len() as u64;
            assert!(tiles.iter().all(|tile| (0..2).all(|axis| tile.0.extent[axis] <= stage.block[axis])));
            let elements = |tiles: &[Tile]| tiles.iter().map(|tile| tile.0.elements()).sum::<u64>();
            let disjoint = |(at, a): (usize, &Tile)| tiles[..at].iter().all(|b| a.0.intersect(&b.0).is_none());
            assert!(elements(&tiles) == own.elements() && tiles.iter().enumerate().all(disjoint));
            let interior = tiles.iter().position(waits).unwrap();
            assert!(tiles[interior..].iter().all(waits), "{boundary}, rank {rank} of {ranks}: {tiles:?}");
            assert!(elements(&tiles[..interior]) * 2 >= own.elements(), "{boundary}, rank {rank} of {ranks}");
        }
        assert_eq!(blocks, stage.block_count);
    }
}

//! Properties of every plan, over random shapes, chunks, notations, machines and budgets.

use super::*;
use crate::tensor::{Dtype, Shape};
use crate::tensor::{Region, chunks_of, padded};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;

/// A stage over up to three indices: `a` has all of them, `b` has some, and the outputs have some of those of `a`.
#[derive(Debug, Clone)]
struct Case {
    extents: [u64; 3],
    a_chunk: Option<[u64; 3]>,
    b_dims: Vec<usize>,
    b_chunk: Option<[u64; 3]>,
    out_dims: Vec<usize>,
    out_chunk: Option<[u64; 3]>,
    /// The halo of `a` in its dimensions; all 0 for no halo.
    halo: [u64; 3],
    /// The number of elements of `a`, `b` and the outputs per value of an index.
    scale: [[u64; 3]; 3],
    combine: bool,
    /// Whether `reduce` names all indices that it may.
    reduce: bool,
    whole: Vec<usize>,
    machine: Machine,
}

impl Case {
    fn text(&self) -> String {
        let letter = |d: usize, scale: [u64; 3]| format!("{}*{}", scale[d], ["i", "j", "k"][d]);
        let letters = |dims: &[usize], scale| dims.iter().map(|d| letter(*d, scale)).collect::<Vec<_>>().join(",");
        let [of_a, of_b, of_out] = self.scale;
        let chunk = match (&self.out_chunk, self.out_dims.is_empty()) {
            (Some(chunk), false) => format!(", chunk = {:?}", pick(&self.out_dims, chunk)),
            _ => String::new(),
        };
        let halo = self.halo.map(|width| if width > 0 { format!("~{width}") } else { String::new() });
        let boundary = if self.halo == [0; 3] { "" } else { ", boundary = \"periodic\"" };
        let combine = if self.combine && self.out_dims.len() < 3 { ", combine = \"sum\"" } else { "" };
        // At least one index remains to be combined.
        let is_left = |d: &usize| !self.out_dims.contains(d) && !self.whole.contains(d);
        let left: Vec<usize> = (0..3).filter(is_left).collect();
        let keep = !self.whole.is_empty() && (combine.is_empty() || !left.is_empty());
        let names = |dims: &[usize]| dims.iter().map(|d| ["i", "j", "k"][*d]).collect::<Vec<_>>();
        let whole = if keep { format!(", whole = {:?}", names(&self.whole)) } else { String::new() };
        let reduced = if keep { left } else { (0..3).filter(|d| !self.out_dims.contains(d)).collect() };
        let reduce = match !combine.is_empty() && self.reduce {
            true => format!(", reduce = {:?}", names(&reduced)),
            false => String::new(),
        };
        format!(
            r#"
            tensors.a = {{ file = "a", dataset = "a" }}
            tensors.b = {{ file = "a", dataset = "b" }}
            tensors.o = {{ create = "o", dataset = "o", dtype = "i16"{chunk} }}
            tensors.p = {{ dtype = "f64" }}
            stages = [{{ kernel = "k", compute = "a[{}{},{}{},{}{}], b[{}] -> o[{}], p[{}]"{boundary}{combine}{reduce}{whole} }}]
            "#,
            letter(0, of_a),
            halo[0],
            letter(1, of_a),
            halo[1],
            letter(2, of_a),
            halo[2],
            letters(&self.b_dims, of_b),
            letters(&self.out_dims, of_out),
            letters(&self.out_dims.iter().rev().copied().collect::<Vec<_>>(), of_out),
        )
    }

    /// Returns `None` if even the smallest blocks exceed the budget.
    fn plan(&self) -> Option<Plan> {
        let layout = |dims: &[usize], scale: [u64; 3], chunk: &Option<[u64; 3]>| Layout {
            dtype: Dtype::F32,
            shape: Shape::new(dims.iter().map(|d| self.extents[*d] * scale[*d]).collect::<Vec<_>>()).unwrap(),
            chunk: chunk.as_ref().map(|chunk| pick(dims, chunk)),
        };
        let layouts = BTreeMap::from([
            ("a".to_owned(), layout(&[0, 1, 2], self.scale[0], &self.a_chunk)),
            ("b".to_owned(), layout(&self.b_dims, self.scale[1], &self.b_chunk)),
        ]);
        let job = Job::parse(&self.text(), Path::new("p.toml")).unwrap();
        match plan(&job, &layouts, &self.machine) {
            Ok(plan) => Some(plan),
            Err(PlanError::OverBudget { .. } | PlanError::WideHalo { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

fn pick(dims: &[usize], of: &[u64; 3]) -> Vec<u64> {
    dims.iter().map(|d| of[*d]).collect()
}

fn chunk() -> impl Strategy<Value = Option<[u64; 3]>> {
    proptest::option::of([1u64..9, 1u64..9, 1u64..9])
}

fn some_dims() -> impl Strategy<Value = Vec<usize>> {
    (proptest::sample::subsequence(vec![0, 1, 2], 0..=3)).prop_shuffle()
}

fn case() -> impl Strategy<Value = Case> {
    // The budget covers the guards of four operands and a little for blocks: it is small enough to determine their
    // size.
    let tight = (1u32..4).prop_flat_map(|threads| {
        let guards_bytes = u64::from(threads) * (512 << 10);
        (Just(threads), guards_bytes..guards_bytes + (512 << 10))
    });
    let machine = (1u32..12, prop_oneof![(1u32..4, Just(1u64 << 32)), tight])
        .prop_map(|(ranks, (threads, memory_bytes))| Machine { ranks, ranks_per_node: 2, threads, memory_bytes });
    let extent = prop_oneof![1 => 0u64..2, 9 => 1u64..16];
    let extents = [extent.clone(), extent.clone(), extent];
    let halo = prop_oneof![3 => Just([0; 3]), 1 => [0u64..3, 0u64..3, 0u64..3]];
    let times = [1u64..4, 1u64..4, 1u64..4];
    let scale = prop_oneof![2 => Just([[1; 3]; 3]), 1 => [times.clone(), times.clone(), times]];
    let kind = (halo, scale, any::<bool>(), any::<bool>(), some_dims());
    (extents, chunk(), some_dims(), chunk(), some_dims(), chunk(), machine, kind).prop_map(
        |(extents, a_chunk, b_dims, b_chunk, out_dims, out_chunk, machine, (halo, scale, combine, reduce, whole))| {
            Case {
                extents,
                a_chunk,
                b_dims,
                b_chunk,
                out_dims,
                out_chunk,
                halo,
                scale,
                combine,
                reduce,
                whole,
                machine,
            }
        },
    )
}

/// Returns all points of a box.
fn points(region: &Region) -> Vec<Vec<u64>> {
    (0..region.rank()).fold(vec![vec![]], |prefixes, d| {
        let extend = |prefix: &Vec<u64>| {
            let prefix = prefix.clone();
            (region.offset[d]..region.end(d)).map(move |x| [prefix.as_slice(), &[x]].concat()).collect::<Vec<_>>()
        };
        prefixes.iter().flat_map(extend).collect()
    })
}

/// Returns the numbers of the units that `tile` covers, after checking that it covers them wholly.
fn units_of(stage: &StagePlan, tile: &Tile) -> Vec<u64> {
    let axes = 0..stage.grid.len();
    for axis in axes.clone() {
        assert!(tile.0.offset[axis].is_multiple_of(stage.unit[axis]));
        assert!(tile.0.end(axis).is_multiple_of(stage.unit[axis]) || tile.0.end(axis) == stage.extent(axis));
    }
    let grid_box = Region {
        offset: axes.clone().map(|axis| tile.0.offset[axis] / stage.unit[axis]).collect(),
        extent: axes.clone().map(|axis| tile.0.extent[axis].div_ceil(stage.unit[axis])).collect(),
    };
    points(&grid_box).iter().map(|at| axes.clone().fold(0, |n, axis| n * stage.grid[axis] + at[axis])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn shards_and_blocks_partition_the_units(case in case()) {
        let Some(plan) = case.plan() else { return Ok(()) };
        let stage = &plan.stages[0];
        let ranks = case.machine.ranks;
        let (mut all, mut blocks) = (Vec::new(), 0);
        for rank in 0..ranks {
            let mut units = Vec::new();
            for tile in stage.blocks(rank) {
                let block = units_of(stage, &tile);
                prop_assert!(stage.process_grid.is_some() || block.len() as u64 <= stage.block_units);
                prop_assert!((0..stage.grid.len()).all(|axis| tile.0.extent[axis] <= stage.block[axis]));
                units.extend(block);
                blocks += 1;
            }
            prop_assert_eq!(units.len() as u64, stage.shard_units(rank));
            let of_shard: u64 = stage.shard(rank).iter().map(|tile| units_of(stage, tile).len() as u64).sum();
            prop_assert_eq!(of_shard, stage.shard_units(rank));
            if stage.process_grid.is_none() {
                // Consecutive units are distributed evenly.
                let each = stage.units() / u64::from(ranks);
                prop_assert!((each..=each + 1).contains(&(units.len() as u64)));
                prop_assert!(units.iter().copied().eq(all.len() as u64..(all.len() + units.len()) as u64));
            }
            all.extend(units);
        }
        all.sort_unstable();
        prop_assert!(all.iter().copied().eq(0..stage.units()));
        prop_assert_eq!(blocks, stage.block_count);
    }

    #[test]
    fn every_output_element_is_owned_once_and_every_need_lies_in_its_tensor(case in case()) {
        let Some(plan) = case.plan() else { return Ok(()) };
        let stage = &plan.stages[0];
        for (position, operand) in stage.operands.iter().enumerate() {
            let regions = |rank| match operand.role {
                Role::Output => stage.owned(position, rank),
                Role::Input => stage.needs(position, rank),
            };
            let regions: Vec<Region> = (0..case.machine.ranks).flat_map(regions).collect();
            let whole = Region::whole(&operand.shape);
            prop_assert!(regions.iter().all(|region| whole.contains(region)));
            let mut covered: Vec<Vec<u64>> = regions.iter().flat_map(points).collect();
            if operand.role == Role::Output && stage.units() > 0 {
                covered.sort();
                prop_assert_eq!(covered, points(&whole));
            }
            if stage.is_shared(position) {
                // Together the sharers read the common need once. Together all ranks read the tensor once.
                let mut read = Vec::new();
                for rank in 0..case.machine.ranks {
                    let mine: Vec<Vec<u64>> = points(&stage.share(position, rank));
                    let sharers = stage.sharers(position, rank);
                    let mut of_all: Vec<_> = sharers.iter().flat_map(|r| points(&stage.share(position, *r))).collect();
                    of_all.sort();
                    let mut needed: Vec<_> = stage.needs(position, rank).iter().flat_map(points).collect();
                    needed.sort();
                    prop_assert_eq!(&of_all, &needed);
                    read.extend(mine);
                }
                read.sort();
                prop_assert_eq!(read, points(&whole));
            }
        }
    }

    #[test]
    fn tasks_partition_blocks(case in case(), cuts in proptest::collection::vec(1u64..9, 1..20)) {
        let Some(plan) = case.plan() else { return Ok(()) };
        let stage = &plan.stages[0];
        for block in (0..case.machine.ranks).flat_map(|rank| stage.blocks(rank)) {
            let length = stage.slices(&block);
            let mut tasks = Vec::new();
            let mut start = 0;
            for cut in cuts.iter().cycle() {
                if start == length {
                    break;
                }
                let len = (*cut).min(length - start);
                tasks.extend(points(&stage.task(&block, start, len).0));
                start += len;
            }
            tasks.sort();
            prop_assert_eq!(tasks, points(&block.0));
        }
    }

    #[test]
    fn regions_of_outputs_cover_them_once_and_are_whole_chunks(case in case()) {
        let Some(plan) = case.plan() else { return Ok(()) };
        let stage = &plan.stages[0];
        for (position, operand) in stage.operands.iter().enumerate() {
            let blocks = (0..case.machine.ranks).flat_map(|rank| stage.blocks(rank));
            let regions: Vec<Region> = blocks.map(|tile| stage.region(position, &tile)).collect();
            let whole = Region::whole(&operand.shape);
            prop_assert!(regions.iter().all(|region| whole.contains(region)));
            for region in &regions {
                if operand.distribution == Distribution::Broadcast {
                    prop_assert_eq!(region, &whole);
                }
                if let Some(chunk) = &operand.chunk {
                    for (_, chunk) in chunks_of(&operand.shape, chunk, region) {
                        prop_assert!(region.contains(&chunk), "{} cuts chunk {}", region, chunk);
                    }
                }
            }
            let covered: Vec<Vec<u64>> = regions.iter().flat_map(points).collect();
            let distinct: BTreeSet<&Vec<u64>> = covered.iter().collect();
            if operand.role == Role::Output && stage.reduce.is_none() {
                prop_assert_eq!(covered.len() as u64, operand.shape.elements());
            }
            if stage.units() > 0 && operand.distribution == Distribution::Split {
                prop_assert_eq!(distinct.len() as u64, operand.shape.elements());
            }
            let all_axes = stage.split.iter().all(|index| operand.dims.contains(index));
            if all_axes && operand.distribution == Distribution::Split {
                prop_assert_eq!(covered.len(), distinct.len());
            }
        }
    }

    #[test]
    fn bytes_are_those_of_the_blocks_and_memory_is_kept(case in case()) {
        let Some(plan) = case.plan() else { return Ok(()) };
        let stage = &plan.stages[0];
        let blocks: Vec<Tile> = (0..case.machine.ranks).flat_map(|rank| stage.blocks(rank)).collect();
        let (mut read, mut written) = (0, 0);
        for (position, operand) in stage.operands.iter().enumerate() {
            let element_bytes = operand.dtype.size_bytes() as u64;
            let bytes = |tile: &Tile| padded(&stage.region(position, tile), &operand.halo).elements() * element_bytes;
            let sum: u64 = blocks.iter().map(bytes).sum();
            let tasks = blocks.iter().flat_map(|block| (0..stage.slices(block)).map(|slice| stage.task(block, slice, 1)));
            prop_assert!(tasks.into_iter().all(|tile| bytes(&tile) <= stage.operand_max_bytes(position)));
            let needs = |rank| stage.needs(position, rank);
            let needed: u64 = (0..case.machine.ranks).flat_map(needs).map(|need| need.elements() * element_bytes).sum();
            match (operand.role, operand.distribution) {
                (Role::Output, _) => written += if stage.units() > 0 { operand.bytes() } else { 0 },
                (Role::Input, Distribution::Split) if stage.is_shared(position) => {
                    let share = |rank| stage.share(position, rank).elements() * element_bytes;
                    read += (0..case.machine.ranks).map(share).sum::<u64>();
                }
                (Role::Input, Distribution::Split) if stage.is_held(position) => read += needed,
                (Role::Input, Distribution::Split) => read += sum,
                (Role::Input, Distribution::Broadcast) => read += operand.bytes(),
            }
        }
        prop_assert_eq!((stage.bytes.read, stage.bytes.written), (read, written));
        for tile in &blocks {
            prop_assert!(stage.split_operand_bytes(tile) <= stage.split_operand_bytes_max());
        }
        prop_assert!(stage.peak_bytes_per_rank <= case.machine.memory_bytes);
    }

    #[test]
    fn equal_cases_have_equal_hashes_and_other_machines_do_not(case in case()) {
        let hash = |case: &Case| case.plan().map(|plan| plan.hash());
        let Some(first) = hash(&case) else { return Ok(()) };
        prop_assert_eq!(Some(first), hash(&case));
        let mut other = case.clone();
        other.machine.ranks += 1;
        prop_assert_ne!(Some(first), hash(&other));
        let mut other = case.clone();
        other.extents[0] += 1;
        prop_assert_ne!(Some(first), hash(&other));
    }
}

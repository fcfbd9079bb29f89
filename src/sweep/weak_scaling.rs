//! Weak scaling: the dimensions of tensors that grow with an index, and inputs of the new size.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::job::{Job, Source};
use crate::store::{OutputSpec, Reader, Staging, compress_chunks};
use crate::sweep::error::SweepError;
use crate::tensor::{Region, Shape};

/// The number of elements that are copied at a time.
const BLOCK_ELEMENTS: u64 = 8 << 20;

/// The parts of a job that grow.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JobGrowth {
    /// The growing dimensions of each tensor.
    pub dims: BTreeMap<String, BTreeSet<usize>>,
    /// The growing indices, with the position of their stage.
    pub indices: BTreeSet<(usize, String)>,
}

/// Returns what grows with an index: in the stages that have it, and in all other stages that share a tensor with them.
pub fn growth(job: &Job, index: &str) -> Result<JobGrowth, SweepError> {
    let mut growth = JobGrowth::default();
    let operands = |stage: usize| job.stages[stage].compute.inputs.iter().chain(&job.stages[stage].compute.outputs);
    let mut known = BTreeSet::new();
    for stage in 0..job.stages.len() {
        for found in operands(stage).flat_map(|operand| &operand.indices) {
            known.insert(found.name.clone());
            if found.name == index {
                growth.indices.insert((stage, found.name.clone()));
            }
        }
    }
    if growth.indices.is_empty() {
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        return Err(SweepError::NoIndex { index: index.to_owned(), known });
    }
    // A growing dimension makes its index grow in every stage that has the tensor, and an index makes its dimensions
    // grow.
    loop {
        let before = growth.clone();
        for stage in 0..job.stages.len() {
            for operand in operands(stage) {
                for (dim, found) in operand.indices.iter().enumerate() {
                    let key = (stage, found.name.clone());
                    let dims = growth.dims.entry(operand.tensor.clone()).or_default();
                    if growth.indices.contains(&key) {
                        dims.insert(dim);
                    } else if dims.contains(&dim) {
                        growth.indices.insert(key);
                    }
                }
            }
        }
        for pair in job.iterate.iter().flat_map(|iterate| &iterate.exchange) {
            let both = [&pair.read, &pair.written].map(|tensor| growth.dims.get(tensor).cloned().unwrap_or_default());
            let both: BTreeSet<usize> = both.into_iter().flatten().collect();
            growth.dims.insert(pair.read.clone(), both.clone());
            growth.dims.insert(pair.written.clone(), both);
        }
        if growth == before {
            break;
        }
    }
    growth.dims.retain(|_, dims| !dims.is_empty());
    for tensor in growth.dims.keys() {
        if let Some(Source::Inline { .. }) = job.tensors.get(tensor).map(|decl| &decl.source) {
            let why = format!("'{tensor}' is a constant of the job file and cannot grow");
            return Err(SweepError::Rigid { index: index.to_owned(), why });
        }
    }
    Ok(growth)
}

/// Writes to `target` a dataset that repeats another one `times` times along some dimensions, in the same storage
/// layout.
pub fn repeat(
    (file, dataset): (&Path, &str),
    dims: &BTreeSet<usize>,
    times: u64,
    target: &Path,
    deflate: Option<u8>,
) -> Result<(), SweepError> {
    let failed = |source| SweepError::Store { source };
    let reader = Reader::open(file, dataset).map_err(failed)?;
    let old = &reader.info().shape;
    let extents: Vec<u64> =
        (0..old.rank()).map(|dim| if dims.contains(&dim) { old[dim] * times } else { old[dim] }).collect();
    let shape = Shape::new(extents).map_err(|error| SweepError::Rigid {
        index: dataset.to_owned(),
        why: format!("'{dataset}' would be too large ({error})"),
    })?;
    let spec = OutputSpec {
        dataset: dataset.to_owned(),
        dtype: reader.info().dtype,
        shape: shape.clone(),
        chunk: reader.info().chunk.clone(),
        deflate,
    };
    let mut staging = Staging::begin(target, "bench").map_err(failed)?;
    let layout = staging.create(std::slice::from_ref(&spec)).map_err(failed)?.remove(0);
    for region in regions(&shape, spec.chunk.as_deref()) {
        let bytes = read_periodic(&reader, &region)?;
        match spec.deflate {
            Some(_) => {
                let chunks = compress_chunks(&layout, &region, &bytes).map_err(failed)?;
                staging.write_chunks(&layout, &chunks).map_err(failed)?;
            }
            None => {
                let mut writer = crate::store::Writer::open(&layout).map_err(failed)?;
                writer.write(&region, &bytes).map_err(failed)?;
            }
        }
    }
    staging.publish().map_err(failed)
}

/// Divides a tensor along its first dimension into regions of whole chunks, of limited size if possible.
fn regions(shape: &Shape, chunk: Option<&[u64]>) -> Vec<Region> {
    let Some(length) = shape.first().copied() else { return vec![Region::whole(shape)] };
    let row: u64 = shape[1..].iter().product::<u64>().max(1);
    let step = chunk.map_or(1, |chunk| chunk[0]);
    let rows = (BLOCK_ELEMENTS / row / step).max(1) * step;
    let region = |start: u64| {
        let mut region = Region::whole(shape);
        (region.offset[0], region.extent[0]) = (start, rows.min(length - start));
        region
    };
    (0..length.div_ceil(rows)).map(|at| region(at * rows)).collect()
}

/// Reads a region of the dataset, repeated periodically in all dimensions.
fn read_periodic(reader: &Reader, region: &Region) -> Result<Vec<u8>, SweepError> {
    let info = reader.info();
    let element_bytes = info.dtype.size_bytes();
    let mut bytes = vec![0; region.elements() as usize * element_bytes];
    let mut part = Vec::new();
    // The intervals of each dimension that do not cross a period; their products are boxes.
    let runs: Vec<Vec<(u64, u64)>> = (0..region.rank())
        .map(|dim| split_at_periods(region.offset[dim], region.extent[dim], info.shape[dim]))
        .collect();
    let count: usize = runs.iter().map(Vec::len).product();
    for number in 0..count {
        let mut rest = number;
        let mut there = Region::empty(region.rank());
        for (dim, runs) in runs.iter().enumerate().rev() {
            (there.offset[dim], there.extent[dim]) = runs[rest % runs.len()];
            rest /= runs.len();
        }
        let here: Vec<u64> = there.offset.iter().zip(info.shape.iter()).map(|(at, extent)| at % extent).collect();
        let here = Region { offset: here, extent: there.extent.clone() };
        reader.read(&here, &mut part).map_err(|source| SweepError::Store { source })?;
        crate::tensor::copy_region(&part, &there, &mut bytes, region, &there, element_bytes);
    }
    Ok(bytes)
}

/// Splits `length` elements from `start` on at the ends of periods.
fn split_at_periods(start: u64, length: u64, period: u64) -> Vec<(u64, u64)> {
    let (mut at, end) = (start, start + length);
    let mut runs = Vec::new();
    while at < end {
        let next = ((at / period + 1) * period).min(end);
        runs.push((at, next - at));
        at = next;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Writer;
    use crate::tensor::Dtype;

    const JOB: &str = r#"
[tensors]
x = { file = "x.h5", dataset = "x" }
w = { file = "x.h5", dataset = "w" }
mid = { dtype = "f32" }
sum = { create = "out.h5", dataset = "s", dtype = "f32" }
k = { values = [1, 2], dtype = "u32" }
[[stages]]
name = "a"
kernel = "k.wasm"
compute = "x[n,d], w[d,e], k[q] -> mid[n,e,t]"
sizes = { t = 3 }
[[stages]]
name = "b"
kernel = "k.wasm"
compute = "mid[i,j,t] -> sum[i]"
"#;

    fn grown(index: &str) -> Result<JobGrowth, SweepError> {
        growth(&Job::parse(JOB, Path::new("job.toml")).unwrap(), index)
    }

    #[test]
    fn connected_dimensions_grow_too() {
        let dims = |growth: JobGrowth| -> Vec<(String, Vec<usize>)> {
            growth.dims.into_iter().map(|(tensor, dims)| (tensor, dims.into_iter().collect())).collect()
        };
        // Index 'n' is called 'i' in the second stage.
        let n = grown("n").unwrap();
        assert!(n.indices.contains(&(1, "i".to_owned())) && n.indices.len() == 2, "{n:?}");
        assert_eq!(dims(n), [("mid".into(), vec![0]), ("sum".into(), vec![0]), ("x".into(), vec![0])]);
        let t = grown("t").unwrap();
        assert_eq!((t.indices.len(), dims(t)), (2, vec![("mid".into(), vec![2])]));
        assert_eq!(dims(grown("d").unwrap()), [("w".into(), vec![0]), ("x".into(), vec![1])]);
        let error = grown("q").unwrap_err().to_string();
        assert!(error.contains("'k' is a constant"), "{error}");
        let error = grown("z").unwrap_err().to_string();
        assert!(error.contains("d, e, i, j, n, q, t"), "{error}");
    }

    #[test]
    fn inputs_are_repeated_along_their_dimension() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.h5");
        let shape = Shape::new([3, 5]).unwrap();
        let spec =
            |chunk| OutputSpec { dataset: "g/x".into(), dtype: Dtype::U8, shape: shape.clone(), chunk, deflate: None };
        for (chunk, deflate) in [(None, None), (Some(vec![2, 2]), None), (Some(vec![2, 2]), Some(1))] {
            let mut staging = Staging::begin(&file, "test").unwrap();
            let layout = staging.create(&[spec(chunk.clone())]).unwrap().remove(0);
            Writer::open(&layout).unwrap().write(&Region::whole(&shape), &(0..15).collect::<Vec<u8>>()).unwrap();
            staging.publish().unwrap();
            let target = folder.path().join("grown.h5");
            repeat((&file, "g/x"), &BTreeSet::from([0, 1]), 3, &target, deflate).unwrap();
            let reader = Reader::open(&target, "g/x").unwrap();
            assert_eq!((&*reader.info().shape, &reader.info().chunk), (&[9, 15][..], &chunk));
            let mut bytes = Vec::new();
            reader.read(&Region::whole(&reader.info().shape), &mut bytes).unwrap();
            let expected: Vec<u8> = (0..9).flat_map(|y| (0..15).map(move |x| (y % 3 * 5 + x % 5) as u8)).collect();
            assert_eq!(bytes, expected, "{chunk:?} {deflate:?}");
            std::fs::remove_file(&target).unwrap();
        }
    }
}

//! Filters through which chunks are stored.

use super::dataset_info::DatasetInfo;
use super::error::StoreError;
use super::raw::dataset::{self, Filter};
use super::raw::guard::Guarded;

/// Filters that are registered with the HDF Group or part of HDF5, by number.
const FILTERS: [(i32, &str); 22] = [
    (1, "deflate"),
    (2, "shuffle"),
    (3, "fletcher32"),
    (4, "szip"),
    (5, "nbit"),
    (6, "scaleoffset"),
    (305, "lzo"),
    (307, "bzip2"),
    (32000, "lzf"),
    (32001, "blosc"),
    (32002, "mafisc"),
    (32003, "snappy"),
    (32004, "lz4"),
    (32008, "bitshuffle"),
    (32013, "zfp"),
    (32015, "zstd"),
    (32017, "sz"),
    (32018, "fcidecomp"),
    (32022, "bitgroom"),
    (32023, "granular bitround"),
    (32024, "sz3"),
    (32026, "blosc2"),
];

pub(super) fn filter_name(filter: &Filter) -> String {
    match FILTERS.iter().find(|(id, _)| *id == filter.id) {
        Some((_, name)) => (*name).to_owned(),
        None if filter.name.is_empty() => format!("filter {}", filter.id),
        None => filter.name.clone(),
    }
}

/// Checks that the filters of the stored chunks are available.
pub(super) fn check_filters(
    filters: &[Filter],
    stored: &Guarded<hdf5::Dataset>,
    info: &DatasetInfo,
) -> Result<(), StoreError> {
    let Some((at, missing)) = filters.iter().enumerate().find(|(_, filter)| !filter.available) else { return Ok(()) };
    // Programs that lack an optional filter store chunks without it, and a dataset without chunks needs no filter.
    let mask = dataset::first_filter_mask(stored, info.shape.len());
    match mask.map_err(StoreError::hdf5(&info.file, format!("look at the chunks of '{}'", info.dataset)))? {
        None => Ok(()),
        Some(mask) if missing.optional && mask >> at & 1 == 1 => Ok(()),
        Some(_) => Err(StoreError::NoFilter {
            file: info.file.clone(),
            dataset: info.dataset.clone(),
            id: missing.id,
            name: filter_name(missing),
        }),
    }
}

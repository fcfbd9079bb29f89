//! Replacement of a dataset by one of another type, shape or storage, which keeps the attributes and dimension scales
//! as far as they fit.

use hdf5::types::VarLenArray;
use hdf5::{Dataset, File, ObjectReference1};

use super::output_layout::OutputSpec;
use super::raw::attributes::{Attached, address, shelf};
use super::raw::types::has_type;

/// Attribute with the scales of each axis.
const SCALES: &str = "DIMENSION_LIST";
/// Attribute with a name for each axis.
const LABELS: &str = "DIMENSION_LABELS";
/// Attribute of a scale with the axes that it is attached to.
const USERS: &str = "REFERENCE_LIST";
/// Attributes that make a dataset a scale, by the HDF5 specification of dimension scales and by netCDF-4.
const OF_SCALES: [&str; 4] = ["CLASS", "NAME", "_Netcdf4Dimid", "_Netcdf4Coordinates"];
/// The fill value, which for netCDF-4 has the type of the elements.
const FILL: &str = "_FillValue";

/// A dataset that is replaced, compared with the new one.
struct Old {
    /// Address of its header.
    address: u64,
    shape: Vec<u64>,
    same_type: bool,
    same_rank: bool,
    same_shape: bool,
    /// The scales of each axis; empty if they cannot be understood: then the attributes stay as they are.
    scales: Vec<Vec<ObjectReference1>>,
    /// The axes that it is attached to as a scale.
    users: Vec<Attached>,
    is_scale: bool,
}

impl Old {
    fn describe(file: &File, path: &str, old: &Dataset, spec: &OutputSpec) -> hdf5::Result<Old> {
        let shape: Vec<u64> = old.shape().into_iter().map(|extent| extent as u64).collect();
        let names = old.attr_names()?;
        let has = |name: &str| names.iter().any(|one| one == name);
        Ok(Old {
            address: address(file.reference(path)?),
            same_type: has_type(old, spec.dtype)?,
            same_rank: shape.len() == spec.shape.rank(),
            same_shape: shape[..] == spec.shape[..],
            scales: if has(SCALES) { scales(old).unwrap_or_default() } else { Vec::new() },
            users: if has(USERS) { users(old).unwrap_or_default() } else { Vec::new() },
            is_scale: has(USERS) || (has("CLASS") && has("NAME")),
            shape,
        })
    }

    /// Whether an axis has the same extent in the new dataset.
    fn keeps_axis(&self, spec: &OutputSpec, axis: usize) -> bool {
        let extents = self.shape.get(axis).zip(spec.shape.get(axis));
        self.same_rank && extents.is_some_and(|(was, is)| was == is)
    }

    /// Whether an attribute does not fit the new dataset.
    fn loses(&self, attribute: &str) -> bool {
        match attribute {
            SCALES | LABELS => !self.same_rank,
            USERS => !self.same_shape,
            FILL => !self.same_type,
            name => self.is_scale && !self.same_shape && OF_SCALES.contains(&name),
        }
    }

    fn difference(&self) -> &'static str {
        match (self.same_type, self.same_shape) {
            (true, true) => "was stored in another way",
            (true, false) => "had another shape",
            (false, true) => "had elements of another type",
            (false, false) => "had another shape and elements of another type",
        }
    }
}

/// Replaces the dataset at `path`. Returns what that has changed, for a person.
pub(super) fn replace(file: &File, path: &str, spec: &OutputSpec) -> hdf5::Result<String> {
    let dataset = file.dataset(path)?;
    let old = Old::describe(file, path, &dataset, spec)?;
    let mut dropped = Vec::new();
    let shelf = shelf(file)?;
    let mut kept = Vec::new();
    for name in dataset.attr_names()? {
        match old.loses(&name) {
            false if shelf.take(&dataset, &name).is_ok() => kept.push(name),
            // The loss of scales is reported below, in other words.
            true if name == SCALES || name == USERS || OF_SCALES.contains(&name.as_str()) => {}
            _ => dropped.push(format!("attribute '{name}'")),
        }
    }
    if dataset.is_resizable() {
        dropped.push("that it could grow".to_owned());
    }
    let other_names = dataset.loc_info()?.num_links.saturating_sub(1);
    // The new dataset may take its space.
    drop(dataset);
    file.unlink(path)?;
    spec.create_in(file, path)?;
    let new = file.dataset(path)?;
    for name in &kept {
        if shelf.give(&new, name).is_err() {
            dropped.push(format!("attribute '{name}'"));
        }
    }
    reattach_scales(file, path, spec, &old, &mut dropped)?;
    if old.is_scale && !old.same_shape {
        dropped.push("that it was a dimension scale".to_owned());
    }
    let mut note = format!("{} and is replaced by a new dataset with its attributes", old.difference());
    if !dropped.is_empty() {
        note += &format!("; dropped: {}", dropped.join(", "));
    }
    if other_names > 0 {
        note += &format!("; the old one keeps its {other_names} other name(s)");
    }
    Ok(note)
}

/// Lets scales refer to the new dataset, and datasets to it as a scale, as far as its shape allows.
fn reattach_scales(
    file: &File,
    path: &str,
    spec: &OutputSpec,
    old: &Old,
    dropped: &mut Vec<String>,
) -> hdf5::Result<()> {
    let (before, after) = (old.address, file.reference::<ObjectReference1>(path)?);
    let keeps = |axis: usize| old.keeps_axis(spec, axis);
    for (axis, scales) in old.scales.iter().enumerate() {
        for scale in scales.iter().filter_map(|scale| open(file, scale)) {
            edit_users(&scale, axis, before, Some(after).filter(|_| keeps(axis)))?;
        }
    }
    let cut = (0..old.scales.len()).filter(|axis| !old.scales[*axis].is_empty() && !keeps(*axis));
    let cut: Vec<String> = cut.map(|axis| axis.to_string()).collect();
    if !cut.is_empty() {
        if old.same_rank {
            edit_scales(&file.dataset(path)?, |axis, scale| Some(scale).filter(|_| keeps(axis)))?;
        }
        dropped.push(format!("the dimension scales of axis {}", cut.join(", ")));
    }
    for user in &old.users {
        if let Some(dataset) = open(file, &user.dataset) {
            edit_scales(&dataset, |axis, scale| match address(scale) == before {
                true if axis == user.dimension as usize => Some(after).filter(|_| old.same_shape),
                _ => Some(scale),
            })?;
        }
    }
    Ok(())
}

fn scales(dataset: &Dataset) -> hdf5::Result<Vec<Vec<ObjectReference1>>> {
    let lists = dataset.attr(SCALES)?.read_raw::<VarLenArray<ObjectReference1>>()?;
    Ok(lists.iter().map(|list| list.to_vec()).collect())
}

fn users(scale: &Dataset) -> hdf5::Result<Vec<Attached>> {
    scale.attr(USERS)?.read_raw::<Attached>()
}

/// The dataset of a reference, if it still exists.
fn open(file: &File, reference: &ObjectReference1) -> Option<Dataset> {
    match file.dereference(reference) {
        Ok(hdf5::ReferencedObject::Dataset(dataset)) => Some(dataset),
        _ => None,
    }
}

/// Edits a scale: replaces the dataset at `before`, axis `axis`, among those that it is attached to, or removes it.
fn edit_users(scale: &Dataset, axis: usize, before: u64, after: Option<ObjectReference1>) -> hdf5::Result<()> {
    let Ok(users) = users(scale) else { return Ok(()) };
    let edit = |user: &Attached| match address(user.dataset) == before && user.dimension as usize == axis {
        true => after.map(|dataset| Attached { dataset, ..*user }),
        false => Some(*user),
    };
    let edited: Vec<Attached> = users.iter().filter_map(edit).collect();
    if edited.len() == users.len() {
        return scale.attr(USERS)?.write_raw(&edited);
    }
    scale.delete_attr(USERS)?;
    if edited.is_empty() {
        return Ok(());
    }
    scale.new_attr::<Attached>().shape(edited.len()).create(USERS)?.write_raw(&edited)
}

/// Edits the scales of a dataset, axis by axis.
fn edit_scales(
    dataset: &Dataset,
    edit: impl Fn(usize, ObjectReference1) -> Option<ObjectReference1>,
) -> hdf5::Result<()> {
    let Ok(lists) = scales(dataset) else { return Ok(()) };
    let edited = lists.iter().enumerate().map(|(axis, list)| {
        let list: Vec<ObjectReference1> = list.iter().filter_map(|scale| edit(axis, *scale)).collect();
        VarLenArray::from_slice(&list)
    });
    let edited: Vec<VarLenArray<ObjectReference1>> = edited.collect();
    if edited.iter().all(|list| list.is_empty()) {
        return dataset.delete_attr(SCALES);
    }
    dataset.attr(SCALES)?.write_raw(&edited)
}

//! A new dataset in the place of one of another type, shape or storage, with the attributes and dimension scales of that one as
//! far as they fit.

use hdf5::types::VarLenArray;
use hdf5::{Dataset, File, ObjectReference1};

use super::output_layout::OutputSpec;
use super::raw::attributes::{Attached, address, shelf};
use super::raw::types::has_type;

/// For each axis of a dataset the scales that are attached to it.
const SCALES: &str = "DIMENSION_LIST";
/// For each axis a name.
const LABELS: &str = "DIMENSION_LABELS";
/// Whose axes a scale is attached to.
const USERS: &str = "REFERENCE_LIST";
/// What makes a dataset a scale, by the HDF5 specification of dimension scales and by netCDF-4.
const OF_SCALES: [&str; 4] = ["CLASS", "NAME", "_Netcdf4Dimid", "_Netcdf4Coordinates"];
/// netCDF-4 wants it to be of the type of the elements.
const FILL: &str = "_FillValue";

/// Replaces the dataset at `path`, and says what that has changed.
pub(super) fn replace(file: &File, path: &str, spec: &OutputSpec) -> hdf5::Result<String> {
    let old = file.dataset(path)?;
    let before = address(file.reference(path)?);
    let shape: Vec<u64> = old.shape().into_iter().map(|extent| extent as u64).collect();
    let (same_type, same_rank) = (has_type(&old, spec.dtype)?, shape.len() == spec.shape.rank());
    let same_shape = shape[..] == spec.shape[..];
    let stays = |axis: usize| same_rank && shape.get(axis).zip(spec.shape.get(axis)).is_some_and(|(was, is)| was == is);
    let names = old.attr_names()?;
    let has = |name: &str| names.iter().any(|one| one == name);
    // Both say nothing where they cannot be understood: then the attributes stay as they are.
    let scales = if has(SCALES) { scales(&old).unwrap_or_default() } else { Vec::new() };
    let users = if has(USERS) { users(&old).unwrap_or_default() } else { Vec::new() };
    let is_scale = has(USERS) || (has("CLASS") && has("NAME"));
    let mut dropped = Vec::new();
    let shelf = shelf(file)?;
    let mut kept = Vec::new();
    for name in &names {
        let goes = match name.as_str() {
            SCALES | LABELS => !same_rank,
            USERS => !same_shape,
            FILL => !same_type,
            name => is_scale && !same_shape && OF_SCALES.contains(&name),
        };
        match goes {
            false if shelf.take(&old, name).is_ok() => kept.push(name),
            // It is told of as what it says.
            true if name == SCALES || name == USERS || OF_SCALES.contains(&name.as_str()) => {}
            _ => dropped.push(format!("attribute '{name}'")),
        }
    }
    if old.is_resizable() {
        dropped.push("that it could grow".to_owned());
    }
    let other_names = old.loc_info()?.num_links.saturating_sub(1);
    // Its room is free for the new one.
    drop(old);
    file.unlink(path)?;
    spec.create_in(file, path)?;
    let new = file.dataset(path)?;
    for name in &kept {
        if shelf.give(&new, name).is_err() {
            dropped.push(format!("attribute '{name}'"));
        }
    }
    let after = file.reference::<ObjectReference1>(path)?;
    let cut: Vec<usize> = (0..scales.len()).filter(|axis| !scales[*axis].is_empty() && !stays(*axis)).collect();
    for (axis, scales) in scales.iter().enumerate() {
        for scale in scales.iter().filter_map(|scale| open(file, scale)) {
            edit_users(&scale, axis, before, Some(after).filter(|_| stays(axis)))?;
        }
    }
    if !cut.is_empty() {
        if same_rank {
            edit_scales(&new, |axis, scale| Some(scale).filter(|_| stays(axis)))?;
        }
        let axes: Vec<String> = cut.iter().map(usize::to_string).collect();
        dropped.push(format!("the dimension scales of axis {}", axes.join(", ")));
    }
    for user in &users {
        if let Some(dataset) = open(file, &user.dataset) {
            edit_scales(&dataset, |axis, scale| match address(scale) == before {
                true if axis == user.dimension as usize => Some(after).filter(|_| same_shape),
                _ => Some(scale),
            })?;
        }
    }
    if is_scale && !same_shape {
        dropped.push("that it was a dimension scale".to_owned());
    }
    let why = match (same_type, same_shape) {
        (true, true) => "was stored in another way",
        (true, false) => "had another shape",
        (false, true) => "had elements of another type",
        (false, false) => "had another shape and elements of another type",
    };
    let mut note = format!("{why} and is replaced by a new dataset with its attributes");
    if !dropped.is_empty() {
        note += &format!("; dropped: {}", dropped.join(", "));
    }
    if other_names > 0 {
        note += &format!("; the old one keeps its {other_names} other name(s)");
    }
    Ok(note)
}

fn scales(dataset: &Dataset) -> hdf5::Result<Vec<Vec<ObjectReference1>>> {
    let lists = dataset.attr(SCALES)?.read_raw::<VarLenArray<ObjectReference1>>()?;
    Ok(lists.iter().map(|list| list.to_vec()).collect())
}

fn users(scale: &Dataset) -> hdf5::Result<Vec<Attached>> {
    scale.attr(USERS)?.read_raw::<Attached>()
}

/// The dataset that is referred to, if it is there still.
fn open(file: &File, reference: &ObjectReference1) -> Option<Dataset> {
    match file.dereference(reference) {
        Ok(hdf5::ReferencedObject::Dataset(dataset)) => Some(dataset),
        _ => None,
    }
}

/// In a scale: what was attached to `axis` of the dataset at `before` is attached to that axis of another, or of none.
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

/// In a dataset: its scales become what `edit` makes of them, by axis.
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

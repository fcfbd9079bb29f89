//! Records of the manifest's log.

use serde::{Deserialize, Serialize};

use crate::manifest::StoredPayload;
use crate::plan::Tile;

/// A record of the log: all outputs of a box are in their files, or beside the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::exec) struct CompletionRecord {
    pub stage: String,
    /// The box. In a reduction it spans all reduced axes, unless the record is of a partial sum.
    pub tile: Tile,
    /// In the order of the stage's operands.
    pub outputs: Vec<StoredAt>,
    /// In a record of a partial sum, the number of its group's leaves in it. The tile is the box of these leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves: Option<u64>,
}

/// The place of an output's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::exec) enum StoredAt {
    /// In the dataset; the value is the CRC-32 of the packed region.
    InPlace(u32),
    /// Beside the log: compressed chunks, which have no places before the file is complete, or the packed bytes of a
    /// partial sum.
    Beside(StoredPayload),
}

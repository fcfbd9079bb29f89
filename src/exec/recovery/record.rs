//! Records of the manifest's log.

use serde::{Deserialize, Serialize};

use crate::manifest::StoredPayload;
use crate::plan::Tile;

/// A record of the manifest: all outputs of a box are in their files, or beside the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::exec) struct CompletionRecord {
    pub stage: String,
    /// Of a reduction all of its reduced axes, unless it is a partial result.
    pub tile: Tile,
    /// In their order.
    pub outputs: Vec<StoredAt>,
    /// Of a partial result: how many of its group's leaves are in it. The tile is their box.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves: Option<u64>,
}

/// Where the bytes of an output are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::exec) enum StoredAt {
    /// At their places in the dataset; the CRC-32 of the packed region.
    InPlace(u32),
    /// Compressed chunks, which have no places before the file is whole; or the packed bytes of a partial result.
    Beside(StoredPayload),
}

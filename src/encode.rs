//! Encoding of values that ranks, processes and files exchange. A value that cannot be encoded is an error, never an
//! empty result.
//!
//! Paths need not be UTF-8: [`path`] keeps their bytes.

use serde::Serialize;

/// A value cannot be encoded as JSON.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be encoded")]
pub struct EncodeError {
    what: &'static str,
    source: serde_json::Error,
}

/// Encodes a value as JSON.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, EncodeError> {
    serde_json::to_vec(value).map_err(|source| EncodeError { what: std::any::type_name::<T>(), source })
}

/// A path for `#[serde(with = "encode::path")]`: text where it is UTF-8, otherwise the numbers of its bytes.
pub mod path {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Encoded {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => path.as_os_str().as_bytes().serialize(serializer),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(match Encoded::deserialize(deserializer)? {
            Encoded::Text(text) => PathBuf::from(text),
            Encoded::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::PathBuf;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Named(#[serde(with = "path")] PathBuf);

    #[test]
    fn paths_keep_their_bytes() {
        for bytes in [&b"a/b"[..], "größe".as_bytes(), b"lat\xe9in/\xff"] {
            let named = Named(PathBuf::from(OsStr::from_bytes(bytes)));
            let encoded = encode(&named).unwrap();
            assert_eq!(serde_json::from_slice::<Named>(&encoded).unwrap(), named);
        }
        let lost = encode(OsStr::from_bytes(b"\xff").as_ref() as &std::path::Path).unwrap_err();
        assert!(lost.to_string().contains("Path"), "{lost}");
    }
}

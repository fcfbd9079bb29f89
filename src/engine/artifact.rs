use serde::{Deserialize, Serialize};

use crate::encode::{EncodeError, encode};
use crate::engine::error::EngineError;
use crate::engine::kernel::Kernel;
use crate::engine::module_rewrite::REWRITE_VERSION;
use crate::engine::pipeline::Cpu;
use crate::engine::tier::Tier;

const MAGIC: &[u8; 8] = b"exuvia\0\x01";
/// wasmer's version is pinned in Cargo.toml; LLVM's is the one that wasmer's compiler crate is built for.
pub const COMPILER: &str = "wasmer 4.4.0, LLVM 15";

/// The passes that make optimized code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pipeline {
    /// LLVM's `default<O3>` for the host CPU, on code without the constructs that block it.
    #[default]
    Full,
    /// wasmer's own pass list for a generic CPU; the benchmarks compare with it.
    Stock,
}

/// Everything that must match for compiled code to be loadable and to give the expected bits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArtifactFingerprint {
    module_hash: String,
    rewrite_version: u32,
    compiler: String,
    tier: Tier,
    pipeline: Pipeline,
    cpu: Cpu,
    nan_rule: String,
    memory_style: String,
}

impl ArtifactFingerprint {
    pub(super) fn new(kernel: &Kernel, tier: Tier, cpu: &Cpu, pipeline: Pipeline) -> ArtifactFingerprint {
        ArtifactFingerprint {
            module_hash: kernel.hash().to_owned(),
            rewrite_version: REWRITE_VERSION,
            compiler: COMPILER.to_owned(),
            tier,
            pipeline,
            cpu: cpu.clone(),
            nan_rule: "canonical after every operation".to_owned(),
            memory_style: "static, 8 GiB without checks, traps without calls".to_owned(),
        }
    }

    /// A hash of the fingerprint: the file name in the cache.
    pub(super) fn key(&self) -> String {
        blake3::hash(format!("{self:?}").as_bytes()).to_hex().to_string()
    }

    /// The first difference of two fingerprints, with both sides.
    fn difference(&self, other: &ArtifactFingerprint) -> Option<String> {
        let sides = [
            ("module", &self.module_hash, &other.module_hash),
            ("compiler", &self.compiler, &other.compiler),
            ("CPU", &self.cpu.name, &other.cpu.name),
            ("CPU features", &self.cpu.features, &other.cpu.features),
        ];
        let differing = sides.into_iter().find(|(_, a, b)| a != b);
        match differing {
            Some((what, made_for, here)) => Some(format!("it was made for {what} {made_for}, here it is {here}")),
            None => (self != other).then(|| format!("it was made by {self:?}, here it is {other:?}")),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct ArtifactHeader {
    fingerprint: ArtifactFingerprint,
    checksum: String,
    compile_ns: u64,
}

/// Compiled code with its fingerprint, as it is cached and sent.
#[derive(Debug)]
pub(super) struct Artifact<'a> {
    pub fingerprint: ArtifactFingerprint,
    pub compile_ns: u64,
    pub code: &'a [u8],
}

impl<'a> Artifact<'a> {
    pub fn to_bytes(&self) -> Result<Vec<u8>, EncodeError> {
        let header = ArtifactHeader {
            fingerprint: self.fingerprint.clone(),
            checksum: blake3::hash(self.code).to_hex().to_string(),
            compile_ns: self.compile_ns,
        };
        let header = encode(&header)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(self.code);
        Ok(bytes)
    }

    /// Reads an artifact; fails on anything but what [`Artifact::to_bytes`] wrote.
    pub fn parse(bytes: &'a [u8]) -> Result<Artifact<'a>, String> {
        let damaged = || "it is damaged".to_owned();
        let rest = bytes.strip_prefix(MAGIC).ok_or("it is not an artifact of this version")?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
        let (header, code) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(damaged)?;
        let header: ArtifactHeader = serde_json::from_slice(header).map_err(|_| damaged())?;
        if blake3::hash(code).to_hex().as_str() != header.checksum {
            return Err(damaged());
        }
        Ok(Artifact { fingerprint: header.fingerprint, compile_ns: header.compile_ns, code })
    }

    /// Fails unless this artifact is exactly what `wanted` describes.
    pub fn check(&self, name: &str, wanted: &ArtifactFingerprint) -> Result<(), EngineError> {
        match self.fingerprint.difference(wanted) {
            None => Ok(()),
            Some(message) => Err(EngineError::Artifact { name: name.to_owned(), message }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Kernel, Vec<u8>) {
        let wat = r#"(module (memory 1) (func (export "k") (param i32 i32) (result i32) i32.const 0))"#;
        let kernel = Kernel::from_bytes("k", &wat::parse_str(wat).unwrap(), None).unwrap();
        let fingerprint = ArtifactFingerprint::new(&kernel, Tier::Optimized, &Cpu::host(), Pipeline::Full);
        let bytes = Artifact { fingerprint, compile_ns: 7, code: b"some code" }.to_bytes().unwrap();
        (kernel, bytes)
    }

    #[test]
    fn survives_the_round_trip_and_nothing_else() {
        let (_, bytes) = sample();
        assert_eq!(Artifact::parse(&bytes).unwrap().code, b"some code");
        for length in 0..bytes.len() {
            assert!(Artifact::parse(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
        for position in 0..MAGIC.len() + 4 {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1;
            assert!(Artifact::parse(&flipped).is_err(), "flipped at {position}");
        }
        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(Artifact::parse(&flipped).is_err());
    }

    #[test]
    fn a_mismatch_names_both_sides() {
        let (kernel, bytes) = sample();
        let artifact = Artifact::parse(&bytes).unwrap();
        let other = Cpu { name: "other-cpu".to_owned(), ..Cpu::host() };
        let wanted = ArtifactFingerprint::new(&kernel, Tier::Optimized, &other, Pipeline::Full);
        let message = artifact.check("k", &wanted).unwrap_err().to_string();
        assert!(message.contains("other-cpu") && message.contains(&Cpu::host().name), "{message}");
        assert!(
            artifact
                .check("k", &ArtifactFingerprint::new(&kernel, Tier::Optimized, &Cpu::host(), Pipeline::Stock))
                .is_err()
        );
        artifact.check("k", &ArtifactFingerprint::new(&kernel, Tier::Optimized, &Cpu::host(), Pipeline::Full)).unwrap();
    }
}

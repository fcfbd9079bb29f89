use std::fmt;
use std::str::FromStr;

/// Element type of a tensor. `F16` and `Bf16` are storage types: a kernel sees their 16 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F16,
    Bf16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
}

impl Dtype {
    /// Every element type, in the order of their kernel-interface codes.
    pub const ALL: [Dtype; 12] = [
        Dtype::F16,
        Dtype::Bf16,
        Dtype::F32,
        Dtype::F64,
        Dtype::I8,
        Dtype::I16,
        Dtype::I32,
        Dtype::I64,
        Dtype::U8,
        Dtype::U16,
        Dtype::U32,
        Dtype::U64,
    ];

    /// Size of one element in bytes.
    pub const fn size_bytes(self) -> usize {
        match self {
            Dtype::I8 | Dtype::U8 => 1,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 | Dtype::U16 => 2,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::F64 | Dtype::I64 | Dtype::U64 => 8,
        }
    }

    /// Name as written in job files: `f32`, `u8`, ...
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::F32 => "f32",
            Dtype::F64 => "f64",
            Dtype::I8 => "i8",
            Dtype::I16 => "i16",
            Dtype::I32 => "i32",
            Dtype::I64 => "i64",
            Dtype::U8 => "u8",
            Dtype::U16 => "u16",
            Dtype::U32 => "u32",
            Dtype::U64 => "u64",
        }
    }

    /// The value of one little-endian element, as near as f64 has it; `None` for a wrong number of bytes and for
    /// storage types.
    pub fn to_f64(self, bytes: &[u8]) -> Option<f64> {
        match self {
            Dtype::F32 => Some(f32::from_le_bytes(bytes.try_into().ok()?).into()),
            Dtype::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?)),
            _ => self.to_integer(bytes).map(|value| value as f64),
        }
    }

    /// The value of one little-endian element of an integer type; `None` for a wrong number of bytes and for other
    /// types.
    pub fn to_integer(self, bytes: &[u8]) -> Option<i128> {
        macro_rules! value {
            ($type:ty) => {
                <$type>::from_le_bytes(bytes.try_into().ok()?).into()
            };
        }
        Some(match self {
            Dtype::I8 => value!(i8),
            Dtype::I16 => value!(i16),
            Dtype::I32 => value!(i32),
            Dtype::I64 => value!(i64),
            Dtype::U8 => value!(u8),
            Dtype::U16 => value!(u16),
            Dtype::U32 => value!(u32),
            Dtype::U64 => value!(u64),
            Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64 => return None,
        })
    }

    /// Whether it is an integer type.
    pub const fn is_integer(self) -> bool {
        !matches!(self, Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64)
    }

    /// Whether kernels compute with it; f16 and bf16 are for storage.
    pub const fn is_computed(self) -> bool {
        !matches!(self, Dtype::F16 | Dtype::Bf16)
    }

    /// Whether every value of type `other` is one of this type as well.
    pub fn holds(self, other: Dtype) -> bool {
        // Bits that a number may have beside its sign: of floats, as many as keep integers exact.
        let bits = |dtype: Dtype| match dtype {
            Dtype::F16 => 11,
            Dtype::Bf16 => 8,
            Dtype::F32 => 24,
            Dtype::F64 => 53,
            Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 => dtype.size_bytes() * 8 - 1,
            Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => dtype.size_bytes() * 8,
        };
        let is_signed = |dtype: Dtype| !matches!(dtype, Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64);
        match (self.is_integer(), other.is_integer()) {
            _ if self == other => true,
            (true, true) => bits(self) >= bits(other) && (is_signed(self) || !is_signed(other)),
            (false, true) => bits(self) >= bits(other),
            (false, false) => self.size_bytes() > other.size_bytes(),
            (true, false) => false,
        }
    }

    /// Code of this type in the kernel interface (`exuvia_dtype` in `exuvia.h`): its position in [`Dtype::ALL`] plus 1.
    pub const fn code(self) -> u32 {
        self as u32 + 1
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The given text names no element type.
#[derive(Debug, thiserror::Error)]
#[error("unknown dtype '{0}'")]
pub struct UnknownDtype(pub String);

impl FromStr for Dtype {
    type Err = UnknownDtype;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Dtype::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| UnknownDtype(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_codes_follow_the_list() {
        for (index, dtype) in Dtype::ALL.into_iter().enumerate() {
            assert_eq!(dtype.name().parse::<Dtype>().unwrap(), dtype);
            assert_eq!(dtype.code() as usize, index + 1);
        }
        assert!("float".parse::<Dtype>().is_err());
    }

    #[test]
    fn a_type_holds_the_values_of_smaller_ones() {
        let held = |dtype: Dtype| -> Vec<&str> {
            Dtype::ALL.into_iter().filter(|other| dtype.holds(*other)).map(Dtype::name).collect()
        };
        assert_eq!(held(Dtype::F64), ["f16", "bf16", "f32", "f64", "i8", "i16", "i32", "u8", "u16", "u32"]);
        assert_eq!(held(Dtype::F32), ["f16", "bf16", "f32", "i8", "i16", "u8", "u16"]);
        assert_eq!(held(Dtype::F16), ["f16", "i8", "u8"]);
        assert_eq!(held(Dtype::I32), ["i8", "i16", "i32", "u8", "u16"]);
        assert_eq!(held(Dtype::U16), ["u8", "u16"]);
    }
}

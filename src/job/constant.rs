//! Inline constants: TOML numbers to the bytes of a dtype, exactly or not at all.

use super::table::Number;
use crate::tensor::Dtype;

/// Appends `number` as one `dtype` element in native byte order. The error is the reason, for the user.
///
/// An integer must fit its dtype. A float is rounded to the nearest value of a float dtype, as in any
/// language, but must not overflow it; only a number written as `inf` is infinite.
pub(super) fn push(number: Number<'_>, dtype: Dtype, bytes: &mut Vec<u8>) -> Result<(), String> {
    match dtype {
        Dtype::F16 => {
            let value = half::f16::from_f64(float(number)?);
            check_finite(number, dtype, value.is_infinite())?;
            bytes.extend(value.to_ne_bytes());
        }
        Dtype::Bf16 => {
            let value = half::bf16::from_f64(float(number)?);
            check_finite(number, dtype, value.is_infinite())?;
            bytes.extend(value.to_ne_bytes());
        }
        Dtype::F32 => {
            let value = float(number)? as f32;
            check_finite(number, dtype, value.is_infinite())?;
            bytes.extend(value.to_ne_bytes());
        }
        Dtype::F64 => {
            let value = float(number)?;
            check_finite(number, dtype, value.is_infinite())?;
            bytes.extend(value.to_ne_bytes());
        }
        Dtype::I8 => bytes.extend(integer::<i8>(number, dtype)?.to_ne_bytes()),
        Dtype::I16 => bytes.extend(integer::<i16>(number, dtype)?.to_ne_bytes()),
        Dtype::I32 => bytes.extend(integer::<i32>(number, dtype)?.to_ne_bytes()),
        Dtype::I64 => bytes.extend(integer::<i64>(number, dtype)?.to_ne_bytes()),
        Dtype::U8 => bytes.extend(integer::<u8>(number, dtype)?.to_ne_bytes()),
        Dtype::U16 => bytes.extend(integer::<u16>(number, dtype)?.to_ne_bytes()),
        Dtype::U32 => bytes.extend(integer::<u32>(number, dtype)?.to_ne_bytes()),
        Dtype::U64 => bytes.extend(integer::<u64>(number, dtype)?.to_ne_bytes()),
    }
    Ok(())
}

fn integer<T: TryFrom<i128>>(number: Number<'_>, dtype: Dtype) -> Result<T, String> {
    let Number::Integer(text, radix) = number else {
        return Err(format!("a {dtype} takes whole numbers only"));
    };
    i128::from_str_radix(text, radix)
        .ok()
        .and_then(|value| T::try_from(value).ok())
        .ok_or_else(|| format!("{text} does not fit in {dtype}"))
}

fn float(number: Number<'_>) -> Result<f64, String> {
    match number {
        // Decimal text goes straight to f64: rounded once, not by way of an integer type.
        Number::Integer(text, 10) | Number::Float(text) => {
            text.parse().map_err(|_| format!("'{text}' is not a number"))
        }
        Number::Integer(text, radix) => {
            i128::from_str_radix(text, radix).map(|value| value as f64).map_err(|_| format!("'{text}' is not a number"))
        }
    }
}

fn check_finite(number: Number<'_>, dtype: Dtype, infinite: bool) -> Result<(), String> {
    match number {
        Number::Float(text) if text.contains("inf") => Ok(()),
        Number::Integer(text, _) | Number::Float(text) if infinite => Err(format!("{text} does not fit in {dtype}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Number::{Float, Integer};

    fn bytes(number: Number<'_>, dtype: Dtype) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        push(number, dtype, &mut bytes)?;
        assert_eq!(bytes.len(), dtype.size_bytes());
        Ok(bytes)
    }

    #[test]
    fn every_dtype_takes_five() {
        for dtype in Dtype::ALL {
            bytes(Integer("5", 10), dtype).unwrap();
        }
        assert_eq!(bytes(Integer("-2", 10), Dtype::I8).unwrap(), [0xfe]);
        assert_eq!(bytes(Float("1.5"), Dtype::F16).unwrap(), half::f16::from_f32(1.5).to_ne_bytes());
        assert_eq!(bytes(Integer("18446744073709551615", 10), Dtype::U64).unwrap(), u64::MAX.to_ne_bytes());
        assert_eq!(bytes(Integer("ff", 16), Dtype::U8).unwrap(), [255]);
        assert_eq!(bytes(Float("-inf"), Dtype::F32).unwrap(), f32::NEG_INFINITY.to_ne_bytes());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_sides() {
        let refused = |number, dtype| bytes(number, dtype).unwrap_err();
        assert_eq!(refused(Integer("256", 10), Dtype::U8), "256 does not fit in u8");
        assert_eq!(refused(Integer("-1", 10), Dtype::U64), "-1 does not fit in u64");
        assert_eq!(refused(Float("1.0"), Dtype::I32), "a i32 takes whole numbers only");
        assert_eq!(refused(Float("1e39"), Dtype::F32), "1e39 does not fit in f32");
        assert_eq!(refused(Integer("70000", 10), Dtype::F16), "70000 does not fit in f16");
    }
}

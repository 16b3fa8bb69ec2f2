//! Floating point where WebAssembly asks for more than Rust or the processor promises.
//!
//! A NaN that an operation makes is always the canonical one: which bits and which sign it has differs between processors, and a
//! program that goes on on another one must not see that.

#[inline(always)]
pub fn bits32(value: f32) -> u64 {
    if value.is_nan() {
        rare(0x7fc0_0000)
    } else {
        value.to_bits().into()
    }
}

#[inline(always)]
pub fn bits64(value: f64) -> u64 {
    if value.is_nan() {
        rare(0x7ff8_0000_0000_0000)
    } else {
        value.to_bits()
    }
}

/// Have the compiler make a branch, which the processor foresees, of what it would make a part of each result's way.
#[cold]
#[inline(never)]
fn rare(bits: u64) -> u64 {
    bits
}

macro_rules! float {
    ($kind:ty, $fraction:expr, $nearest:ident, $min:ident, $max:ident) => {
        /// Round to an integer, halves to the even one.
        pub fn $nearest(value: $kind) -> $kind {
            const WHOLE: $kind = $fraction; // from here on every value is an integer
            if value.abs() < WHOLE {
                (value.abs() + WHOLE - WHOLE).copysign(value)
            } else {
                value
            }
        }

        /// The lesser one; -0 is less than 0, and a NaN wins.
        pub fn $min(a: $kind, b: $kind) -> $kind {
            if a.is_nan() || b.is_nan() {
                <$kind>::NAN
            } else if a == b {
                <$kind>::from_bits(a.to_bits() | b.to_bits())
            } else {
                a.min(b)
            }
        }

        pub fn $max(a: $kind, b: $kind) -> $kind {
            if a.is_nan() || b.is_nan() {
                <$kind>::NAN
            } else if a == b {
                <$kind>::from_bits(a.to_bits() & b.to_bits())
            } else {
                a.max(b)
            }
        }
    };
}

float!(f32, 8_388_608.0, nearest32, min32, max32);
float!(f64, 4_503_599_627_370_496.0, nearest64, min64, max64);

/// The integer of a float that is between the limits, both exclusive.
fn truncate(value: f64, above: f64, below: f64) -> Option<f64> {
    (value > above && value < below).then(|| value.trunc())
}

pub fn to_i32(value: f64) -> Option<u64> {
    truncate(value, -2_147_483_649.0, 2_147_483_648.0).map(|value| (value as i32 as u32).into())
}

pub fn to_u32(value: f64) -> Option<u64> {
    truncate(value, -1.0, 4_294_967_296.0).map(|value| (value as u32).into())
}

pub fn to_i64(value: f64) -> Option<u64> {
    // No float is between the limit and the one below it.
    truncate(value, -9_223_372_036_854_777_856.0, 9_223_372_036_854_775_808.0).map(|value| value as i64 as u64)
}

pub fn to_u64(value: f64) -> Option<u64> {
    truncate(value, -1.0, 18_446_744_073_709_551_616.0).map(|value| value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_the_even_integer() {
        let rounded = [0.5, 1.5, 2.5, -0.5, -1.5, 4_503_599_627_370_497.0].map(nearest64);
        assert_eq!(rounded, [0.0, 2.0, 2.0, -0.0, -2.0, 4_503_599_627_370_497.0]);
        assert!(nearest64(-0.5).is_sign_negative());
        assert!(nearest32(f32::NAN).is_nan());
        assert_eq!([0.5f32, 1.5, 8_388_609.0].map(nearest32), [0.0, 2.0, 8_388_609.0]);
    }

    #[test]
    fn zeros_are_ordered_and_a_nan_wins() {
        assert!(min64(0.0, -0.0).is_sign_negative());
        assert!(max64(-0.0, 0.0).is_sign_positive());
        assert!(min32(f32::NAN, 1.0).is_nan() && max32(1.0, f32::NAN).is_nan());
    }

    #[test]
    fn conversions_end_at_the_limits_of_the_integer() {
        assert_eq!(to_i32(-2_147_483_648.9), Some(0x8000_0000));
        assert_eq!(to_i32(2_147_483_648.0), None);
        assert_eq!(to_u32(-0.9), Some(0));
        assert_eq!(to_u32(-1.0), None);
        assert_eq!(to_i64(-9_223_372_036_854_775_808.0), Some(1 << 63));
        assert_eq!(to_i64(9_223_372_036_854_775_808.0), None);
        assert_eq!(to_u64(18_446_744_073_709_549_568.0), Some(18_446_744_073_709_549_568));
        assert_eq!(to_u64(f64::NAN), None);
    }

    #[test]
    fn every_nan_is_the_canonical_one() {
        assert_eq!(bits64(f64::from_bits(0xfff8_0000_0000_0001)), 0x7ff8_0000_0000_0000);
        assert_eq!(bits32(f32::from_bits(0xffc0_0001)), 0x7fc0_0000);
    }
}

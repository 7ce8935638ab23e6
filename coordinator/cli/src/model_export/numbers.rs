//! Conversion of numbers between the formats of weights.

use clap::ValueEnum;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;

/// A format to export in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportDtype {
    /// 4 bytes per number: the weights as they were trained.
    Fp32,
    /// 2 bytes per number, with the range of fp32: suits most uses.
    Bf16,
    /// 2 bytes per number, for hardware without bf16. Numbers beyond ±65504 are refused.
    Fp16,
}

impl ExportDtype {
    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::Fp32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::Fp16 => Dtype::F16,
        }
    }
}

/// The name of a format in config.json, and the size of its numbers. `None` if it is not a format of weights.
pub(super) fn format(dtype: Dtype) -> Option<(&'static str, usize)> {
    match dtype {
        Dtype::F32 => Some(("float32", 4)),
        Dtype::BF16 => Some(("bfloat16", 2)),
        Dtype::F16 => Some(("float16", 2)),
        _ => None,
    }
}

/// A number that cannot be exported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Unfit {
    /// Its index among the given numbers.
    pub(super) index: usize,
    pub(super) value: f32,
}

/// Converts numbers piece by piece, and keeps its buffers.
#[derive(Debug)]
pub(super) struct Converter {
    from: Dtype,
    to: Dtype,
    wide: Vec<f32>,
    brain: Vec<bf16>,
    half: Vec<f16>,
}

impl Converter {
    /// A converter between two of fp32, bf16 and fp16.
    pub(super) fn new(from: Dtype, to: Dtype) -> Self {
        Self { from, to, wide: Vec::new(), brain: Vec::new(), half: Vec::new() }
    }

    /// Appends the numbers in `bytes`, little-endian, to `converted`: rounded to the nearest, ties to even.
    ///
    /// # Errors
    /// The first number that is not finite, before or after the conversion.
    pub(super) fn convert(&mut self, bytes: &[u8], converted: &mut Vec<u8>) -> Result<(), Unfit> {
        self.widen(bytes);
        if let Some(index) = self.wide.iter().position(|number| !number.is_finite()) {
            return Err(Unfit { index, value: self.wide[index] });
        }
        if self.from == self.to {
            converted.extend_from_slice(bytes);
            return Ok(());
        }
        let count = self.wide.len();
        let unfit = match self.to {
            Dtype::BF16 => {
                self.brain.resize(count, bf16::ZERO);
                self.brain.convert_from_f32_slice(&self.wide);
                converted.extend(self.brain.iter().flat_map(|number| number.to_le_bytes()));
                self.brain.iter().position(|number| !number.is_finite())
            }
            Dtype::F16 => {
                self.half.resize(count, f16::ZERO);
                self.half.convert_from_f32_slice(&self.wide);
                converted.extend(self.half.iter().flat_map(|number| number.to_le_bytes()));
                self.half.iter().position(|number| !number.is_finite())
            }
            _ => {
                converted.extend(self.wide.iter().flat_map(|number| number.to_le_bytes()));
                None
            }
        };
        unfit.map_or(Ok(()), |index| Err(Unfit { index, value: self.wide[index] }))
    }

    fn widen(&mut self, bytes: &[u8]) {
        self.wide.clear();
        match self.from {
            Dtype::BF16 => {
                let numbers =
                    bytes.as_chunks::<2>().0.iter().map(|number| bf16::from_le_bytes(*number).to_f32());
                self.wide.extend(numbers);
            }
            Dtype::F16 => {
                let numbers =
                    bytes.as_chunks::<2>().0.iter().map(|number| f16::from_le_bytes(*number).to_f32());
                self.wide.extend(numbers);
            }
            _ => self.wide.extend(bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(from: Dtype, to: Dtype, bytes: &[u8]) -> Result<Vec<u8>, Unfit> {
        let mut converted = Vec::new();
        Converter::new(from, to).convert(bytes, &mut converted).map(|()| converted)
    }

    /// All finite values of a 16-bit format, ascending, from their definition: sign, exponent of `exponent`
    /// bits, and fraction.
    fn values(exponent: u32) -> Vec<(f64, u16)> {
        let fraction = 15 - exponent;
        let bias = (1 << (exponent - 1)) - 1;
        let value = |bits: u16| {
            let (mantissa, power) = (f64::from(bits & ((1 << fraction) - 1)), i32::from(bits >> fraction));
            let unit = 2f64.powi(-(fraction as i32));
            match power {
                0 => mantissa * unit * 2f64.powi(1 - bias),
                power => (1.0 + mantissa * unit) * 2f64.powi(power - bias),
            }
        };
        let infinity = ((1_u16 << exponent) - 1) << fraction;
        (0..infinity).map(|bits| (value(bits), bits)).collect()
    }

    /// The bits of the value nearest to a number; of two equally near values, the one whose last bit is 0.
    fn nearest(values: &[(f64, u16)], number: f32) -> u16 {
        let size = f64::from(number.abs());
        let above = values.partition_point(|(value, _)| *value < size).min(values.len() - 1);
        let below = above.saturating_sub(1);
        let distance = |at: usize| (values[at].0 - size).abs();
        let at = match distance(below).total_cmp(&distance(above)) {
            std::cmp::Ordering::Less => below,
            std::cmp::Ordering::Greater => above,
            std::cmp::Ordering::Equal if values[below].1.is_multiple_of(2) => below,
            std::cmp::Ordering::Equal => above,
        };
        values[at].1 | if number.is_sign_negative() { 0x8000 } else { 0 }
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_and_ties_to_even() {
        for (to, exponent) in [(Dtype::BF16, 8), (Dtype::F16, 5)] {
            let values = values(exponent);
            let largest = values.last().unwrap().0 as f32;
            let mut numbers = vec![0.0, -0.0, 1.0, f32::MIN_POSITIVE, 1e-45, largest, -largest];
            // Halfway between neighbors, and the numbers next to it on either side.
            for _ in 0..2000 {
                let at = rand::random_range(0..values.len() - 1);
                let middle = ((values[at].0 + values[at + 1].0) / 2.0) as f32;
                numbers.extend([middle, middle.next_up(), -middle, middle.next_down()]);
                numbers.push(f32::from_bits(rand::random::<u32>()));
            }
            numbers.retain(|number| number.is_finite() && number.abs() <= largest);
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            let found = convert(Dtype::F32, to, &bytes).unwrap();
            for (number, found) in numbers.iter().zip(found.as_chunks::<2>().0) {
                assert_eq!(u16::from_le_bytes(*found), nearest(&values, *number), "{number:e} as {to}");
            }
            let back = convert(to, Dtype::F32, &found).unwrap();
            assert_eq!(convert(Dtype::F32, to, &back).unwrap(), found, "{to} is exact in fp32");
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused_by_their_place() {
        let bytes =
            |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let refused = |to, number: f32| convert(Dtype::F32, to, &bytes(&[1.0, number])).unwrap_err();
        assert_eq!(refused(Dtype::F16, 65520.0), Unfit { index: 1, value: 65520.0 });
        assert_eq!(refused(Dtype::F16, -1e9).index, 1);
        assert!(convert(Dtype::F32, Dtype::F16, &bytes(&[65519.0])).is_ok());
        assert_eq!(refused(Dtype::BF16, f32::MAX).index, 1);
        assert!(refused(Dtype::F32, f32::NAN).value.is_nan());
        assert_eq!(convert(Dtype::F16, Dtype::BF16, &[0x00, 0x7c]).unwrap_err().value, f32::INFINITY);
        assert_eq!(convert(Dtype::BF16, Dtype::BF16, &[0x80, 0x3f]).unwrap(), [0x80, 0x3f]);
    }
}

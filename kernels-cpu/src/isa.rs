//! Instruction sets.

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use std::arch::is_aarch64_feature_detected;

/// An instruction set that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Portable code, compiled for the target's baseline.
    Scalar,
    /// 128-bit vectors of 64-bit Arm: kernels of their own.
    Neon,
    /// The same with dot products of four bytes (`sdot`, Armv8.2 and later).
    Dotprod,
    /// The same with products of matrices of bytes beside them (`smmla`, Armv8.6 and later).
    I8mm,
    /// AVX2, FMA and F16C: kernels of their own for fast products of codes of 4 and 8 bits, portable code
    /// that is compiled for them for all else.
    Avx2,
    /// AVX-512 F, BW, VL, VBMI, VNNI and GFNI, BMI2 and POPCNT, beside the former: kernels of their own.
    Avx512,
}

impl Isa {
    /// Every instruction set.
    pub const ALL: [Isa; 6] = [Isa::Scalar, Isa::Neon, Isa::Dotprod, Isa::I8mm, Isa::Avx2, Isa::Avx512];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("gfni")
                    && is_x86_feature_detected!("bmi2")
                    && is_x86_feature_detected!("popcnt")
            }
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::Neon => is_aarch64_feature_detected!("neon"),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::Dotprod => Isa::Neon.is_available() && is_aarch64_feature_detected!("dotprod"),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::I8mm => Isa::Dotprod.is_available() && is_aarch64_feature_detected!("i8mm"),
            _ => false,
        }
    }

    /// The widest set that this machine has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detects_a_set_that_is_available() {
        assert!(Isa::detect().is_available());
        assert!(Isa::Scalar.is_available());
    }
}

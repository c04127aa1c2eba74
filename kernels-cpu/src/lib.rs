//! Instruction-set selection for the CPU kernels of CMF.
//!
//! The set is a value, so that one machine tests every path that it has. The crate holds the
//! selection alone: decoding goes through the reference decode of `cmf-format`.

/// An instruction set that a kernel can be written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Portable code.
    Scalar,
    /// 128-bit vectors of 64-bit Arm.
    Neon,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, VL, VBMI and VNNI.
    Avx512,
}

impl Isa {
    /// Every instruction set.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Neon, Isa::Avx2, Isa::Avx512];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
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

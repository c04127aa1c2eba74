//! Instruction-set selection for the CPU kernels of CMF.

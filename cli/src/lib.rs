//! The cmf command.

//! Opens .cmf files: sources, tensors by name, verification and shards.

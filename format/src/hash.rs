//! BLAKE3 of segments and of their chunk groups (spec: container, 5).
//!
//! A segment's hash is plain BLAKE3. The chunk-group hashes are the chaining values of the
//! subtrees of `chunk_group_bytes` each, so that any chunk group can be checked as it arrives, and
//! the groups together can be checked against the segment's hash without its bytes.

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// Length of every hash.
pub const HASH_BYTES: usize = 32;

/// BLAKE3 of `bytes`.
pub fn hash(bytes: &[u8]) -> [u8; HASH_BYTES] {
    blake3::hash(bytes).into()
}

/// Chaining value of chunk group `group`, which starts at `group * chunk_group_bytes`.
///
/// `bytes` is one chunk group of a segment that has more than one; the last may be short.
pub fn chunk_group_hash(group: u64, chunk_group_bytes: u64, bytes: &[u8]) -> [u8; HASH_BYTES] {
    let mut hasher = chunk_group_hasher(group, chunk_group_bytes);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// A hasher for chunk group `group`, whose `finalize_non_root` is the chaining value.
pub(crate) fn chunk_group_hasher(group: u64, chunk_group_bytes: u64) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(group.saturating_mul(chunk_group_bytes));
    hasher
}

/// The segment's hash and, when it has more than one chunk group, the groups' chaining values.
pub fn segment_hashes(bytes: &[u8], chunk_group_bytes: usize) -> ([u8; HASH_BYTES], Vec<[u8; HASH_BYTES]>) {
    if bytes.len() <= chunk_group_bytes {
        return (hash(bytes), Vec::new());
    }
    let groups: Vec<_> = bytes
        .chunks(chunk_group_bytes)
        .zip(0u64..)
        .map(|(chunk, i)| chunk_group_hash(i, chunk_group_bytes as u64, chunk))
        .collect();
    (root_of(&groups), groups)
}

/// The segment hash that two or more chunk groups amount to.
///
/// Every group but the last is whole, so BLAKE3's tree over them is the left-full binary tree
/// over their chaining values.
pub fn root_of(groups: &[[u8; HASH_BYTES]]) -> [u8; HASH_BYTES] {
    let (left, right) = groups.split_at(left_len(groups.len()));
    merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).into()
}

fn subtree(groups: &[[u8; HASH_BYTES]]) -> [u8; HASH_BYTES] {
    match groups {
        [] => [0; HASH_BYTES],
        [one] => *one,
        many => {
            let (left, right) = many.split_at(left_len(many.len()));
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// The largest power of two below `count`; 0 for fewer than two.
fn left_len(count: usize) -> usize {
    match count {
        0 | 1 => 0,
        _ => 1 << (count - 1).ilog2(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_groups_amount_to_plain_blake3() {
        let bytes: Vec<u8> = (0..70_001u32).map(|i| (i % 251) as u8).collect();
        for length in [0, 1, 1023, 1024, 1025, 2048, 2049, 5 * 1024, 70_001] {
            for group in [1024, 2048, 16_384] {
                let (root, groups) = segment_hashes(&bytes[..length], group);
                assert_eq!(root, hash(&bytes[..length]), "{length} bytes in groups of {group}");
                assert_eq!(groups.is_empty(), length <= group);
            }
        }
    }
}

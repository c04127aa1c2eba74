//! What a node is called in a summary.

use crate::source::FileSource;
use crate::stored::with_shape;
use cmf_format::archive::Node;
use cmf_format::encoding::{codebook, dense, grouped, low_rank, nested, sign_low_rank, sparse};

/// The node's encoding, and those of its children that are not plain `dense`:
/// `grouped(scale=grouped)`.
pub(crate) fn label(node: &Node<'_, FileSource>) -> String {
    let roles = roles(node);
    let children: Vec<String> = node
        .children()
        .enumerate()
        .filter(|(_, child)| child.record().encoding.get() != dense::ID)
        .map(|(i, child)| format!("{}={}", roles.get(i).copied().unwrap_or("child"), label(&child)))
        .collect();
    match children.is_empty() {
        true => node.encoding_name().into_owned(),
        false => format!("{}({})", node.encoding_name(), children.join(", ")),
    }
}

/// What the children of a node are for, in order. The spec's pages name them; no reader needs the
/// names to decode, so that the encodings themselves do not hold them.
fn roles(node: &Node<'_, FileSource>) -> Vec<&'static str> {
    match node.record().encoding.get() {
        grouped::ID => match with_shape(node, grouped::Descriptor::parse) {
            Ok(descriptor) => [
                (descriptor.scale_op != grouped::ScaleOp::None, "scale"),
                (descriptor.zero_op != grouped::ZeroOp::None, "zero"),
                (descriptor.code_map == grouped::CodeMap::Table, "table"),
            ]
            .into_iter()
            .filter_map(|(present, role)| present.then_some(role))
            .collect(),
            Err(_) => Vec::new(),
        },
        sparse::ID => vec!["values"],
        low_rank::ID | sign_low_rank::ID => vec!["a_t", "b"],
        nested::ID => match with_shape(node, nested::Descriptor::parse) {
            Ok(descriptor) => [Some(descriptor.level), descriptor.lower]
                .into_iter()
                .flatten()
                .flat_map(|level| match level.map {
                    nested::Map::Integer => vec!["scale", "zero"],
                    nested::Map::Table => vec!["table"],
                })
                .collect(),
            Err(_) => Vec::new(),
        },
        codebook::ID => vec!["codebooks", "scale"],
        _ => Vec::new(),
    }
}

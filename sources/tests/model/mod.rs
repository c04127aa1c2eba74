//! A model to fetch, and how it is fetched in tests.

use cmf_format::encoding::dense;
use cmf_format::write::{Content, MatrixEntry, TensorEntry, TermEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType, WriteOptions};
use cmf_sources::FetchOptions;
use std::time::Duration;

const MATRICES: u64 = 6;

/// Six matrices of three levels of 40 KB, with chunk groups of 4 KiB.
pub(crate) fn model(seed: u32) -> std::result::Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut state = seed;
    let mut builder =
        ArchiveBuilder::new(WriteOptions { chunk_group_bytes: 4096, ..WriteOptions::default() });
    builder.attribute("config.json", "application/json", vec![b' '; 3000]);
    for matrix in 0..MATRICES {
        let unit = |level: u16, state: &mut u32| {
            let values: Vec<f32> = (0..100 * 100)
                .map(|_| {
                    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (*state >> 16) as f32
                })
                .collect();
            let node = dense::pack_values(DType::F32, 100, 100, &values)?.into();
            let terms = vec![TermEntry { row_start: 0, col_start: 0, optional: false, node }];
            Ok::<_, cmf_format::Error>(UnitEntry { level, row_start: 0, rows: 100, terms })
        };
        let units = vec![unit(0, &mut state)?, unit(1, &mut state)?, unit(2, &mut state)?];
        builder.tensor(TensorEntry {
            name: format!("layer.{matrix}"),
            dtype: DType::F32,
            shape: vec![100, 100],
            content: Content::Matrices(vec![MatrixEntry {
                rows: 100,
                cols: 100,
                units,
                ..MatrixEntry::default()
            }]),
        });
    }
    Ok(builder.to_vec()?)
}

pub(crate) fn options() -> FetchOptions {
    FetchOptions {
        connections: 3,
        request_bytes: 50_000,
        stall: Duration::from_millis(300),
        pause: Duration::from_millis(2),
        attempts: 12,
        ..FetchOptions::default()
    }
}

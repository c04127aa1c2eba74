//! `low_rank`: two products, one factor after the other.

use super::{Node, Plan as AnyPlan, Wanted};
use crate::error::Result;
use crate::operands::Input;
use cmf_format::encoding::low_rank::View;

/// What is prepared of the factors.
#[derive(Debug)]
pub(crate) struct Plan {
    a_t: Box<AnyPlan>,
    b: Box<AnyPlan>,
}

impl Plan {
    pub(super) fn new(view: &View<'_>) -> Self {
        Self { a_t: Box::new(AnyPlan::new(view.a_t())), b: Box::new(AnyPlan::new(view.b())) }
    }

    pub(super) fn multiply(&self, view: &View<'_>, input: &Input<'_>, wanted: Wanted<'_>) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let (rank, tokens) = (view.rank(), input.tokens);
        let (mut inner, mut column) = (core::mem::take(&mut work.raw), core::mem::take(&mut work.scales));
        let products = inner.sized(rank * tokens);
        products.fill(0.0);
        let b = Node { view: view.b(), plan: &self.b };
        let mut done = b.multiply(input, Wanted { simd, rows: 0..rank, out: products, work: work.below() });
        let column_values = column.sized(view.rows());
        let a_t = Node { view: view.a_t(), plan: &self.a_t };
        for (k, products) in products.chunks_exact(tokens.max(1)).enumerate() {
            if done.is_err() {
                break;
            }
            done = a_t.decode(Wanted { simd, rows: k..k + 1, out: column_values, work: work.below() });
            let column = column_values.get(rows.clone()).unwrap_or(&[]);
            for (a, out) in column.iter().zip(out.chunks_exact_mut(tokens.max(1))) {
                out.iter_mut().zip(products).for_each(|(out, product)| *out += a * product);
            }
        }
        (work.raw, work.scales) = (inner, column);
        done
    }
}

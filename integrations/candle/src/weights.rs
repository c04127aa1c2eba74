//! Where a model's weights come from: dense tensors, or packed ones that are decoded as they are
//! multiplied with.

use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// y = x Wᵀ for the matrices W that read the same input.
pub trait Linear: Send + Sync {
    /// Multiplies `x`, `[tokens, inputs]`, f32 and contiguous, by each matrix: a
    /// `[tokens, outputs]` each.
    ///
    /// # Errors
    /// `Compute`, and `BadModel` for damaged weights.
    fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>>;
}

/// A matrix whose single rows are read: an embedding.
pub trait Rows: Send + Sync {
    /// The rows of `ids`, `[ids, columns]`.
    ///
    /// # Errors
    /// `BadArgument` for a row that is not there, `BadModel` for damaged weights.
    fn gather(&self, ids: &[u32]) -> Result<Tensor>;
}

/// A matrix of a model: its name and the outputs that it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixName {
    /// Name of the tensor.
    pub name: String,
    /// Rows.
    pub outputs: usize,
}

/// The names of the matrices of an expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertName {
    /// Multiplies the input, to be put through SiLU.
    pub gate: String,
    /// Multiplies the input.
    pub up: String,
    /// Multiplies the product of both.
    pub down: String,
}

/// The experts of a layer.
pub trait Experts: Send + Sync {
    /// The output of expert `expert`, `[tokens, hidden]`, for inputs `x`, `[tokens, hidden]`.
    ///
    /// # Errors
    /// As [`Linear::forward`], and what bringing it into memory gives.
    fn forward(&self, expert: usize, x: &Tensor) -> Result<Tensor>;

    /// Says that `experts` are going to be multiplied with, before the first of them is: what has to come from
    /// elsewhere comes together.
    ///
    /// # Errors
    /// `BadArgument` for experts that are not there.
    fn expect(&self, _experts: &[usize]) -> Result<()> {
        Ok(())
    }
}

/// Experts all of which are in memory.
struct Loaded<'w>(Vec<(Box<dyn Linear + 'w>, Box<dyn Linear + 'w>)>);

impl Experts for Loaded<'_> {
    fn forward(&self, expert: usize, x: &Tensor) -> Result<Tensor> {
        let (gate_up, down) = self.0.get(expert).ok_or_else(|| Error::argument("no such expert"))?;
        let x = x.contiguous()?;
        expert_output(|| gate_up.forward(&x), |wide| down.forward(wide))
    }
}

/// The products of an expert: of gate and up with `x`, and of down with what is between, which `first` and
/// `second` give.
pub(crate) fn expert_output(
    first: impl FnOnce() -> Result<Vec<Tensor>>,
    second: impl FnOnce(&Tensor) -> Result<Vec<Tensor>>,
) -> Result<Tensor> {
    let products = first()?;
    let [gate, up] = products.as_slice() else { return Err(Error::model("expected two products")) };
    let product = second(&(candle_nn::ops::silu(gate)? * up)?)?;
    product.into_iter().next().ok_or_else(|| Error::model("expected a product"))
}

/// Weights by name.
pub trait Weights: Sync {
    /// The vector `name`, `[elements]`, f32.
    ///
    /// # Errors
    /// `BadModel` when it is missing, of another shape, or damaged.
    fn vector(&self, name: &str, elements: usize) -> Result<Tensor>;

    /// Matrices of `inputs` columns that are multiplied by the same activations.
    ///
    /// # Errors
    /// As [`Weights::vector`].
    fn linear<'w>(&'w self, matrices: &[MatrixName], inputs: usize) -> Result<Box<dyn Linear + 'w>>;

    /// The matrix `name` as an embedding.
    ///
    /// # Errors
    /// As [`Weights::vector`].
    fn rows<'w>(&'w self, name: &str, rows: usize, cols: usize) -> Result<Box<dyn Rows + 'w>>;

    /// The experts of a layer, of `hidden` inputs and outputs, `wide` between.
    ///
    /// # Errors
    /// As [`Weights::vector`].
    fn experts<'w>(
        &'w self,
        experts: &[ExpertName],
        hidden: usize,
        wide: usize,
    ) -> Result<Box<dyn Experts + 'w>> {
        let load = |expert: &ExpertName| {
            let named = |name: &String, outputs| MatrixName { name: name.clone(), outputs };
            let gate_up = self.linear(&[named(&expert.gate, wide), named(&expert.up, wide)], hidden)?;
            Ok((gate_up, self.linear(&[named(&expert.down, hidden)], wide)?))
        };
        Ok(Box::new(Loaded(experts.iter().map(load).collect::<Result<_>>()?)))
    }

    /// The name that tensor `name` is stored under.
    fn stored_name(&self, name: &str) -> String {
        name.to_owned()
    }

    /// Runs one pass through the model. Weights that never wait for a change may run it in a thread
    /// pool, where its many small operations find threads at once; others must not, since what they
    /// wait for may need the pool.
    fn run(&self, pass: &mut (dyn FnMut() + Send)) {
        pass();
    }
}

/// Requires the shape that a configuration asks for, before anything is allocated.
pub(crate) fn check_shape(name: &str, found: &[u64], expected: &[usize]) -> Result<()> {
    if found.iter().copied().eq(expected.iter().map(|n| *n as u64)) {
        return Ok(());
    }
    let name = name.escape_debug();
    Err(Error::model(format!("tensor `{name}`: expected shape {expected:?}, found {found:?}")))
}

pub(crate) fn missing(name: &str) -> Error {
    Error::model(format!("tensor `{}` is not there", name.escape_debug()))
}

/// Dense matrices.
pub(crate) struct DenseLinear(pub(crate) Vec<Tensor>);

impl Linear for DenseLinear {
    fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        self.0.iter().map(|w| Ok(x.matmul(&w.t()?)?)).collect()
    }
}

/// A dense embedding.
pub(crate) struct DenseRows(pub(crate) Tensor);

impl Rows for DenseRows {
    fn gather(&self, ids: &[u32]) -> Result<Tensor> {
        let rows = self.0.dim(0)?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            return Err(Error::argument(format!("token {id} of an embedding of {rows}")));
        }
        Ok(self.0.index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?)
    }
}

/// Weights behind a pointer are weights.
macro_rules! behind {
    ($pointer:ty $(, $bound:ident)*) => {
        impl<W: Weights + ?Sized $(+ $bound)*> Weights for $pointer {
            fn run(&self, pass: &mut (dyn FnMut() + Send)) {
                (**self).run(pass);
            }

            fn vector(&self, name: &str, elements: usize) -> Result<Tensor> {
                (**self).vector(name, elements)
            }

            fn linear<'w>(&'w self, matrices: &[MatrixName], inputs: usize) -> Result<Box<dyn Linear + 'w>> {
                (**self).linear(matrices, inputs)
            }

            fn rows<'w>(&'w self, name: &str, rows: usize, cols: usize) -> Result<Box<dyn Rows + 'w>> {
                (**self).rows(name, rows, cols)
            }

            fn experts<'w>(
                &'w self,
                experts: &[ExpertName],
                hidden: usize,
                wide: usize,
            ) -> Result<Box<dyn Experts + 'w>> {
                (**self).experts(experts, hidden, wide)
            }

            fn stored_name(&self, name: &str) -> String {
                (**self).stored_name(name)
            }
        }
    };
}

behind!(&W);
behind!(Arc<W>, Send);

/// What gives the values of a tensor by name, dense.
pub trait DenseValues: Sync {
    /// The extents of tensor `name`.
    fn shape(&self, name: &str) -> Option<Vec<u64>>;

    /// Its values, row-major. The caller has checked the shape.
    ///
    /// # Errors
    /// `BadModel` for damaged weights, `Io`.
    fn values(&self, name: &str) -> Result<Vec<f32>>;
}

/// Reads a dense tensor of the shape that is asked for.
///
/// # Errors
/// As [`Weights::vector`].
pub fn dense_tensor(values: &dyn DenseValues, name: &str, shape: &[usize]) -> Result<Tensor> {
    let found = values.shape(name).ok_or_else(|| missing(name))?;
    check_shape(name, &found, shape)?;
    Ok(Tensor::from_vec(values.values(name)?, shape, &Device::Cpu)?)
}

/// Dense weights of any model.
pub struct Dense<V>(pub V);

impl<V: DenseValues> Weights for Dense<V> {
    fn vector(&self, name: &str, elements: usize) -> Result<Tensor> {
        dense_tensor(&self.0, name, &[elements])
    }

    fn linear<'w>(&'w self, matrices: &[MatrixName], inputs: usize) -> Result<Box<dyn Linear + 'w>> {
        let tensors = matrices.iter().map(|m| dense_tensor(&self.0, &m.name, &[m.outputs, inputs]));
        Ok(Box::new(DenseLinear(tensors.collect::<Result<_>>()?)))
    }

    fn rows<'w>(&'w self, name: &str, rows: usize, cols: usize) -> Result<Box<dyn Rows + 'w>> {
        Ok(Box::new(DenseRows(dense_tensor(&self.0, name, &[rows, cols])?)))
    }

    /// An expert is read when it is multiplied with, and not kept: of a layer no more than one is in memory.
    fn experts<'w>(
        &'w self,
        experts: &[ExpertName],
        hidden: usize,
        wide: usize,
    ) -> Result<Box<dyn Experts + 'w>> {
        for ExpertName { gate, up, down } in experts {
            for (name, shape) in [(gate, [wide, hidden]), (up, [wide, hidden]), (down, [hidden, wide])] {
                check_shape(name, &self.0.shape(name).ok_or_else(|| missing(name))?, &shape)?;
            }
        }
        Ok(Box::new(DenseExperts { values: &self.0, experts: experts.to_vec(), hidden, wide }))
    }
}

/// Dense experts of a layer.
struct DenseExperts<'w, V> {
    values: &'w V,
    experts: Vec<ExpertName>,
    hidden: usize,
    wide: usize,
}

impl<V: DenseValues> Experts for DenseExperts<'_, V> {
    fn forward(&self, expert: usize, x: &Tensor) -> Result<Tensor> {
        let names = self.experts.get(expert).ok_or_else(|| Error::argument("no such expert"))?;
        let (hidden, wide) = (self.hidden, self.wide);
        let x = x.contiguous()?;
        let product = |x: &Tensor, name: &str, shape: [usize; 2]| -> Result<Tensor> {
            Ok(x.matmul(&dense_tensor(self.values, name, &shape)?.t()?)?)
        };
        expert_output(
            || Ok(vec![product(&x, &names.gate, [wide, hidden])?, product(&x, &names.up, [wide, hidden])?]),
            |between| Ok(vec![product(between, &names.down, [hidden, wide])?]),
        )
    }
}

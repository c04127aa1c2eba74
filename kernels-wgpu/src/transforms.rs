//! Lists of transforms on the device (spec: transforms), and activations laid out for `multiply`.

use crate::error::{Error, Result, index, product};
use crate::kernels::{Bound, Kernels, Permutation};
use crate::params::{ButterflyParams, TransformParams};
use crate::upload::Uploader;
use crate::workspace::{Scratch, Workspace, grown};
use cmf_format::transform::{Kind, Side, Signs, Transform};

/// Elements of a Hadamard block that fit the workgroup memory that WebGPU promises, twice over.
const SPAN: u32 = 2048;
/// Elements of a workgroup where blocks are smaller.
const SPAN_MIN: u32 = 256;
/// Threads of a workgroup.
const WIDTH: u32 = 64;
/// Threads of a workgroup that have eight vectors each.
const ROUNDS_WIDTH: u32 = 32;
/// Vectors of four that any WebGPU device's uniform buffers hold.
pub(crate) const UNIFORM_VECTORS: u32 = 4096;

/// Rows of f32 in a buffer of the caller.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'b> {
    /// The buffer; `STORAGE` usage.
    pub buffer: &'b wgpu::Buffer,
    /// Where the first row starts, a multiple of 4.
    pub offset_bytes: u64,
    /// Elements from one row to the next.
    pub stride: u32,
}

impl<'b> Rows<'b> {
    /// Rows one after the other from the start of a buffer.
    pub fn of(buffer: &'b wgpu::Buffer, stride: u32) -> Self {
        Self { buffer, offset_bytes: 0, stride }
    }

    /// Binds `count` rows of `width` elements.
    pub(crate) fn bind(&self, kernels: &Kernels, count: u32, width: u32) -> Result<(Bound<'b>, u32)> {
        if count == 0 || width > self.stride && count > 1 {
            return Err(Error::argument(format!("{count} rows of {width} that are {} apart", self.stride)));
        }
        let elements = u64::from(count - 1) * u64::from(self.stride) + u64::from(width);
        let (bound, at) = kernels.bind(self.buffer, self.offset_bytes, elements)?;
        index("rows", elements + u64::from(at))?;
        Ok((bound, at))
    }
}

/// `post * H(pre * x[indices])`, in steps: what a list of transforms comes to on one side of a sum.
#[derive(Debug)]
pub struct GpuTransforms {
    size: u32,
    steps: Vec<Step>,
}

#[derive(Debug, Default)]
struct Step {
    /// 0 without a Hadamard matrix.
    block: u32,
    indices: Option<wgpu::Buffer>,
    pre: Option<wgpu::Buffer>,
    post: Option<wgpu::Buffer>,
}

impl Step {
    /// Whether `hadamard` makes rows of `size` elements, if they begin at multiples of four.
    fn by_four(&self, size: u32) -> bool {
        (4..=SPAN).contains(&self.block) && self.indices.is_none() && size.is_multiple_of(4)
    }
}

#[derive(Default)]
struct Plan {
    block: u32,
    indices: Option<Vec<u32>>,
    pre: Option<Vec<f32>>,
    post: Option<Vec<f32>>,
}

impl GpuTransforms {
    /// A list of transforms, in order of application, of vectors of `size` elements.
    ///
    /// # Errors
    /// `Argument` when a transform has another size, `Unsupported` for a kind that is unknown here,
    /// `Device`.
    pub fn new(
        kernels: &Kernels,
        uploader: &mut Uploader,
        size: usize,
        transforms: &[Transform],
        side: Side,
    ) -> Result<Self> {
        let mut upload = |bytes: Option<&[u8]>| match bytes {
            None => Ok::<_, Error>(None),
            Some(bytes) => {
                let buffer = kernels.storage(bytes.len() as u64, wgpu::BufferUsages::empty())?;
                uploader.write(&buffer, 0, bytes)?;
                Ok(Some(buffer))
            }
        };
        let mut steps = Vec::new();
        for plan in plan(size, transforms, side)? {
            steps.push(Step {
                block: plan.block,
                indices: upload(plan.indices.as_deref().map(bytemuck::cast_slice))?,
                pre: upload(plan.pre.as_deref().map(bytemuck::cast_slice))?,
                post: upload(plan.post.as_deref().map(bytemuck::cast_slice))?,
            });
        }
        Ok(Self { size: index("size", size as u64)?, steps })
    }

    /// Elements of a vector.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Whether there is nothing to do.
    pub fn is_identity(&self) -> bool {
        self.steps.is_empty()
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        let buffers = self.steps.iter().flat_map(|s| [&s.indices, &s.pre, &s.post]);
        buffers.flatten().map(wgpu::Buffer::size).sum()
    }
}

/// The fewest steps that keep the order of the spec's roundings: signs join a product, scales do not.
fn plan(size: usize, transforms: &[Transform], side: Side) -> Result<Vec<Plan>> {
    let mut steps: Vec<Plan> = Vec::new();
    for transform in transforms {
        if transform.size() != size {
            return Err(Error::argument(format!("a transform of {} values for {size}", transform.size())));
        }
        let last = steps.pop();
        let mut step = last.unwrap_or_default();
        match transform.kind() {
            Kind::Scale(factors) => {
                let used = if step.block == 0 { &step.pre } else { &step.post };
                if used.is_some() {
                    steps.push(core::mem::take(&mut step));
                }
                *(if step.block == 0 { &mut step.pre } else { &mut step.post }) = Some(factors.clone());
            }
            Kind::SignHadamard { block, signs } => {
                if step.block != 0 {
                    steps.push(core::mem::take(&mut step));
                }
                step.block = index("block", *block as u64)?;
                match side {
                    Side::Input => sign(&mut step.pre, signs, size),
                    Side::Output => sign(&mut step.post, signs, size),
                }
            }
            Kind::Permute(indices) => {
                if step.block != 0 || step.pre.is_some() || step.indices.is_some() {
                    steps.push(core::mem::take(&mut step));
                }
                step.indices = Some(match side {
                    Side::Input => indices.clone(),
                    Side::Output => inverse(indices),
                });
            }
            _ => return Err(Error::unsupported("an unknown transform")),
        }
        steps.push(step);
    }
    Ok(steps)
}

fn sign(factors: &mut Option<Vec<f32>>, signs: &Signs, size: usize) {
    if *signs == Signs::Positive {
        return;
    }
    let factors = factors.get_or_insert_with(|| vec![1.0; size]);
    for (i, factor) in factors.iter_mut().enumerate() {
        if signs.is_negative(i) {
            *factor = -*factor;
        }
    }
}

fn inverse(indices: &[u32]) -> Vec<u32> {
    let mut inverse = vec![0; indices.len()];
    for (i, index) in indices.iter().enumerate() {
        if let Some(place) = inverse.get_mut(*index as usize) {
            *place = i as u32;
        }
    }
    inverse
}

/// Activations after the input-side transforms, laid out for multiplication: they serve every matrix
/// that reads the same input behind the same transforms.
#[derive(Debug, Default)]
pub struct Activations {
    buffer: Option<wgpu::Buffer>,
    pub(crate) batch: u32,
    pub(crate) size: u32,
    /// Activations of a tile: 1, 4, 8 or 16.
    pub(crate) tile: u32,
    /// Elements of an activation in its tile.
    pub(crate) padded: u32,
}

impl Activations {
    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.buffer.as_ref().map_or(0, wgpu::Buffer::size)
    }

    /// Where they are: tiles of 1, 4, 8 or 16 activations, element by element, in rows of a multiple of 32
    /// elements; `None` before [`Kernels::activate`].
    pub fn buffer(&self) -> Option<&wgpu::Buffer> {
        self.buffer.as_ref()
    }

    pub(crate) fn held(&self) -> Result<&wgpu::Buffer> {
        self.buffer.as_ref().ok_or_else(|| Error::argument("activations that were not prepared"))
    }

    /// Whether they are rows one after the other.
    fn are_rows(&self) -> bool {
        self.tile == 1 && self.padded == self.size
    }

    /// Elements that a kernel sees, by four, if it reads a single activation from a uniform buffer, else 0.
    pub(crate) fn uniform_vectors(&self, kernels: &Kernels) -> u32 {
        uniform_vectors(kernels, self.tile, self.padded)
    }

    /// Makes room in `place` for `batch` activations of `size` elements.
    pub(crate) fn shaped(
        kernels: &Kernels,
        place: &mut Option<wgpu::Buffer>,
        batch: u32,
        size: u32,
    ) -> Result<Self> {
        let tile = match batch {
            0 => return Err(Error::argument("no activations")),
            1 => 1,
            2..=4 => 4,
            // Where a thread has its rows for itself, and nothing is filled up for it.
            _ if kernels.tuning().lanes == 1 && (batch - 1) % 16 >= 8 => 16,
            _ => 8,
        };
        let padded = size.checked_next_multiple_of(32).ok_or_else(|| Error::limit("too many inputs"))?;
        let elements = product("activations", &[u64::from(batch).next_multiple_of(tile), padded.into()])?;
        let made = Self { buffer: None, batch, size, tile: tile as u32, padded };
        let room = u64::from(elements).max(u64::from(made.uniform_vectors(kernels)) * 4);
        let buffer = Some(grown(kernels, place, room)?);
        Ok(Self { buffer, ..made })
    }
}

/// See [`Activations::uniform_vectors`]. Threads that have their rows for themselves read the same elements at
/// a time, and a processor that runs shaders reads uniform buffers without a check for each thread. Where
/// threads of a subgroup read for each other, they need none.
pub(crate) fn uniform_vectors(kernels: &Kernels, tile: u32, elements: u32) -> u32 {
    let alone = kernels.tuning().lanes == 1 && kernels.subgroup_size().is_none();
    let fits = tile == 1 && alone && elements / 4 <= UNIFORM_VECTORS;
    if fits { UNIFORM_VECTORS } else { 0 }
}

/// Where a transform writes.
#[derive(Clone, Copy)]
enum Target<'b> {
    Rows { bound: Bound<'b>, at: u32, stride: u32 },
    Tiles(&'b Activations),
}

impl Kernels {
    /// Transforms `batch` rows of the caller into `activations`.
    ///
    /// # Errors
    /// `Argument` when `x` does not hold these rows, `Limit`, `Device`.
    pub fn activate(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        transforms: &GpuTransforms,
        x: Rows<'_>,
        batch: u32,
        activations: &mut Activations,
    ) -> Result<()> {
        let made = Activations::shaped(self, &mut activations.buffer, batch, transforms.size)?;
        *activations = made;
        let (bound, at) = x.bind(self, batch, transforms.size)?;
        let source = (bound, at, x.stride);
        self.transform(
            pass,
            workspace,
            &transforms.steps,
            transforms.size,
            source,
            batch,
            Target::Tiles(activations),
        )
    }

    /// Lays `batch` plain rows out as activations.
    pub(crate) fn lay_out(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        x: &wgpu::Buffer,
        activations: &Activations,
    ) -> Result<()> {
        let source = (Bound::all(x), 0, activations.size);
        let target = Target::Tiles(activations);
        self.transform(pass, workspace, &[], activations.size, source, activations.batch, target)
    }

    /// Transforms `batch` rows of `from` into rows of the caller.
    pub(crate) fn transform_rows(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        transforms: &GpuTransforms,
        from: &wgpu::Buffer,
        batch: u32,
        to: Rows<'_>,
    ) -> Result<()> {
        let (bound, at) = to.bind(self, batch, transforms.size)?;
        let target = Target::Rows { bound, at, stride: to.stride };
        let source = (Bound::all(from), 0, transforms.size);
        self.transform(pass, workspace, &transforms.steps, transforms.size, source, batch, target)
    }

    #[allow(clippy::too_many_arguments, reason = "a source, a target and what is between")]
    fn transform(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        steps: &[Step],
        size: u32,
        source: (Bound<'_>, u32, u32),
        batch: u32,
        target: Target<'_>,
    ) -> Result<()> {
        let identity = [Step::default()];
        let steps = if steps.is_empty() { &identity } else { steps };
        let mut held;
        let mut source = source;
        for (i, step) in steps.iter().enumerate() {
            let last = i + 1 == steps.len();
            let scratch = if i % 2 == 0 { Scratch::Even } else { Scratch::Odd };
            let next = match last {
                true => None,
                false => Some(workspace.get(self, scratch, u64::from(batch) * u64::from(size))?),
            };
            let plain = |buffer| Target::Rows { bound: Bound::all(buffer), at: 0, stride: size };
            let to = next.as_ref().map_or(target, plain);
            if step.block <= SPAN {
                match to {
                    Target::Tiles(activations) if !activations.are_rows() && step.by_four(size) => {
                        let rows = workspace.get(self, Scratch::Wide, u64::from(batch) * u64::from(size))?;
                        self.step(pass, step, step.block, true, size, source, batch, plain(&rows))?;
                        let source = (Bound::all(&rows), 0, size);
                        self.step(pass, &Step::default(), 0, false, size, source, batch, to)?;
                    }
                    _ => self.step(pass, step, step.block, true, size, source, batch, to)?,
                }
            } else {
                let wide = workspace.get(self, Scratch::Wide, u64::from(batch) * u64::from(size))?;
                let begin =
                    Step { block: SPAN, post: None, indices: step.indices.clone(), pre: step.pre.clone() };
                self.step(pass, &begin, SPAN, false, size, source, batch, plain(&wide))?;
                let mut distance = SPAN;
                while distance < step.block {
                    self.butterfly(pass, size, distance, batch, &wide)?;
                    distance *= 2;
                }
                let end = Step { block: 0, indices: None, pre: None, post: step.post.clone() };
                self.step(pass, &end, step.block, true, size, (Bound::all(&wide), 0, size), batch, to)?;
            }
            if let Some(buffer) = next {
                held = buffer;
                source = (Bound::all(&held), 0, size);
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "a source, a target and what is between")]
    fn step(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        step: &Step,
        whole_block: u32,
        scaled: bool,
        size: u32,
        source: (Bound<'_>, u32, u32),
        batch: u32,
        target: Target<'_>,
    ) -> Result<()> {
        let (source, in_at, in_stride) = source;
        let plain = match target {
            Target::Rows { .. } => true,
            Target::Tiles(activations) => activations.are_rows(),
        };
        let (target, out_at, out_stride, tile, padded, rows) = match target {
            Target::Rows { bound, at, stride } => (bound, at, stride, 0, size, batch),
            Target::Tiles(a) => {
                (Bound::all(a.held()?), 0, a.padded, a.tile, a.padded, a.batch.next_multiple_of(a.tile))
            }
        };
        let span = step.block.max(SPAN_MIN);
        let uses =
            [step.indices.is_some(), step.pre.is_some(), step.post.is_some(), scaled && whole_block > 1];
        let uses = uses.iter().enumerate().map(|(i, used)| u32::from(*used) << i).sum();
        let factor = (1.0 / f64::from(whole_block.max(1)).sqrt()) as f32;
        let stride = |stride| if batch > 1 { stride } else { 0 };
        let by_four = [size, in_at, stride(in_stride)].iter().all(|n| n.is_multiple_of(4));
        let params = TransformParams {
            size,
            padded,
            block: step.block,
            factor,
            uses,
            batch,
            in_at,
            in_stride,
            out_at,
            out_stride,
            tile,
            span,
        };
        if tile > 0 && step.block == 0 && step.indices.is_none() {
            let [pre, post] =
                [&step.pre, &step.post].map(|list| list.as_ref().map_or(self.nothing(), Bound::all));
            let numbers = vec![("M", tile.into()), ("VEC", by_four.into()), ("WIDTH", WIDTH.into())];
            return self.dispatch(
                pass,
                Permutation { kernel: "layout", numbers },
                bytemuck::bytes_of(&params),
                &[source, target, pre, post],
                [(padded / 4 * tile.div_ceil(4)).div_ceil(WIDTH), rows / tile, 1],
            );
        }
        let mut bindings = vec![source, target];
        let lists = [&step.indices, &step.pre, &step.post];
        bindings.extend(lists.map(|list| list.as_ref().map_or(self.nothing(), Bound::all)));
        let rows_by_four = [out_at, stride(out_stride)].iter().all(|n| n.is_multiple_of(4));
        if plain && step.by_four(size) && by_four && rows_by_four {
            let lists = [&step.pre, &step.post].map(|list| list.as_ref().map_or(self.nothing(), Bound::all));
            let numbers = vec![("SPAN", SPAN.into()), ("WIDTH", ROUNDS_WIDTH.into())];
            return self.dispatch(
                pass,
                Permutation { kernel: "hadamard", numbers },
                bytemuck::bytes_of(&params),
                &[&[source, target], &lists[..]].concat(),
                [size.div_ceil(span), batch, 1],
            );
        }
        let permutation = Permutation {
            kernel: "transform",
            numbers: vec![("SPAN", SPAN.into()), ("WIDTH", WIDTH.into())],
        };
        self.dispatch(
            pass,
            permutation,
            bytemuck::bytes_of(&params),
            &bindings,
            [size.div_ceil(span), rows, 1],
        )
    }

    fn butterfly(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        size: u32,
        distance: u32,
        batch: u32,
        buffer: &wgpu::Buffer,
    ) -> Result<()> {
        let params = ButterflyParams { size, distance, batch, at: 0, stride: size };
        let permutation = Permutation { kernel: "butterfly", numbers: vec![("WIDTH", WIDTH.into())] };
        let groups = [(size / 2).div_ceil(WIDTH), batch, 1];
        self.dispatch(pass, permutation, bytemuck::bytes_of(&params), &[Bound::all(buffer)], groups)
    }
}

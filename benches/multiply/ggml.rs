//! ggml's products with packed matrices, in a library that is loaded at run time.

use libloading::{Library, Symbol};
use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Pointer = *mut c_void;

/// A type of ggml, by its number there.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(crate) enum Type {
    F32 = 0,
    Q4_0 = 2,
    Q8_0 = 8,
}

#[repr(C)]
struct InitParams {
    mem_size: usize,
    mem_buffer: Pointer,
    no_alloc: bool,
}

/// The libraries, and what computes.
pub(crate) struct Ggml {
    base: Library,
    _cpu: Library,
    backend: Pointer,
    /// Where weights may lie, with names: first as they are, then repacked.
    places: Vec<(String, Pointer)>,
    set_threads: unsafe extern "C" fn(Pointer, c_int),
    compute: unsafe extern "C" fn(Pointer, Pointer) -> c_int,
}

/// A product that can be computed again and again.
pub(crate) struct Product<'g> {
    ggml: &'g Ggml,
    graph: Pointer,
    out: Pointer,
    outputs: usize,
    contexts: [Pointer; 2],
    buffers: [Pointer; 2],
}

/// Bytes for the names of tensors and the nodes of a graph.
const NAMES: usize = 1 << 20;

impl Ggml {
    /// Loads `libggml-base.so` and `libggml-cpu.so` of a folder.
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        // SAFETY: ggml's libraries have no initialisers that touch what is ours; the signatures below
        // are those of ggml.h, ggml-alloc.h, ggml-backend.h and ggml-cpu.h.
        unsafe {
            let base = Library::new(folder.join("libggml-base.so"))?;
            let cpu = Library::new(folder.join("libggml-cpu.so"))?;
            let init: Symbol<'_, unsafe extern "C" fn() -> Pointer> = cpu.get(b"ggml_backend_cpu_init\0")?;
            let register: Symbol<'_, unsafe extern "C" fn() -> Pointer> =
                cpu.get(b"ggml_backend_cpu_reg\0")?;
            let device: Symbol<'_, unsafe extern "C" fn(Pointer, usize) -> Pointer> =
                base.get(b"ggml_backend_reg_dev_get\0")?;
            let address: Symbol<'_, unsafe extern "C" fn(Pointer, *const c_char) -> Pointer> =
                base.get(b"ggml_backend_reg_get_proc_address\0")?;
            let plain: Symbol<'_, unsafe extern "C" fn() -> Pointer> =
                base.get(b"ggml_backend_cpu_buffer_type\0")?;
            let name: Symbol<'_, unsafe extern "C" fn(Pointer) -> *const c_char> =
                base.get(b"ggml_backend_buft_name\0")?;
            let (backend, register) = (init(), register());
            let mut places = vec![("CPU".to_owned(), plain())];
            let extra = address(register, c"ggml_backend_dev_get_extra_bufts".as_ptr());
            if !extra.is_null() {
                let extra: unsafe extern "C" fn(Pointer) -> *const Pointer = core::mem::transmute(extra);
                let mut next = extra(device(register, 0));
                while !next.is_null() && !(*next).is_null() {
                    places.push((CStr::from_ptr(name(*next)).to_string_lossy().into_owned(), *next));
                    next = next.add(1);
                }
            }
            let set_threads = *cpu.get(b"ggml_backend_cpu_set_n_threads\0")?;
            let compute = *base.get(b"ggml_backend_graph_compute\0")?;
            if backend.is_null() {
                return Err("ggml has no CPU backend".into());
            }
            Ok(Self { base, _cpu: cpu, backend, places, set_threads, compute })
        }
    }

    /// Where weights may lie.
    pub(crate) fn places(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map(|(name, _)| name.as_str())
    }

    pub(crate) fn threads(&self, count: usize) {
        // SAFETY: the backend lives as long as `self`.
        unsafe { (self.set_threads)(self.backend, count as c_int) }
    }

    /// `x`, `[tokens, cols]`, times the transpose of `weights`, `[rows, cols]`, quantised to `kind` and
    /// kept in `place`; `None` where the place does not take them.
    pub(crate) fn product(
        &self,
        kind: Type,
        place: &str,
        weights: &[f32],
        x: &[f32],
        cols: usize,
    ) -> Result<Option<Product<'_>>> {
        let place = self.places.iter().find(|(name, _)| name == place).ok_or("no such place")?.1;
        let (rows, tokens) = (weights.len() / cols, x.len() / cols);
        // SAFETY: as in `load`; sizes of copies are those of the tensors, which `quantised` and `x`
        // have; contexts and buffers are freed with the product, which borrows `self`.
        unsafe {
            let base = &self.base;
            let init: Symbol<'_, unsafe extern "C" fn(InitParams) -> Pointer> = base.get(b"ggml_init\0")?;
            let tensor: Symbol<'_, unsafe extern "C" fn(Pointer, Type, i64, i64) -> Pointer> =
                base.get(b"ggml_new_tensor_2d\0")?;
            let multiply: Symbol<'_, unsafe extern "C" fn(Pointer, Pointer, Pointer) -> Pointer> =
                base.get(b"ggml_mul_mat\0")?;
            let new_graph: Symbol<'_, unsafe extern "C" fn(Pointer) -> Pointer> =
                base.get(b"ggml_new_graph\0")?;
            let expand: Symbol<'_, unsafe extern "C" fn(Pointer, Pointer)> =
                base.get(b"ggml_build_forward_expand\0")?;
            let allocate: Symbol<'_, unsafe extern "C" fn(Pointer, Pointer) -> Pointer> =
                base.get(b"ggml_backend_alloc_ctx_tensors_from_buft\0")?;
            let set: Symbol<'_, unsafe extern "C" fn(Pointer, *const c_void, usize, usize)> =
                base.get(b"ggml_backend_tensor_set\0")?;
            let row_size: Symbol<'_, unsafe extern "C" fn(Type, i64) -> usize> =
                base.get(b"ggml_row_size\0")?;
            type Quantise =
                unsafe extern "C" fn(Type, *const f32, Pointer, i64, i64, i64, *const f32) -> usize;
            let quantise: Symbol<'_, Quantise> = base.get(b"ggml_quantize_chunk\0")?;
            let context = || init(InitParams { mem_size: NAMES, mem_buffer: null_mut(), no_alloc: true });
            let contexts = [context(), context()];
            let w = tensor(contexts[0], kind, cols as i64, rows as i64);
            let input = tensor(contexts[1], Type::F32, cols as i64, tokens as i64);
            let out = multiply(contexts[1], w, input);
            let graph = new_graph(contexts[1]);
            expand(graph, out);
            let plain = self.places[0].1;
            let buffers = [allocate(contexts[0], place), allocate(contexts[1], plain)];
            let product = Product { ggml: self, graph, out, outputs: rows * tokens, contexts, buffers };
            if buffers.iter().any(|buffer| buffer.is_null()) {
                return Ok(None);
            }
            let mut quantised = vec![0u8; row_size(kind, cols as i64) * rows];
            let written = quantise(
                kind,
                weights.as_ptr(),
                quantised.as_mut_ptr().cast(),
                0,
                rows as i64,
                cols as i64,
                null(),
            );
            if written != quantised.len() {
                return Err("ggml quantised other bytes".into());
            }
            set(w, quantised.as_ptr().cast(), 0, written);
            set(input, x.as_ptr().cast(), 0, size_of_val(x));
            Ok(Some(product))
        }
    }
}

impl Product<'_> {
    /// Multiplies.
    pub(crate) fn run(&self) -> Result<()> {
        // SAFETY: backend and graph live as long as `self`.
        match unsafe { (self.ggml.compute)(self.ggml.backend, self.graph) } {
            0 => Ok(()),
            status => Err(format!("ggml failed: {status}").into()),
        }
    }

    /// `[tokens, rows]`.
    pub(crate) fn values(&self) -> Result<Vec<f32>> {
        let mut values = vec![0.0f32; self.outputs];
        // SAFETY: the tensor has as many values as are read.
        unsafe {
            let get: Symbol<'_, unsafe extern "C" fn(Pointer, Pointer, usize, usize)> =
                self.ggml.base.get(b"ggml_backend_tensor_get\0")?;
            get(self.out, values.as_mut_ptr().cast(), 0, size_of_val(values.as_slice()));
        }
        Ok(values)
    }
}

impl Drop for Product<'_> {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the buffers and contexts from here on.
        unsafe {
            type Free<'l> = Symbol<'l, unsafe extern "C" fn(Pointer)>;
            let base = &self.ggml.base;
            let free_buffer: std::result::Result<Free<'_>, _> = base.get(b"ggml_backend_buffer_free\0");
            let free: std::result::Result<Free<'_>, _> = base.get(b"ggml_free\0");
            if let (Ok(free_buffer), Ok(free)) = (free_buffer, free) {
                self.buffers.into_iter().filter(|buffer| !buffer.is_null()).for_each(|b| free_buffer(b));
                self.contexts.into_iter().for_each(|c| free(c));
            }
        }
    }
}

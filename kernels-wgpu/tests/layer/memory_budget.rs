//! A Vulkan layer that gives any driver `VK_EXT_memory_budget`, with figures that a test writes into a file, and
//! the type of device that it names: a GPU's memory that others fill and leave, without a GPU.
//!
//! `mod.rs` beside it compiles it alone, with `rustc`, and has the loader of Vulkan use it. What it has of Vulkan's
//! structures is as the registry lays them out.

#![allow(non_snake_case, reason = "names of Vulkan")]
#![allow(clippy::missing_safety_doc, reason = "every function is called by Vulkan's loader, as Vulkan says")]

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, OnceLock};

type Handle = *mut c_void;
type Function = Option<unsafe extern "system" fn()>;
type GetProcAddr = unsafe extern "system" fn(Handle, *const c_char) -> Function;
type CreateDevice = unsafe extern "system" fn(Handle, *const DeviceCreate, *const c_void, *mut Handle) -> i32;
type List = unsafe extern "system" fn(Handle, *const c_char, *mut u32, *mut Extension) -> i32;
type GetMemory = unsafe extern "system" fn(Handle, *mut Base);
type GetProperties = unsafe extern "system" fn(Handle, *mut Properties);
type GetProperties2 = unsafe extern "system" fn(Handle, *mut Properties2);

const NAME: &CStr = c"VK_EXT_memory_budget";
const MEMORY_BUDGET: u32 = 1_000_237_000;
const INSTANCE_CREATE: u32 = 47;
const DEVICE_CREATE: u32 = 48;

/// How every structure begins.
#[repr(C)]
struct Base {
    kind: u32,
    next: *mut Base,
}

#[repr(C)]
pub struct Negotiate {
    kind: u32,
    next: *mut c_void,
    version: u32,
    instance_proc_addr: Option<GetProcAddr>,
    device_proc_addr: Option<GetProcAddr>,
    physical_device_proc_addr: Option<GetProcAddr>,
}

/// `VkLayerInstanceCreateInfo` and `VkLayerDeviceCreateInfo`.
#[repr(C)]
struct LayerCreate {
    base: Base,
    function: u32,
    link: *mut Link,
}

/// `VkLayerInstanceLink` and `VkLayerDeviceLink`.
#[repr(C)]
struct Link {
    next: *mut Link,
    instance_proc_addr: GetProcAddr,
    /// Of devices; an instance has another function here.
    device_proc_addr: GetProcAddr,
}

#[repr(C)]
pub struct DeviceCreate {
    kind: u32,
    next: *mut Base,
    flags: u32,
    queues: u32,
    queue_infos: *const c_void,
    layers: u32,
    layer_names: *const c_void,
    extensions: u32,
    extension_names: *const *const c_char,
    features: *const c_void,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Extension {
    name: [u8; 256],
    version: u32,
}

#[repr(C)]
struct Budget {
    base: Base,
    budget: [u64; 16],
    used: [u64; 16],
}

/// The beginning of `VkPhysicalDeviceProperties`.
#[repr(C)]
pub struct Properties {
    versions_and_ids: [u32; 4],
    device_type: u32,
}

#[repr(C)]
pub struct Properties2 {
    base: Base,
    properties: Properties,
}

/// What the layer below does, of the instance that was made last. It is asked for as soon as that is made: later
/// the loader gives the functions of the uppermost layer.
#[derive(Clone, Copy)]
struct Below {
    get: GetProcAddr,
    create_device: CreateDevice,
    extensions: List,
    memory: GetMemory,
    properties: GetProperties,
    properties2: GetProperties2,
}

static BELOW: Mutex<Option<Below>> = Mutex::new(None);
static DEVICE: OnceLock<GetProcAddr> = OnceLock::new();

fn below() -> Option<Below> {
    *BELOW.lock().expect("no panic")
}

impl Below {
    /// # Safety
    /// `instance` has just been made below `get`.
    unsafe fn of(instance: Handle, get: GetProcAddr) -> Self {
        /// # Safety
        /// `F` is the type of the function called `name`.
        unsafe fn find<F>(instance: Handle, get: GetProcAddr, name: &CStr) -> F {
            let function = unsafe { get(instance, name.as_ptr()) };
            assert!(function.is_some(), "{name:?}");
            unsafe { std::mem::transmute_copy(&function) }
        }
        unsafe {
            Self {
                get,
                create_device: find(instance, get, c"vkCreateDevice"),
                extensions: find(instance, get, c"vkEnumerateDeviceExtensionProperties"),
                memory: find(instance, get, c"vkGetPhysicalDeviceMemoryProperties2"),
                properties: find(instance, get, c"vkGetPhysicalDeviceProperties"),
                properties2: find(instance, get, c"vkGetPhysicalDeviceProperties2"),
            }
        }
    }
}

/// The link in the chain from `next` on that the loader has put there for this layer; the next layer finds its own.
unsafe fn link(mut next: *mut Base, kind: u32) -> *mut Link {
    while !next.is_null() {
        let create = next.cast::<LayerCreate>();
        if unsafe { (*next).kind == kind && (*create).function == 0 } {
            let link = unsafe { (*create).link };
            unsafe { (*create).link = (*link).next };
            return link;
        }
        next = unsafe { (*next).next };
    }
    panic!("no link of the loader")
}

/// Two numbers, the budget and what is used, of the file that `CMF_LAYER_MEMORY` names; `None` when it has none, and
/// there is no such extension.
fn figures() -> Option<[u64; 2]> {
    let path = std::env::var_os("CMF_LAYER_MEMORY").expect("CMF_LAYER_MEMORY");
    let text = std::fs::read_to_string(path).expect("figures");
    let mut numbers = text.split_whitespace().map(|number| number.parse().expect("a number"));
    numbers.next().map(|budget| [budget, numbers.next().expect("two numbers")])
}

fn set_type(properties: &mut Properties) {
    if let Ok(number) = std::env::var("CMF_LAYER_DEVICE_TYPE") {
        properties.device_type = number.parse().expect("a number");
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "system" fn vkNegotiateLoaderLayerInterfaceVersion(negotiate: *mut Negotiate) -> i32 {
    let negotiate = unsafe { &mut *negotiate };
    negotiate.version = 2;
    negotiate.instance_proc_addr = Some(instance_proc_addr);
    negotiate.device_proc_addr = Some(device_proc_addr);
    negotiate.physical_device_proc_addr = None;
    0
}

unsafe extern "system" fn instance_proc_addr(instance: Handle, name: *const c_char) -> Function {
    let own: *const () = match unsafe { CStr::from_ptr(name) }.to_bytes() {
        b"vkGetInstanceProcAddr" => instance_proc_addr as *const (),
        b"vkGetDeviceProcAddr" => device_proc_addr as *const (),
        b"vkCreateInstance" => create_instance as *const (),
        b"vkCreateDevice" => create_device as *const (),
        b"vkEnumerateDeviceExtensionProperties" => extensions as *const (),
        // The loader calls them by the extension's names where that is on.
        b"vkGetPhysicalDeviceMemoryProperties2" | b"vkGetPhysicalDeviceMemoryProperties2KHR" => {
            memory as *const ()
        }
        b"vkGetPhysicalDeviceProperties" => properties as *const (),
        b"vkGetPhysicalDeviceProperties2" | b"vkGetPhysicalDeviceProperties2KHR" => properties2 as *const (),
        _ => null(),
    };
    match (own.is_null(), below()) {
        (false, _) => unsafe { std::mem::transmute::<*const (), Function>(own) },
        (true, Some(below)) => unsafe { (below.get)(instance, name) },
        (true, None) => None,
    }
}

unsafe extern "system" fn device_proc_addr(device: Handle, name: *const c_char) -> Function {
    match (unsafe { CStr::from_ptr(name) }.to_bytes(), DEVICE.get()) {
        (b"vkGetDeviceProcAddr", _) => unsafe {
            std::mem::transmute::<*const (), Function>(device_proc_addr as *const ())
        },
        (_, Some(get)) => unsafe { get(device, name) },
        (_, None) => None,
    }
}

/// The first fields of `VkInstanceCreateInfo` are all that is read of it.
unsafe extern "system" fn create_instance(
    info: *const Base,
    allocator: *const c_void,
    made: *mut Handle,
) -> i32 {
    type Create = unsafe extern "system" fn(*const Base, *const c_void, *mut Handle) -> i32;
    let get = unsafe { (*link((*info).next, INSTANCE_CREATE)).instance_proc_addr };
    let create = unsafe { get(null_mut(), c"vkCreateInstance".as_ptr()) };
    let create: Create = unsafe { std::mem::transmute(create) };
    let result = unsafe { create(info, allocator, made) };
    if result == 0 {
        *BELOW.lock().expect("no panic") = Some(unsafe { Below::of(*made, get) });
    }
    result
}

/// The driver is not asked for what it does not have.
unsafe extern "system" fn create_device(
    physical: Handle,
    info: *const DeviceCreate,
    allocator: *const c_void,
    made: *mut Handle,
) -> i32 {
    let info = unsafe { &*info };
    let link = unsafe { link(info.next, DEVICE_CREATE) };
    let below = below().expect("an instance");
    let names = unsafe { std::slice::from_raw_parts(info.extension_names, info.extensions as usize) };
    let mut names = names.to_vec();
    names.retain(|name| unsafe { CStr::from_ptr(*name) } != NAME);
    let info = DeviceCreate { extensions: names.len() as u32, extension_names: names.as_ptr(), ..*info };
    let result = unsafe { (below.create_device)(physical, &info, allocator, made) };
    if result == 0 {
        let _ = DEVICE.set(unsafe { (*link).device_proc_addr });
    }
    result
}

unsafe extern "system" fn extensions(
    physical: Handle,
    layer: *const c_char,
    count: *mut u32,
    into: *mut Extension,
) -> i32 {
    let list = below().expect("an instance").extensions;
    if !layer.is_null() || figures().is_none() {
        return unsafe { list(physical, layer, count, into) };
    }
    let mut number = 0;
    unsafe { list(physical, layer, &mut number, null_mut()) };
    let mut all = vec![Extension { name: [0; 256], version: 1 }; number as usize + 1];
    unsafe { list(physical, layer, &mut number, all.as_mut_ptr()) };
    all[number as usize].name[..NAME.to_bytes().len()].copy_from_slice(NAME.to_bytes());
    let room = if into.is_null() { 0 } else { unsafe { *count as usize } };
    unsafe { *count = if into.is_null() { all.len() } else { room.min(all.len()) } as u32 };
    for (index, extension) in all.iter().enumerate().take(room) {
        unsafe { into.add(index).write(*extension) };
    }
    // 5 is VK_INCOMPLETE.
    if !into.is_null() && room < all.len() { 5 } else { 0 }
}

unsafe extern "system" fn memory(physical: Handle, into: *mut Base) {
    unsafe { (below().expect("an instance").memory)(physical, into) };
    let mut next = unsafe { (*into).next };
    while !next.is_null() {
        if unsafe { (*next).kind } == MEMORY_BUDGET {
            let budget = unsafe { &mut *next.cast::<Budget>() };
            [budget.budget[0], budget.used[0]] = figures().unwrap_or_default();
        }
        next = unsafe { (*next).next };
    }
}

unsafe extern "system" fn properties(physical: Handle, into: *mut Properties) {
    unsafe { (below().expect("an instance").properties)(physical, into) };
    set_type(unsafe { &mut *into });
}

unsafe extern "system" fn properties2(physical: Handle, into: *mut Properties2) {
    unsafe { (below().expect("an instance").properties2)(physical, into) };
    set_type(unsafe { &mut (*into).properties });
}

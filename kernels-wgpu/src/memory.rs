//! How much memory a device has left, as its driver says (`VK_EXT_memory_budget`). wgpu has no function for it.

use crate::kernels::own_memory;

/// What a driver says of a device's memory at one moment: of its largest heap, which is where wgpu puts buffers
/// that kernels read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes of the heap.
    pub heap_bytes: u64,
    /// Bytes of it that this process may have in all, those that it has among them. It falls when other
    /// processes take memory.
    pub budget_bytes: u64,
    /// Bytes of it that this process has.
    pub used_bytes: u64,
    /// Bytes that wgpu's allocator has for this device and nothing lies in: the next buffers take them. wgpu
    /// gives a block back when the last buffer in it is gone.
    pub free_bytes: u64,
    /// Whether it is main memory: that of an integrated device, or of a processor that runs shaders.
    pub is_main_memory: bool,
}

impl DeviceMemory {
    /// What the driver of `device` says. `None` where it says nothing: it has no `VK_EXT_memory_budget`, or wgpu
    /// does not use that (of RADV, the open driver for AMD's devices), or the device is not one of Vulkan.
    pub fn of(device: &wgpu::Device) -> Option<Self> {
        let Heap { heap_bytes, budget_bytes, used_bytes } = driver::heap(device)?;
        let allocator = device.generate_allocator_report();
        let free = |report: wgpu::wgt::AllocatorReport| {
            report.total_reserved_bytes.saturating_sub(report.total_allocated_bytes)
        };
        let is_main_memory = own_memory(&device.adapter_info());
        let free_bytes = allocator.map_or(0, free);
        Some(Self { heap_bytes, budget_bytes, used_bytes, free_bytes, is_main_memory })
    }

    /// Bytes that weights may have on the device in all, when they have `weight_bytes` now.
    pub fn room_bytes(&self, weight_bytes: u64) -> u64 {
        let theirs = weight_bytes.saturating_add(self.free_bytes).min(self.used_bytes);
        self.budget_bytes.saturating_sub(self.used_bytes.saturating_sub(theirs))
    }
}

/// What a driver says of a heap.
#[derive(Clone, Copy)]
struct Heap {
    heap_bytes: u64,
    budget_bytes: u64,
    used_bytes: u64,
}

#[cfg(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd"))]
#[expect(unsafe_code, reason = "Vulkan says how much memory is left, and wgpu has no function that asks it")]
mod driver {
    use super::Heap;
    use ash::{ext, vk};
    use wgpu::hal::api::Vulkan;

    /// The largest heap of memory of the device's own.
    pub(super) fn heap(device: &wgpu::Device) -> Option<Heap> {
        // SAFETY: the guard is dropped here, and nothing of what it gives is destroyed: questions alone are asked.
        let device = unsafe { device.as_hal::<Vulkan>() }?;
        let (shared, physical) = (device.shared_instance(), device.raw_physical_device());
        // The question is one of Vulkan 1.1, of the instance and of the device.
        if shared.instance_api_version() < vk::API_VERSION_1_1
            || !device.enabled_device_extensions().contains(&ext::memory_budget::NAME)
        {
            return None;
        }
        let instance = shared.raw_instance();
        // SAFETY: `physical` is of `instance`, both of which wgpu keeps alive as long as the guard `device`.
        let properties = unsafe { instance.get_physical_device_properties(physical) };
        if properties.api_version < vk::API_VERSION_1_1 {
            return None;
        }
        let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
        let mut memory = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
        // SAFETY: `physical` is of `instance` as above; both are of version 1.1 at least, so that the function is
        // there; the device has the extension of the one structure in the chain, which outlives the call.
        unsafe { instance.get_physical_device_memory_properties2(physical, &mut memory) };
        let properties = memory.memory_properties;
        let heaps =
            properties.memory_heaps_as_slice().iter().zip(budget.heap_budget.iter().zip(budget.heap_usage));
        let own = heaps.filter(|(heap, _)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
        let (heap, (budget_bytes, used_bytes)) = own.max_by_key(|(heap, _)| heap.size)?;
        Some(Heap { heap_bytes: heap.size, budget_bytes: *budget_bytes, used_bytes })
    }
}

/// wgpu has no Vulkan here.
#[cfg(not(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd")))]
mod driver {
    pub(super) fn heap(_: &wgpu::Device) -> Option<super::Heap> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::DeviceMemory;

    #[test]
    fn room_is_what_others_leave() {
        let memory = DeviceMemory {
            heap_bytes: 1000,
            budget_bytes: 900,
            used_bytes: 300,
            free_bytes: 50,
            is_main_memory: false,
        };
        // 150 of the 300 are neither weights nor free.
        assert_eq!(memory.room_bytes(100), 750);
        // Weights that went and left a hole change nothing.
        assert_eq!(DeviceMemory { free_bytes: 100, ..memory }.room_bytes(50), 750);
        // Not more than there is, however much is free in blocks of other memory.
        assert_eq!(DeviceMemory { free_bytes: 5000, ..memory }.room_bytes(100), 900);
        assert_eq!(DeviceMemory { budget_bytes: 100, ..memory }.room_bytes(100), 0);
    }
}

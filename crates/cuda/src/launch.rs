//! A kernel with its grid and its arguments.

use std::ffi::c_void;

use crate::loss::Constants;

/// An argument of a kernel, in the layout of C.
#[derive(Debug, Clone, Copy)]
pub enum Argument {
    /// An address on the device. Null if the kernel gets nothing.
    Address(*const c_void),
    /// An `int`.
    Int(i32),
    /// A `size_t`.
    Size(usize),
    /// A `float`.
    Float(f32),
    /// The `Loss` of loss.cu.
    Loss(Constants),
}

impl Argument {
    /// An address, or null.
    pub(crate) fn or_null<T>(address: Option<*const T>) -> Self {
        Self::Address(address.map_or(std::ptr::null(), <*const T>::cast))
    }

    /// Where the argument itself is.
    fn place(&self) -> *const c_void {
        match self {
            Self::Address(address) => std::ptr::from_ref(address).cast(),
            Self::Int(number) => std::ptr::from_ref(number).cast(),
            Self::Size(number) => std::ptr::from_ref(number).cast(),
            Self::Float(number) => std::ptr::from_ref(number).cast(),
            Self::Loss(constants) => std::ptr::from_ref(constants).cast(),
        }
    }
}

impl<T> From<*const T> for Argument {
    fn from(address: *const T) -> Self {
        Self::Address(address.cast())
    }
}

impl<T> From<*mut T> for Argument {
    fn from(address: *mut T) -> Self {
        Self::Address(address.cast_const().cast())
    }
}

/// A kernel with its grid and its arguments. Grid and block have one dimension, and no kernel takes dynamic shared
/// memory.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: String,
    /// Number of blocks.
    pub blocks: u32,
    /// Threads of each block: a power of two.
    pub threads: u32,
    /// What the kernel gets.
    pub arguments: Vec<Argument>,
}

impl Launch {
    /// The places of the arguments, as `cuLaunchKernel` takes them. They are valid while this launch is borrowed.
    pub fn places(&self) -> Vec<*const c_void> {
        self.arguments.iter().map(Argument::place).collect()
    }
}

/// Maximum threads of a block in the kernels.
const MOST_THREADS: usize = 1024;

/// Returns the threads of a block for a row of this width: enough for four numbers each, and at least a warp.
pub(crate) fn threads_for(width: usize) -> u32 {
    let threads = width.div_ceil(4).next_power_of_two();
    u32::try_from(threads.clamp(32, MOST_THREADS)).unwrap_or(32)
}

/// Returns the number of blocks of 256 threads for a kernel that loops over this many numbers.
pub(crate) fn blocks_for(count: usize) -> u32 {
    // More blocks than fit on any GPU at a time gain nothing.
    u32::try_from(count.div_ceil(256).clamp(1, 4096)).unwrap_or(4096)
}

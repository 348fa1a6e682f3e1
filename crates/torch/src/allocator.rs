//! The C library's allocator, set up for tensors.

/// Keeps freed memory for the next tensor instead of giving it back to the system. Call it before the first
/// thread starts.
///
/// A step allocates and frees the same large tensors over and over; glibc gives them back each time, and the
/// page faults of getting them again cost 5 to 15 % of a forward (docs/performance.md). Tensors of 32 MiB and
/// more are still given back. Elsewhere than on glibc this does nothing.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt only changes parameters of the allocator; it may be called at any time.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
            libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        }
    }
}

/// Gives what was freed back to the system, once: after work of another kind than what follows.
pub fn give_freed_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a plain call into the C library, which any thread may make.
    unsafe {
        libc::malloc_trim(0);
    }
}

//! Tunes the C library's allocator for tensors.

/// Keeps freed memory for the next tensor instead of returning it to the system. Call it before the first thread
/// starts.
///
/// A step allocates and frees the same large tensors over and over. By default, glibc returns them each time, and
/// the page faults for getting them back cost 5 to 15% of a forward pass (docs/performance.md). Tensors of 32 MiB
/// and more are still returned. Without glibc, this does nothing.
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

/// Returns freed memory to the system once. Call it between two different kinds of work.
pub fn give_freed_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a plain call into the C library, which any thread may make.
    unsafe {
        libc::malloc_trim(0);
    }
}

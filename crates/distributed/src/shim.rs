//! The C interface of `cpp/shim.cpp`, made safe: handles that free themselves, and errors as strings.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr, slice,
    time::Duration,
};

#[repr(C)]
struct RawStore {
    opaque: [u8; 0],
}

#[repr(C)]
struct RawGroup {
    opaque: [u8; 0],
}

unsafe extern "C" {
    fn ddk_c10d_free(memory: *mut c_void);
    fn ddk_store_connect(
        host: *const c_char,
        port: u16,
        serves: bool,
        timeout_ms: i64,
        prefix: *const c_char,
        store: *mut *mut RawStore,
    ) -> *mut c_char;
    fn ddk_store_branch(
        of: *mut RawStore,
        timeout_ms: i64,
        prefix: *const c_char,
        store: *mut *mut RawStore,
    ) -> *mut c_char;
    fn ddk_store_free(store: *mut RawStore);
    fn ddk_store_set(
        store: *mut RawStore,
        key: *const c_char,
        data: *const u8,
        size: usize,
    ) -> *mut c_char;
    fn ddk_store_add(
        store: *mut RawStore,
        key: *const c_char,
        amount: i64,
        sum: *mut i64,
    ) -> *mut c_char;
    fn ddk_store_has(store: *mut RawStore, key: *const c_char, present: *mut bool) -> *mut c_char;
    fn ddk_store_get(
        store: *mut RawStore,
        key: *const c_char,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> *mut c_char;
    fn ddk_group_connect(
        store: *mut RawStore,
        rank: usize,
        size: usize,
        timeout_ms: i64,
        names: *const *const c_char,
        count: usize,
        are_interfaces: bool,
        listens: *mut bool,
        group: *mut *mut RawGroup,
    ) -> *mut c_char;
    fn ddk_group_free(group: *mut RawGroup);
    fn ddk_group_transfer(
        group: *mut RawGroup,
        tag: c_int,
        out: *mut u8,
        out_sizes: *const usize,
        input: *const u8,
        in_size: usize,
        in_step: usize,
    ) -> *mut c_char;
}

/// Turns what a function of the shim returned into a result, and frees it.
fn done(error: *mut c_char) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns null or a text that ends with its NUL, which it expects back.
    unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        ddk_c10d_free(error.cast());
        Err(text)
    }
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("\"{}\" contains a NUL byte", text.escape_debug()))
}

/// Rounds up, because c10d takes 0 for no limit.
fn milliseconds(timeout: Duration) -> i64 {
    i64::try_from(timeout.as_micros().div_ceil(1000)).map_or(i64::MAX, |time| time.max(1))
}

/// A connection to the store.
#[derive(Debug)]
pub(crate) struct StoreHandle(*mut RawStore);

// SAFETY: c10d's TCPStore locks itself for each call, and PrefixStore holds only a string and that store.
unsafe impl Send for StoreHandle {}
// SAFETY: as above.
unsafe impl Sync for StoreHandle {}

impl StoreHandle {
    pub(crate) fn connect(
        host: &str,
        port: u16,
        serves: bool,
        timeout: Duration,
        prefix: &str,
    ) -> Result<Self, String> {
        let (host, prefix) = (c_string(host)?, c_string(prefix)?);
        let mut store = ptr::null_mut();
        let timeout = milliseconds(timeout);
        // SAFETY: the strings end with their NULs, and `store` is a place for a pointer.
        done(unsafe {
            ddk_store_connect(
                host.as_ptr(),
                port,
                serves,
                timeout,
                prefix.as_ptr(),
                &raw mut store,
            )
        })?;
        Ok(Self(store))
    }

    /// A connection of its own, so that a long wait on it delays no other.
    pub(crate) fn branch(&self, timeout: Duration, prefix: &str) -> Result<Self, String> {
        let prefix = c_string(prefix)?;
        let mut store = ptr::null_mut();
        // SAFETY: the handle is valid until it is dropped; the rest as above.
        done(unsafe {
            ddk_store_branch(
                self.0,
                milliseconds(timeout),
                prefix.as_ptr(),
                &raw mut store,
            )
        })?;
        Ok(Self(store))
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        let key = c_string(key)?;
        // SAFETY: as above, and the shim copies the value.
        done(unsafe { ddk_store_set(self.0, key.as_ptr(), value.as_ptr(), value.len()) })
    }

    pub(crate) fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        let key = c_string(key)?;
        let mut sum = 0;
        // SAFETY: as above, and `sum` is a place for the number.
        done(unsafe { ddk_store_add(self.0, key.as_ptr(), amount, &raw mut sum) })?;
        Ok(sum)
    }

    pub(crate) fn has(&self, key: &str) -> Result<bool, String> {
        let key = c_string(key)?;
        let mut present = false;
        // SAFETY: as above.
        done(unsafe { ddk_store_has(self.0, key.as_ptr(), &raw mut present) })?;
        Ok(present)
    }

    /// The value of a key, or `None` if it is not set yet.
    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, String> {
        if !self.has(key)? {
            return Ok(None);
        }
        let key = c_string(key)?;
        let (mut data, mut size) = (ptr::null_mut(), 0);
        // SAFETY: as above. On success, `data` points to `size` bytes, which the shim expects back.
        unsafe {
            done(ddk_store_get(
                self.0,
                key.as_ptr(),
                &raw mut data,
                &raw mut size,
            ))?;
            let value = slice::from_raw_parts(data, size).to_vec();
            ddk_c10d_free(data.cast());
            Ok(Some(value))
        }
    }
}

impl Drop for StoreHandle {
    fn drop(&mut self) {
        // SAFETY: nothing uses the handle after this.
        unsafe { ddk_store_free(self.0) };
    }
}

/// Where Gloo listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Binding {
    /// The addresses of these interfaces: `eth0`, ….
    Interfaces(Vec<String>),
    /// An address of this machine.
    Address(String),
}

impl Binding {
    pub(crate) fn to_text(&self) -> String {
        match self {
            Self::Interfaces(names) => names.join(", "),
            Self::Address(address) => address.clone(),
        }
    }
}

/// The connections of this process to all others of a group.
#[derive(Debug)]
pub(crate) struct GlooHandle(*mut RawGroup);

// SAFETY: c10d allows calls from any thread, one at a time. A transfer takes the handle exclusively.
unsafe impl Send for GlooHandle {}

/// Why a group cannot be connected.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// This process cannot listen there.
    Listen(String),
    /// Another rank cannot be reached.
    Ranks(String),
}

/// What a transfer sends to each rank.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sent {
    /// The same bytes.
    Same,
    /// One of as many equal parts as there are ranks.
    Parts,
}

impl GlooHandle {
    pub(crate) fn connect(
        store: &StoreHandle,
        rank: usize,
        size: usize,
        timeout: Duration,
        binding: &Binding,
    ) -> Result<Self, ConnectError> {
        let (names, are_interfaces) = match binding {
            Binding::Interfaces(names) => (names.as_slice(), true),
            Binding::Address(address) => (slice::from_ref(address), false),
        };
        let names: Result<Vec<CString>, String> = names.iter().map(|name| c_string(name)).collect();
        let names = names.map_err(ConnectError::Listen)?;
        let pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let (mut listens, mut group) = (false, ptr::null_mut());
        // SAFETY: the store's handle is valid, `pointers` holds as many strings as its length, and `listens` and
        // `group` are places for what the function sets.
        let result = done(unsafe {
            ddk_group_connect(
                store.0,
                rank,
                size,
                milliseconds(timeout),
                pointers.as_ptr(),
                pointers.len(),
                are_interfaces,
                &raw mut listens,
                &raw mut group,
            )
        });
        match result {
            Ok(()) => Ok(Self(group)),
            Err(text) if listens => Err(ConnectError::Ranks(text)),
            Err(text) => Err(ConnectError::Listen(text)),
        }
    }

    /// Sends to and receives from each rank. Rank `r` receives `out_sizes[r]` bytes from each rank.
    ///
    /// # Safety
    /// `out` must have room for the sum of `out_sizes`, which has one size per rank. `input` must have `in_size`
    /// bytes, or as many times this as there are ranks for [`Sent::Parts`]. The ranges must not overlap, and nothing
    /// else may use `out` during the call. All ranks must agree on the sizes: what a rank sends is what the others
    /// expect from it, and this rank's own share of `out` has `in_size` bytes.
    pub(crate) unsafe fn transfer(
        &mut self,
        tag: i32,
        out: *mut u8,
        out_sizes: &[usize],
        input: *const u8,
        in_size: usize,
        sent: Sent,
    ) -> Result<(), String> {
        let in_step = match sent {
            Sent::Same => 0,
            Sent::Parts => in_size,
        };
        // SAFETY: the handle is valid until it is dropped, and the caller promises the rest.
        done(unsafe {
            ddk_group_transfer(
                self.0,
                tag,
                out,
                out_sizes.as_ptr(),
                input,
                in_size,
                in_step,
            )
        })
    }
}

impl Drop for GlooHandle {
    fn drop(&mut self) {
        // SAFETY: nothing uses the handle after this.
        unsafe { ddk_group_free(self.0) };
    }
}

//! The hashes by which the Hub names the contents of files.

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Computes the name of a file's contents, part by part.
pub(crate) enum Hasher {
    /// A file in the large file storage: SHA-256.
    Large(Sha256),
    /// Any other file: SHA-1 of git's header and the contents.
    Git(Sha1),
    /// The server names the contents by something else.
    Unknown,
}

impl Hasher {
    /// Begins to compute what must equal `etag` for a file of `size` bytes.
    pub(crate) fn new(etag: &str, size: u64) -> Self {
        let is_hex = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match etag.len() {
            64 if is_hex => Self::Large(Sha256::new()),
            40 if is_hex => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {size}\0"));
                Self::Git(hasher)
            }
            _ => Self::Unknown,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Large(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
            Self::Unknown => {}
        }
    }

    /// The hash in hexadecimal digits. `None` if the Hub names no hash.
    pub(crate) fn finish(self) -> Option<String> {
        let hex =
            |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        match self {
            Self::Large(hasher) => Some(hex(&hasher.finalize())),
            Self::Git(hasher) => Some(hex(&hasher.finalize())),
            Self::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_have_the_names_that_sha256sum_and_git_give_them() {
        let of = |etag: &str, parts: &[&str]| {
            let size = parts.iter().map(|part| part.len() as u64).sum();
            let mut hasher = Hasher::new(etag, size);
            parts.iter().for_each(|part| hasher.update(part.as_bytes()));
            hasher.finish()
        };
        // printf abc | sha256sum
        let large = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of(large, &["a", "bc"]).as_deref(), Some(large));
        // printf abc | git hash-object --stdin
        let git = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";
        assert_eq!(of(git, &["ab", "c"]).as_deref(), Some(git));
        assert_eq!(of("abc-3", &["abc"]), None);
    }
}

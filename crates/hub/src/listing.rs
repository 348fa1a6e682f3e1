//! What a commit contains, as the Hub describes it.

use serde::{Deserialize, Serialize};

use crate::HubError;

/// A file of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemoteFile {
    /// The path within the repository.
    pub(crate) path: String,
    /// Size and hash, if the Hub's list has them.
    pub(crate) content: Option<Content>,
}

/// A file's contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    /// Size in bytes.
    pub(crate) size: u64,
    /// The SHA-256 of a large file, or git's hash of another one. Names the blob in the cache.
    pub(crate) etag: String,
}

/// The files of a commit, sorted by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listing {
    pub(crate) files: Vec<RemoteFile>,
}

/// The Hub's answer about a revision.
#[derive(Debug, Deserialize)]
pub(crate) struct RevisionAnswer {
    pub(crate) sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<LargeFile>,
}

#[derive(Debug, Deserialize)]
struct LargeFile {
    sha256: String,
    size: u64,
}

impl RevisionAnswer {
    /// Checks the answer, so that no name in it leads out of the cache.
    pub(crate) fn listing(self, address: &str) -> Result<Listing, HubError> {
        let mut files = Vec::with_capacity(self.siblings.len());
        for sibling in self.siblings {
            if !is_inside(&sibling.rfilename) {
                let reason = format!("it names the file {:?}", sibling.rfilename);
                return Err(HubError::not_a_hub(address, reason));
            }
            let content = match (sibling.lfs, sibling.blob_id, sibling.size) {
                (Some(LargeFile { sha256, size }), ..) => Some(Content { size, etag: sha256 }),
                (None, Some(etag), Some(size)) => Some(Content { size, etag }),
                _ => None,
            };
            if let Some(wrong) = content.as_ref().filter(|content| !is_etag(&content.etag)) {
                let reason = format!("it names the hash {:?}", wrong.etag);
                return Err(HubError::not_a_hub(address, reason));
            }
            files.push(RemoteFile {
                path: sibling.rfilename,
                content,
            });
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(Listing { files })
    }
}

/// Whether a path stays in the folder that it is relative to.
fn is_inside(path: &str) -> bool {
    path.split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..")
        && !path.contains('\0')
}

/// Whether a hash can be the name of a file.
pub(crate) fn is_etag(text: &str) -> bool {
    let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
    !text.is_empty() && text.len() < 200 && text.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(siblings: &str) -> Result<Listing, HubError> {
        let text = format!(r#"{{"sha":"abc","siblings":[{siblings}],"tags":[]}}"#);
        let answer: RevisionAnswer = serde_json::from_str(&text).unwrap();
        answer.listing("http://hub")
    }

    #[test]
    fn large_files_are_named_by_their_contents_and_others_by_git() {
        let listing = listing(
            r#"{"rfilename":"z.safetensors","size":134,"blobId":"p","lfs":{"sha256":"s","size":9,"pointerSize":134}},
               {"rfilename":"config.json","size":7,"blobId":"g"}, {"rfilename":"m/x"}"#,
        );
        let files = listing.unwrap().files;
        let content = |size, etag: &str| {
            Some(Content {
                size,
                etag: etag.to_owned(),
            })
        };
        let found: Vec<_> = files
            .into_iter()
            .map(|file| (file.path, file.content))
            .collect();
        let expected = [
            ("config.json", content(7, "g")),
            ("m/x", None),
            ("z.safetensors", content(9, "s")),
        ];
        assert_eq!(
            found,
            expected.map(|(path, content)| (path.to_owned(), content))
        );
    }

    #[test]
    fn no_name_leads_out_of_the_cache() {
        for path in ["../x", "/etc/passwd", "a//b", "a/../../b", "", "."] {
            let sibling = serde_json::json!({ "rfilename": path }).to_string();
            assert!(listing(&sibling).is_err(), "{path}");
        }
        let sibling = r#"{"rfilename":"x","size":1,"blobId":"../y"}"#;
        assert!(listing(sibling).is_err());
    }
}

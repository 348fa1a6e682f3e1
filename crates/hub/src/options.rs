//! Where the Hub and its cache are, read from the variables that all Hugging Face programs read.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The Hub's address, without a slash at its end.
const ENDPOINT: &str = "https://huggingface.co";

/// The Hub's address, the user's token, the cache, and patience.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address of the Hub or a mirror, without a slash at its end.
    pub endpoint: String,
    /// Identifies the user, for gated and private repositories.
    pub token: Option<Token>,
    /// Whether connections are forbidden.
    pub offline: bool,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// Maximum time for a connection, for an answer to begin, and between two parts of it.
    pub timeout: Duration,
    /// Number of attempts without any progress before a request fails.
    pub attempts: u32,
    /// Wait before the second attempt. It doubles before each further one.
    pub backoff: Duration,
}

/// A user's token, which no output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Wraps a token.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token(…)")
    }
}

impl Options {
    /// Reads the environment of this process.
    pub fn from_env() -> Self {
        Self::from(|name| std::env::var(name).ok())
    }

    /// Reads an environment: `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, `HF_HOME`, `HF_HUB_CACHE`.
    pub fn from(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |names: &[&str]| {
            let values = names.iter().filter_map(|name| variable(name));
            let mut values = values.map(|value| value.trim().to_owned());
            values.find(|value| !value.is_empty())
        };
        let home = PathBuf::from(set(&["HOME"]).unwrap_or_default());
        let path = |text: String| match text.strip_prefix("~/") {
            Some(rest) => home.join(rest),
            None => PathBuf::from(text),
        };
        let hf_home = set(&["HF_HOME"]).map(path).unwrap_or_else(|| {
            let cache = set(&["XDG_CACHE_HOME"]).map(path);
            cache
                .unwrap_or_else(|| home.join(".cache"))
                .join("huggingface")
        });
        let cache = set(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map(path);
        let token_file = set(&["HF_TOKEN_PATH"]).map(path);
        let token_file = token_file.unwrap_or_else(|| hf_home.join("token"));
        let token = set(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| read(&token_file));
        let offline = set(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).unwrap_or_default();
        let endpoint = set(&["HF_ENDPOINT"]).unwrap_or_else(|| ENDPOINT.to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.map(Token::new),
            offline: ["1", "ON", "YES", "TRUE"].contains(&&*offline.to_uppercase()),
            cache: cache.unwrap_or_else(|| hf_home.join("hub")),
            timeout: Duration::from_secs(30),
            attempts: 5,
            backoff: Duration::from_secs(1),
        }
    }
}

/// The token in a file that `hf auth login` wrote.
fn read(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Options {
        Options::from(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_is_read_as_huggingface_hub_reads_it() {
        let cache = |variables: &[(&str, &str)]| of(variables).cache;
        let home = ("HOME", "/home/u");
        assert_eq!(cache(&[home]), Path::new("/home/u/.cache/huggingface/hub"));
        let xdg = ("XDG_CACHE_HOME", "/var/cache");
        assert_eq!(cache(&[home, xdg]), Path::new("/var/cache/huggingface/hub"));
        let hf = ("HF_HOME", "~/hf");
        assert_eq!(cache(&[home, xdg, hf]), Path::new("/home/u/hf/hub"));
        let own = ("HF_HUB_CACHE", "/big/hub");
        assert_eq!(cache(&[home, xdg, hf, own]), Path::new("/big/hub"));
        let plain = of(&[home]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert!(!plain.offline && plain.token.is_none());
        let mirror = of(&[
            home,
            ("HF_ENDPOINT", "http://mirror/"),
            ("HF_HUB_OFFLINE", "true"),
        ]);
        assert_eq!(mirror.endpoint, "http://mirror");
        assert!(mirror.offline && !of(&[home, ("HF_HUB_OFFLINE", "0")]).offline);
    }

    #[test]
    fn the_token_comes_from_the_environment_or_a_file_and_is_never_shown() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().display().to_string();
        let hf = ("HF_HOME", &*folder);
        assert_eq!(of(&[hf]).token, None);
        fs::write(scratch.path().join("token"), "hf_of_file\n").unwrap();
        assert_eq!(of(&[hf]).token, Some(Token::new("hf_of_file")));
        let of_env = of(&[hf, ("HF_TOKEN", " hf_of_env ")]);
        assert_eq!(of_env.token, Some(Token::new("hf_of_env")));
        assert!(!format!("{of_env:?}").contains("hf_of_env"));
        fs::write(scratch.path().join("other"), "hf_of_other").unwrap();
        let other = scratch.path().join("other").display().to_string();
        assert_eq!(
            of(&[hf, ("HF_TOKEN_PATH", &other)]).token,
            Some(Token::new("hf_of_other"))
        );
    }
}

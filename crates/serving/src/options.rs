//! How to reach a teacher's server, and what to expect from it.

use std::{fmt, time::Duration};

use ureq::http::Uri;

use crate::ServingError;

/// The environment variable with the token of the teacher's server. The caller reads it.
pub const TOKEN: &str = "DDK_TEACHER_TOKEN";

/// The number format of the hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HiddenDtype {
    /// IEEE 754 single precision.
    Fp32,
    /// The upper half of an [`HiddenDtype::Fp32`].
    Bf16,
}

impl HiddenDtype {
    /// vLLM's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }

    /// Bytes per number.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// A little-endian number.
    pub(crate) fn number(self, bytes: &[u8]) -> f64 {
        let bits = bytes
            .iter()
            .rev()
            .fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        match self {
            Self::Fp32 => f32::from_bits(bits).into(),
            Self::Bf16 => f32::from_bits(bits << 16).into(),
        }
    }
}

/// A teacher's server, and the conditions for its use.
#[derive(Clone)]
pub struct ServerOptions {
    /// `http://HOST:PORT` or `https://HOST:PORT`, with the prefix of a reverse proxy if there is one. HTTPS trusts the
    /// system's CAs, or those in the file that `SSL_CERT_FILE` names. Proxies in the environment do not apply.
    pub address: String,
    /// The model's name at the server. `None`: the only model that the server lists.
    pub served_model: Option<String>,
    /// Numbers per row.
    pub hidden_size: usize,
    /// The format in which the server sends the numbers.
    pub dtype: HiddenDtype,
    /// Maximum number of requests at once.
    pub requests_in_flight: usize,
    /// Maximum time from the start of a request to the end of its answer.
    pub request_timeout: Duration,
    /// How long an outage may last. Zero: no request is repeated.
    pub patience: Duration,
    /// Sent as Bearer token.
    pub token: Option<String>,
}

// Without the token, which must not reach a log.
impl fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerOptions")
            .field("address", &self.address)
            .field("served_model", &self.served_model)
            .field("hidden_size", &self.hidden_size)
            .field("dtype", &self.dtype)
            .field("requests_in_flight", &self.requests_in_flight)
            .field("request_timeout", &self.request_timeout)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// Checks an address and returns it without a slash at its end.
pub(crate) fn checked(address: &str) -> Result<String, ServingError> {
    let problem = |problem| ServingError::BadAddress {
        // A password may precede the `@`.
        address: address.rsplit('@').next().unwrap_or_default().to_owned(),
        problem,
    };
    let uri: Uri = address.parse().map_err(|_| problem("is not a URL"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(problem("does not start with http:// or https://"));
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err(problem("names a user"));
    }
    let host = uri.host().unwrap_or_default();
    if host.is_empty() || (authority != host && uri.port_u16().is_none()) {
        return Err(problem("does not name a host and a port"));
    }
    if uri.query().is_some() || address.contains('#') {
        return Err(problem("has a query or a fragment"));
    }
    Ok(address.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_a_server_and_nothing_else() {
        for (address, base) in [
            ("http://localhost:8000", "http://localhost:8000"),
            ("https://gpu-7.example/", "https://gpu-7.example"),
            ("http://[::1]:8000", "http://[::1]:8000"),
            (
                "https://proxy/teachers/large/",
                "https://proxy/teachers/large",
            ),
        ] {
            assert_eq!(checked(address).unwrap(), base);
        }
        for address in [
            "",
            "gpu-7",
            "gpu-7:8000",
            "/pooling",
            "ftp://gpu-7",
            "http://",
            "http://:8000",
            "http://gpu 7",
            "http://gpu-7:99999",
            "http://gpu-7:",
            "http://gpu-7?a=b",
            "http://gpu-7#a",
            "http://me:secret@gpu-7:80",
        ] {
            let error = checked(address).unwrap_err();
            assert!(
                matches!(error, ServingError::BadAddress { .. }),
                "{address}: {error}"
            );
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn numbers_are_little_endian() {
        assert_eq!(HiddenDtype::Fp32.number(&(-1.5f32).to_le_bytes()), -1.5);
        assert_eq!(HiddenDtype::Bf16.number(&[0xc0, 0xbf]), -1.5);
    }

    #[test]
    fn a_token_is_not_printed() {
        let options = ServerOptions {
            address: "http://gpu-7".to_owned(),
            served_model: None,
            hidden_size: 8,
            dtype: HiddenDtype::Bf16,
            requests_in_flight: 1,
            request_timeout: Duration::from_secs(1),
            patience: Duration::ZERO,
            token: Some("secret".to_owned()),
        };
        let text = format!("{options:?}");
        assert!(text.contains("gpu-7") && !text.contains("secret"), "{text}");
    }
}

//! The two questions to a server: what it serves, and the hidden states of some sequences.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use crate::{HiddenDtype, ServerOptions, ServingError, answer, error::Failure, http::Http};

/// What a server says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The model's name at the server.
    pub model: String,
    /// Maximum number of tokens per sequence that the server accepts (`max_model_len`).
    pub context: usize,
    /// vLLM's version, if the server tells it.
    pub version: Option<String>,
}

/// Asks once per call.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) http: Http,
    served_model: Option<String>,
    hidden_size: usize,
    dtype: HiddenDtype,
}

/// Sequences that one request carries.
pub(crate) struct Request {
    /// What the server serves.
    pub(crate) served: Arc<Description>,
    /// Tokens of each sequence.
    pub(crate) lengths: Vec<usize>,
    json: String,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    max_model_len: Option<usize>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

impl Client {
    pub(crate) fn new(options: ServerOptions) -> Result<Self, ServingError> {
        Ok(Self {
            http: Http::new(&options)?,
            served_model: options.served_model,
            hidden_size: options.hidden_size,
            dtype: options.dtype,
        })
    }

    /// Asks which model the server serves.
    pub(crate) fn describe(&self) -> Result<Description, Failure> {
        let models: Models = self.http.get("/v1/models")?;
        let asked = self.served_model.as_ref();
        let mut found = models
            .data
            .iter()
            .filter(|model| asked.is_none_or(|name| *name == model.id));
        let (Some(model), None) = (found.next(), found.next()) else {
            return Err(Failure::Final(ServingError::NoModel {
                address: self.http.base.clone(),
                asked: self.served_model.clone(),
                served: models.data.iter().map(|model| model.id.clone()).collect(),
            }));
        };
        let context = model.max_model_len.ok_or_else(|| {
            self.http
                .unusable("/v1/models gives no max_model_len".to_owned())
        })?;
        Ok(Description {
            model: model.id.clone(),
            context,
            version: self.version()?,
        })
    }

    fn version(&self) -> Result<Option<String>, Failure> {
        match self.http.get::<Version>("/version") {
            Ok(answer) => Ok(Some(answer.version)),
            Err(Failure::Passing(reason)) => Err(Failure::Passing(reason)),
            // A reverse proxy may pass on only what it knows.
            Err(Failure::Final(_)) => Ok(None),
        }
    }

    /// Builds the request for these sequences. No sequence may be empty.
    pub(crate) fn request(&self, served: &Arc<Description>, sequences: &[&[u32]]) -> Request {
        let json = json!({
            "model": served.model,
            "input": sequences,
            "task": "token_embed",
            "encoding_format": "bytes",
            "embed_dtype": self.dtype.name(),
            "endianness": "little",
        });
        Request {
            served: served.clone(),
            lengths: sequences.iter().map(|tokens| tokens.len()).collect(),
            json: json.to_string(),
        }
    }

    /// Asks for the hidden states of the request's sequences.
    pub(crate) fn hidden_states(&self, request: &Request) -> Result<Vec<Vec<u8>>, Failure> {
        let response = self.http.post("/pooling", request.json.as_bytes())?;
        answer::read(response, request, &self.http, self.hidden_size, self.dtype)
    }
}

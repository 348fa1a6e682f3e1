//! Errors of the engine and the models as the supervisor tells them apart.

use ddk_actors::PortError;
use ddk_engine::EngineError;
use ddk_model::ModelError;
use ddk_torch::{DeviceError, TorchError};

pub(super) fn device_error(error: DeviceError) -> PortError {
    PortError::Configuration(error.to_string())
}

pub(super) fn model_error(error: ModelError) -> PortError {
    match error {
        ModelError::Torch(TorchError::OutOfMemory(text)) => PortError::OutOfMemory(text),
        other => PortError::Configuration(chain(&other)),
    }
}

pub(super) fn torch_error(error: TorchError) -> PortError {
    engine_error(error.into())
}

pub(super) fn engine_error(error: EngineError) -> PortError {
    if error.is_out_of_memory() {
        PortError::OutOfMemory(chain(&error))
    } else {
        PortError::Other(chain(&error))
    }
}

/// An error with its causes on one line, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(&format!(": {cause_text}"));
        }
        source = cause.source();
    }
    text
}

//! Errors of the engine and the models as the supervisor tells them apart.

use ddk_actors::{PortError, error::with_causes};
use ddk_engine::EngineError;
use ddk_model::ModelError;
use ddk_torch::{DeviceError, TorchError};

pub(super) fn device_error(error: DeviceError) -> PortError {
    PortError::Configuration(error.to_string())
}

pub(super) fn model_error(error: ModelError) -> PortError {
    match error {
        ModelError::Torch(TorchError::OutOfMemory(text)) => PortError::OutOfMemory(text),
        other => PortError::Configuration(with_causes(&other)),
    }
}

pub(super) fn torch_error(error: TorchError) -> PortError {
    engine_error(error.into())
}

pub(super) fn engine_error(error: EngineError) -> PortError {
    if error.is_out_of_memory() {
        PortError::OutOfMemory(with_causes(&error))
    } else {
        PortError::Other(with_causes(&error))
    }
}

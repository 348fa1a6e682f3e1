//! What sits between DDK and libtorch: devices ([`parse_device`]), the thread of a lane ([`Lane`]), and errors that can be
//! told apart ([`TorchError`]).

mod device;
mod error;
mod lane;

pub use device::{DeviceError, parse_device};
pub use error::TorchError;
pub use lane::Lane;

// Stands in for Gloo's header. c10d holds devices and buffers only behind pointers.
#pragma once

namespace gloo {
namespace transport {

class Device;
class UnboundBuffer;

} // namespace transport
} // namespace gloo

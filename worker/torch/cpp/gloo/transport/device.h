// Declarations of Gloo's transport for c10d's Gloo header: names, and that a buffer has a virtual destructor.
#pragma once

namespace gloo::transport {

class Device;

class UnboundBuffer {
 public:
  virtual ~UnboundBuffer();
};

}  // namespace gloo::transport

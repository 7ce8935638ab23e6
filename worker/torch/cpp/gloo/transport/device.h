// What c10d's Gloo header needs of Gloo's transport: names, and that a buffer is destroyed virtually.
#pragma once

namespace gloo::transport {

class Device;

class UnboundBuffer {
 public:
  virtual ~UnboundBuffer();
};

}  // namespace gloo::transport

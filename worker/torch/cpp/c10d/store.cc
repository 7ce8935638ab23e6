#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "handles.h"

namespace foil {

Store::Store() : inner(std::make_unique<Inner>()) {}
Store::~Store() = default;

namespace {

std::unique_ptr<Store> wrap_store(c10::intrusive_ptr<c10d::Store> inner, std::uint16_t port) {
  auto store = std::make_unique<Store>();
  store->inner->store = std::move(inner);
  store->inner->port = port;
  return store;
}

std::unique_ptr<Store> open_store(rust::Str host, c10d::TCPStoreOptions options, std::uint64_t timeout_ms) {
  options.waitWorkers = false;  // others learn the port only after this returns
  options.timeout = Milliseconds(timeout_ms);
  auto store = c10::make_intrusive<c10d::TCPStore>(std::string(host), options);
  const auto port = store->getPort();
  return wrap_store(std::move(store), port);
}

}  // namespace

std::unique_ptr<Store> host_store(rust::Str host, std::uint16_t port, std::int32_t listener, std::uint64_t timeout_ms) {
  c10d::TCPStoreOptions options;
  options.isServer = true;
  options.port = port;
  options.masterListenFd = listener;
  return open_store(host, options, timeout_ms);
}

std::unique_ptr<Store> connect_store(rust::Str host, std::uint16_t port, std::uint64_t timeout_ms) {
  c10d::TCPStoreOptions options;
  options.port = port;
  return open_store(host, options, timeout_ms);
}

std::uint16_t Store::port() const { return inner->port; }

std::unique_ptr<Store> Store::prefixed(rust::Str prefix) const {
  return wrap_store(c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), inner->store), inner->port);
}

void Store::set(rust::Str key, rust::Slice<const std::uint8_t> value) const {
  inner->store->set(std::string(key), std::vector<std::uint8_t>(value.begin(), value.end()));
}

rust::Vec<std::uint8_t> Store::get(rust::Str key) const {
  const auto value = inner->store->get(std::string(key));
  rust::Vec<std::uint8_t> bytes;
  bytes.reserve(value.size());
  std::copy(value.begin(), value.end(), std::back_inserter(bytes));
  return bytes;
}

std::int64_t Store::add(rust::Str key, std::int64_t amount) const {
  return inner->store->add(std::string(key), amount);
}

void Store::wait(rust::Str key, std::uint64_t timeout_ms) const {
  inner->store->wait({std::string(key)}, Milliseconds(timeout_ms));
}

}  // namespace foil

#include <arpa/inet.h>
#include <c10/util/Exception.h>
#include <ifaddrs.h>
#include <netinet/in.h>

#include <memory>
#include <string>

#include "bridge.h"

namespace foil {
namespace {

// Whether `found` is the address in the text `wanted`.
bool is_address(const sockaddr* found, const std::string& wanted) {
  if (found == nullptr) {
    return false;
  }
  char text[INET6_ADDRSTRLEN] = {};
  const void* raw = nullptr;
  if (found->sa_family == AF_INET) {
    raw = &reinterpret_cast<const sockaddr_in*>(found)->sin_addr;
  } else if (found->sa_family == AF_INET6) {
    raw = &reinterpret_cast<const sockaddr_in6*>(found)->sin6_addr;
  } else {
    return false;
  }
  return inet_ntop(found->sa_family, raw, text, sizeof text) != nullptr && wanted == text;
}

}  // namespace

rust::String network_interface(rust::Str address) {
  const std::string wanted(address);
  ifaddrs* all = nullptr;
  TORCH_CHECK(getifaddrs(&all) == 0, "cannot list the network interfaces");
  std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(all, &freeifaddrs);
  for (const ifaddrs* entry = all; entry != nullptr; entry = entry->ifa_next) {
    if (is_address(entry->ifa_addr, wanted)) {
      return rust::String(entry->ifa_name);
    }
  }
  return rust::String();
}

}  // namespace foil

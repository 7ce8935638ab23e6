//! The network interface that ranks communicate over.

use std::net::{IpAddr, ToSocketAddrs};

use nix::ifaddrs::getifaddrs;

/// Environment variable that names NCCL's network interface.
pub(super) const NCCL_SOCKET_IFNAME: &str = "NCCL_SOCKET_IFNAME";

/// This machine's interface with the given IP address or host name. `None` if it has no such interface, for
/// example behind NAT; NCCL then chooses one.
pub(super) fn with_address(address: &str) -> Option<String> {
    let addresses: Vec<IpAddr> = (address, 0).to_socket_addrs().ok()?.map(|found| found.ip()).collect();
    let mut interfaces = getifaddrs().ok()?;
    let found = interfaces.find(|interface| {
        let own = interface.address.as_ref().and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        });
        own.is_some_and(|own| addresses.contains(&own))
    });
    found.map(|interface| interface.interface_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_an_interface_of_this_machine_or_to_none() {
        assert_eq!(with_address("127.0.0.1").as_deref(), Some("lo"));
        // Reserved for documentation (RFC 5737): no machine has it.
        assert_eq!(with_address("192.0.2.1"), None);
        assert_eq!(with_address("no such name"), None);
    }
}

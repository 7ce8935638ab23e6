//! The network interface that ranks are to speak over.

use std::net::{IpAddr, ToSocketAddrs};

use nix::ifaddrs::getifaddrs;

/// What NCCL reads the interface's name from.
pub(super) const NCCL_SOCKET_IFNAME: &str = "NCCL_SOCKET_IFNAME";

/// The interface of this machine that has the address, by number or by name. None where none has, as behind address
/// translation: then NCCL finds one itself.
pub(super) fn of(address: &str) -> Option<String> {
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
        assert_eq!(of("127.0.0.1").as_deref(), Some("lo"));
        // Kept for documentation: no machine has it.
        assert_eq!(of("192.0.2.1"), None);
        assert_eq!(of("no such name"), None);
    }
}

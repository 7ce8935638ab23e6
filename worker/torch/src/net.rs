//! Network interfaces of this machine.

use crate::error::{During, Result};
use crate::ffi;

/// The name of this machine's network interface that carries `address` (numeric, IPv4 or IPv6), as
/// `NCCL_SOCKET_IFNAME` wants it; none where no interface does.
///
/// # Errors
/// [`Error::Torch`] where the system does not list its interfaces.
pub fn network_interface(address: &str) -> Result<Option<String>> {
    let name = ffi::network_interface(address).during("looking for a network interface")?;
    Ok(Some(name).filter(|name| !name.is_empty()))
}

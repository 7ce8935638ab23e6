//! Network interfaces of this machine.

use crate::error::{During, Result};
use crate::ffi;

/// The name of this machine's network interface with `address` (numeric, IPv4 or IPv6), for
/// `NCCL_SOCKET_IFNAME`; `None` if there is none.
///
/// # Errors
/// [`Error::Torch`] if the interfaces cannot be listed.
pub fn network_interface(address: &str) -> Result<Option<String>> {
    let name = ffi::network_interface(address).during("looking for a network interface")?;
    Ok(Some(name).filter(|name| !name.is_empty()))
}

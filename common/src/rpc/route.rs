//! The local address of connections to another machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{UdpSocket, lookup_host};
use url::Url;

/// The source address of connections to `url`; `None` if the host is unknown or unreachable. Nothing is sent.
pub async fn local_address(url: &str) -> Option<IpAddr> {
    let url = Url::parse(url).ok()?;
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default()?;
    for remote in lookup_host((host, port)).await.ok()? {
        if let Ok(local) = toward(remote).await {
            return Some(local);
        }
    }
    None
}

/// Asks the kernel which route it chooses.
async fn toward(remote: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(remote).await?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_way_to_this_machine_is_the_loopback() {
        let local = local_address("http://localhost:7070").await.unwrap();
        assert!(local.is_loopback(), "{local}");
        assert_eq!(local_address("http://127.0.0.1:1").await, Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(local_address("http://no-such-host.invalid:1").await, None);
        assert_eq!(local_address("nonsense").await, None);
    }
}

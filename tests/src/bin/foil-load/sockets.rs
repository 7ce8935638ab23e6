//! Sockets of idle or slow clients, which hold a connection and complete no request.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A client's connection preface: the magic and empty settings (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Header of a HEADERS frame of 255 bytes on stream 1, which is never completed.
const HEADERS: &[u8] = b"\0\0\xff\x01\x04\0\0\0\x01";
/// Time between two bytes of a slow client.
const DRIP: Duration = Duration::from_millis(500);

/// Sockets that stay open until they are dropped. If the server closes one, it is reopened.
pub(crate) struct Sockets(JoinSet<()>);

impl Sockets {
    /// Opens sockets that are silent after the preface, and others that send a request byte by byte.
    pub(crate) async fn open(url: &str, idle: usize, slow: usize) -> Result<Self> {
        let address = url.trim_start_matches("http://").to_owned();
        let mut sockets = JoinSet::new();
        for index in 0..idle + slow {
            let mut socket = connect(&address).await.context("cannot open a socket")?;
            let address = address.clone();
            sockets.spawn(async move {
                loop {
                    // An error means that the server closed the connection.
                    let _ = if index < idle { stay(&mut socket).await } else { drip(&mut socket).await };
                    match connect(&address).await {
                        Ok(again) => socket = again,
                        Err(_) => return,
                    }
                }
            });
        }
        Ok(Self(sockets))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

async fn connect(address: &str) -> std::io::Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(PREFACE).await?;
    Ok(socket)
}

/// Reads until the server closes the connection.
async fn stay(socket: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 1024];
    while socket.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// Sends a request that never ends, byte by byte.
async fn drip(socket: &mut TcpStream) -> std::io::Result<()> {
    socket.write_all(HEADERS).await?;
    for _ in 0..255 {
        tokio::time::sleep(DRIP).await;
        socket.write_all(&[0]).await?;
    }
    Ok(())
}

//! Breaking connections.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// A proxy that cuts its first `cuts` connections after 2 MiB of responses.
async fn cutting_proxy(to: SocketAddr, cuts: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(to).await.unwrap();
            let cut = count.fetch_add(1, Ordering::SeqCst) < cuts;
            tokio::spawn(pass(near, far, cut));
        }
    });
    (address, made)
}

async fn pass(near: TcpStream, far: TcpStream, cut: bool) {
    let (mut near_in, mut near_out) = near.into_split();
    let (mut far_in, mut far_out) = far.into_split();
    let up = tokio::spawn(async move { tokio::io::copy(&mut near_in, &mut far_out).await });
    let limit = if cut { 2 << 20 } else { u64::MAX };
    let mut passed = 0;
    let mut buffer = vec![0; 64 << 10];
    while passed < limit {
        match far_in.read(&mut buffer).await {
            Ok(read) if read > 0 && near_out.write_all(&buffer[..read]).await.is_ok() => {
                passed += read as u64;
            }
            _ => break,
        }
    }
    up.abort();
}

#[tokio::test]
async fn a_download_survives_broken_connections() {
    let server = server().await;
    let bytes = body(9 << 20, 13);
    let object = upload_input_bytes(&server.channel, bytes.clone()).await.unwrap();
    let (proxy, connections) = cutting_proxy(server.address, 3).await;
    let channel = connect(&format!("http://{proxy}")).unwrap();
    assert_eq!(download_bytes(&channel, &object).await.unwrap(), bytes);
    assert_eq!(connections.load(Ordering::SeqCst), 4);
}

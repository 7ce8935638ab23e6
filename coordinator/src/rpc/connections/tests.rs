use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::accept::{Listen, acquire, incoming};
use super::registry::NoPermit;
use super::*;

/// A kernel that fails this many times for lack of descriptors and then returns these sockets.
struct Scarce {
    refusals: usize,
    calls: Arc<AtomicUsize>,
    sockets: VecDeque<(TcpStream, SocketAddr)>,
}

impl Listen for Scarce {
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        if self.calls.fetch_add(1, Ordering::SeqCst) < self.refusals {
            return Err(Errno::EMFILE.into());
        }
        match self.sockets.pop_front() {
            Some(socket) => Ok(socket),
            None => std::future::pending().await,
        }
    }
}

async fn socket() -> (TcpStream, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    near.unwrap();
    far.unwrap()
}

#[tokio::test]
async fn without_descriptors_it_pauses_instead_of_spinning() {
    let calls = Arc::new(AtomicUsize::new(0));
    let scarce = Scarce { refusals: 2, calls: Arc::clone(&calls), sockets: [socket().await].into() };
    let began = Instant::now();
    let mut connections = Box::pin(incoming(scarce, Registry::new(Limits::default()), None));
    connections.next().await.unwrap().unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    assert!(began.elapsed() >= Duration::from_millis(400), "two pauses: {:?}", began.elapsed());
}

#[tokio::test]
async fn one_more_evicts_a_connection_that_never_made_a_request_but_never_a_busy_one() {
    let registry = Registry::new(Limits { connections: 3, ..Limits::default() });
    let address = "127.0.0.1:1".parse().unwrap();
    let permits: Vec<_> = (0..3).map(|_| registry.admit(address).unwrap()).collect();
    let works = permits[0].peer.request();
    drop(permits[1].peer.request());
    assert_eq!(registry.admit(address).unwrap_err(), NoPermit::NotYet, "each has time to send a request");
    let more = acquire(&registry, address).await.unwrap();
    let is_closed = |permit: usize| permits[permit].peer.overdue(registry.limits()).is_some();
    assert_eq!([0, 1, 2].map(is_closed), [false, false, true], "the one that never sent a request");
    let _works_too = more.peer.request();
    let another = acquire(&registry, address).await.unwrap();
    assert_eq!([0, 1, 2].map(is_closed), [false, true, true], "then the idle one");
    let _busy = another.peer.request();
    assert!(acquire(&registry, address).await.is_none(), "all others are busy");
    drop(works);
}

//! A slow network between a coordinator and its workers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

const PIECE: usize = 32 << 10;

/// Forwards connections to `to`, each limited to `bytes_per_second` in either direction. Returns its address.
/// It runs until the test's process ends.
pub fn slow_link(to: SocketAddr, bytes_per_second: u32) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let pause = Duration::from_secs(1) * u32::try_from(PIECE).expect("a small piece") / bytes_per_second;
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(to) else { continue };
            let (Ok(near_end), Ok(far_end)) = (near.try_clone(), far.try_clone()) else { continue };
            thread::spawn(move || pass(near, far, pause));
            thread::spawn(move || pass(far_end, near_end, pause));
        }
    });
    address
}

fn pass(mut from: TcpStream, mut to: TcpStream, pause: Duration) {
    let mut piece = [0; PIECE];
    while let Ok(read @ 1..) = from.read(&mut piece) {
        if to.write_all(&piece[..read]).is_err() {
            break;
        }
        // A small message is delayed only in proportion to its size.
        thread::sleep(pause.mul_f64(read as f64 / PIECE as f64));
    }
    // The other end may be closed already.
    let _ = to.shutdown(Shutdown::Write);
}

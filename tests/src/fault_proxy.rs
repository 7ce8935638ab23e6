//! An HTTP proxy of an object store that injects faults: requests are refused, reset, delayed, or performed
//! with the reply lost.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Maximum length of a request's head.
const HEAD_BYTES: usize = 64 << 10;

/// Rates of faults in percent of requests. At most one fault applies to a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Refused with 503 and not forwarded.
    pub refuse: u8,
    /// Reset and not forwarded.
    pub reset: u8,
    /// Forwarded, and then closed without the reply.
    pub lose_reply: u8,
    /// Delay of every request.
    pub delay: Duration,
    /// Whether to remove conditions, so that a key can be created twice.
    pub forget_conditions: bool,
}

impl Faults {
    /// Rates with which every request fails.
    pub const OUTAGE: Self =
        Self { refuse: 100, reset: 0, lose_reply: 0, delay: Duration::ZERO, forget_conditions: false };

    /// Parses `refuse=30 reset=5 lose_reply=5 delay_ms=200 forget_conditions=1`. Missing rates are 0.
    ///
    /// # Errors
    /// An unknown word.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut faults = Self::default();
        for word in text.split_whitespace() {
            let (name, number) = word.split_once('=').ok_or_else(|| word.to_owned())?;
            let number: u64 = number.parse().map_err(|_| word.to_owned())?;
            let percent =
                u8::try_from(number).ok().filter(|percent| *percent <= 100).ok_or_else(|| word.to_owned());
            match name {
                "refuse" => faults.refuse = percent?,
                "reset" => faults.reset = percent?,
                "lose_reply" => faults.lose_reply = percent?,
                "delay_ms" => faults.delay = Duration::from_millis(number),
                "forget_conditions" => faults.forget_conditions = number > 0,
                _ => return Err(word.to_owned()),
            }
        }
        Ok(faults)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Refuse,
    Reset,
    LoseReply,
}

/// A proxy that runs until its process ends. Clones control the same proxy.
#[derive(Debug, Clone)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    to: SocketAddr,
    faults: Mutex<Faults>,
    seed: u64,
    requests: AtomicU64,
    failed: AtomicU64,
}

impl FaultProxy {
    /// Forwards requests to `to`. The faults are a function of the seed and the order of requests.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(to: SocketAddr, seed: u64) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            to,
            faults: Mutex::default(),
            seed,
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let serving = Arc::clone(&serving);
                // Errors of a connection only affect its two ends.
                thread::spawn(move || drop(serving.serve(near)));
            }
        });
        Ok(Self { address, shared })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the faults of later requests.
    pub fn set(&self, faults: Faults) {
        *self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Number of requests that failed because of an injected fault. A test without any proves nothing.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Serves one request and closes the connection.
    fn serve(&self, mut near: TcpStream) -> io::Result<()> {
        let (head, mut body) = read_head(&mut near)?;
        let faults = *self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = self.draw(faults);
        thread::sleep(faults.delay);
        if fault == Some(Fault::Reset) && length_of(&head) > body.len() {
            // Closing with unread bytes resets the connection.
            return Ok(());
        }
        let mut rest = vec![0; length_of(&head).saturating_sub(body.len())];
        near.read_exact(&mut rest)?;
        body.extend(rest);
        match fault {
            Some(Fault::Refuse) => {
                let text = "<Error><Code>SlowDown</Code><Message>on purpose</Message></Error>";
                let length = text.len();
                write!(
                    near,
                    "HTTP/1.1 503 Slow Down\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
                )?;
            }
            Some(Fault::Reset) => {}
            Some(Fault::LoseReply) => drop(self.forward(&head, &body, faults)?),
            None => near.write_all(&self.forward(&head, &body, faults)?)?,
        }
        near.shutdown(Shutdown::Write)
    }

    /// Forwards a request and returns the whole reply.
    fn forward(&self, head: &str, body: &[u8], faults: Faults) -> io::Result<Vec<u8>> {
        let mut far = TcpStream::connect(self.to)?;
        let dropped = |line: &str| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            name == "connection" || (faults.forget_conditions && name == "if-none-match")
        };
        for line in head.lines().filter(|line| !line.is_empty() && !dropped(line)) {
            write!(far, "{line}\r\n")?;
        }
        far.write_all(b"Connection: close\r\n\r\n")?;
        far.write_all(body)?;
        let mut reply = Vec::new();
        far.read_to_end(&mut reply)?;
        Ok(closing(reply))
    }

    fn draw(&self, faults: Faults) -> Option<Fault> {
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        let kinds = [
            (Fault::Refuse, faults.refuse),
            (Fault::Reset, faults.reset),
            (Fault::LoseReply, faults.lose_reply),
        ];
        let strikes = |index: u64, percent: u8| {
            mix(self.seed ^ mix(request.wrapping_mul(4).wrapping_add(index))) % 100 < u64::from(percent)
        };
        let fault = (0..).zip(kinds).find(|(index, (_, percent))| strikes(*index, *percent));
        let fault = fault.map(|(_, (fault, _))| fault);
        if fault.is_some() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        fault
    }
}

/// SplitMix64's finalizer.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Reads a request's head and the first bytes of its body.
fn read_head(near: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut read = Vec::new();
    let mut piece = [0; 8192];
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = read.split_off(end + 4);
            let head =
                String::from_utf8(read).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            return Ok((head, body));
        }
        match near.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if read.len() > HEAD_BYTES => return Err(io::ErrorKind::InvalidData.into()),
            count => read.extend(&piece[..count]),
        }
    }
}

fn length_of(head: &str) -> usize {
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    length.unwrap_or(0)
}

/// Adds `Connection: close` to the reply.
fn closing(reply: Vec<u8>) -> Vec<u8> {
    let Some(end) = reply.windows(4).position(|four| four == b"\r\n\r\n") else { return reply };
    let head = String::from_utf8_lossy(&reply[..end]);
    let kept = head.lines().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    let mut closing = kept.collect::<Vec<_>>().join("\r\n").into_bytes();
    closing.extend(b"\r\nConnection: close\r\n\r\n");
    closing.extend(&reply[end + 4..]);
    closing
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that counts requests and echoes their bodies.
    fn echo() -> (SocketAddr, Arc<AtomicU64>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&count);
        thread::spawn(move || {
            for mut near in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                let (head, mut body) = read_head(&mut near).unwrap();
                let mut rest = vec![0; length_of(&head) - body.len()];
                near.read_exact(&mut rest).unwrap();
                body.extend(rest);
                let conditional = head.contains("If-None-Match");
                let reply = format!(
                    "HTTP/1.1 200 OK\r\nX-Conditional: {conditional}\r\nConnection: keep-alive\r\n\r\n"
                );
                near.write_all(reply.as_bytes()).unwrap();
                near.write_all(&body).unwrap();
            }
        });
        (address, count)
    }

    fn ask(proxy: &FaultProxy, body: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(proxy.address())?;
        let length = body.len();
        write!(
            stream,
            "PUT /k HTTP/1.1\r\nHost: h\r\nIf-None-Match: *\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    }

    #[test]
    fn each_fault_has_its_effect() {
        let (address, done) = echo();
        let proxy = FaultProxy::start(address, 0).unwrap();
        let reply = ask(&proxy, "hello").unwrap();
        assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with("\r\n\r\nhello"), "{reply}");
        assert!(reply.contains("X-Conditional: true") && !reply.contains("keep-alive"), "{reply}");
        proxy.set(Faults { forget_conditions: true, ..Faults::default() });
        assert!(ask(&proxy, "hello").unwrap().contains("X-Conditional: false"));
        assert_eq!((done.load(Ordering::Relaxed), proxy.failed()), (2, 0));

        proxy.set(Faults::OUTAGE);
        assert!(ask(&proxy, "hello").unwrap().starts_with("HTTP/1.1 503"));
        proxy.set(Faults { reset: 100, ..Faults::default() });
        // A reset appears as an error or as an end of file, depending on what was read before.
        assert_eq!(ask(&proxy, "hello").unwrap_or_default(), "");
        assert_eq!(done.load(Ordering::Relaxed), 2, "neither got through");
        proxy.set(Faults { lose_reply: 100, ..Faults::default() });
        assert_eq!(ask(&proxy, "hello").unwrap(), "");
        assert_eq!(done.load(Ordering::Relaxed), 3, "it was done, and nobody was told");
    }

    #[test]
    fn faults_occur_at_their_rates() {
        let shared = Shared {
            to: "127.0.0.1:1".parse().unwrap(),
            faults: Mutex::default(),
            seed: 7,
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        };
        let faults = Faults { refuse: 20, lose_reply: 10, ..Faults::default() };
        let drawn: Vec<Fault> = (0..10_000).filter_map(|_| shared.draw(faults)).collect();
        let lost = drawn.iter().filter(|fault| **fault == Fault::LoseReply).count();
        assert!(
            (1800..2200).contains(&(drawn.len() - lost)) && (700..900).contains(&lost),
            "{lost} of {}",
            drawn.len()
        );
        assert_eq!(shared.failed.into_inner(), drawn.len() as u64);
    }

    #[test]
    fn faults_are_parsed() {
        let read = Faults::parse("refuse=30 delay_ms=200 forget_conditions=1").unwrap();
        let expected = Faults {
            refuse: 30,
            delay: Duration::from_millis(200),
            forget_conditions: true,
            ..Faults::default()
        };
        assert_eq!(read, expected);
        assert_eq!(Faults::parse("").unwrap(), Faults::default());
        for wrong in ["refuse=130", "refuse", "refuse=x", "explode=1"] {
            assert_eq!(Faults::parse(wrong).unwrap_err(), wrong);
        }
    }
}

//! The ports at which ranks listen for each other.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::str::FromStr;

use super::{CollectiveError, Result};

/// The ports at which ranks listen for the rendezvous of a gang, for firewalls that need to know them.
///
/// Backends connect at other ports, which the system chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Any free port.
    pub const ANY: Self = Self::only(0);

    /// A single port.
    pub const fn only(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Listens on `address`, which must be this machine's, at the first free port of the range.
    ///
    /// # Errors
    /// [`CollectiveError::Listen`] if the address is not this machine's; [`CollectiveError::NoFreePort`] if
    /// all ports are taken.
    pub fn listen(self, address: &str) -> Result<TcpListener> {
        let refused = |source| CollectiveError::Listen { address: address.to_owned(), source };
        for port in self.first..=self.last {
            match TcpListener::bind((address, port)) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                bound => return bound.map_err(refused),
            }
        }
        Err(CollectiveError::NoFreePort { address: address.to_owned(), ports: self.to_string() })
    }
}

impl Default for PortRange {
    fn default() -> Self {
        Self::ANY
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ANY => f.write_str("0"),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

impl FromStr for PortRange {
    type Err = String;

    /// Parses `FIRST-LAST`, or 0 for any port.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "0" {
            return Ok(Self::ANY);
        }
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let range = text.split_once('-').and_then(|(first, last)| Some((port(first)?, port(last)?)));
        match range {
            Some((first, last)) if first <= last => Ok(Self { first, last }),
            _ => Err(
                "expected FIRST-LAST, both from 1 to 65535, for example 29500-29999, or 0 for any free port"
                    .to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_written() {
        assert_eq!("0".parse(), Ok(PortRange::ANY));
        let range: PortRange = "29500-29999".parse().unwrap();
        for range in [range, PortRange::ANY] {
            assert_eq!(range.to_string().parse(), Ok(range));
        }
        for wrong in ["", "29500", "0-9", "9-8", "1-65536", "1-2-3", "a-b", "-", " 1-2"] {
            assert!(wrong.parse::<PortRange>().unwrap_err().contains("FIRST-LAST"), "{wrong:?}");
        }
    }

    #[test]
    fn listeners_take_the_free_ports_of_the_range_one_by_one() {
        let any = PortRange::ANY.listen("127.0.0.1").unwrap();
        let taken = any.local_addr().unwrap().port();
        let error = PortRange::only(taken).listen("127.0.0.1").unwrap_err().to_string();
        assert!(error.contains(&format!("all ports of {taken}-{taken} are in use")), "{error}");
        assert!(error.ends_with("the first of a job two") && !error.contains("interfaces"), "{error}");
        // The range extends beyond the taken port.
        let range = PortRange { first: taken, last: taken.saturating_add(50) };
        let mut ports = vec![taken];
        let mut listeners = vec![any];
        for _ in 0..2 {
            let listener = range.listen("127.0.0.1").unwrap();
            let port = listener.local_addr().unwrap().port();
            assert!((range.first..=range.last).contains(&port) && !ports.contains(&port), "{port}");
            ports.push(port);
            listeners.push(listener);
        }
        let error = PortRange::ANY.listen("192.0.2.1").unwrap_err().to_string();
        assert!(error.contains("192.0.2.1"), "{error}");
    }
}

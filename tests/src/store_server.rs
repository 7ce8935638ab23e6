//! Servers of object stores, each on a free port of this machine for one test.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::Value;

/// An empty store behind a server, which ends with this value.
pub struct StoreServer {
    child: Child,
    /// Its end is the server's.
    stdin: Option<ChildStdin>,
    told: Value,
}

impl StoreServer {
    /// S3 as moto serves it; none, said on standard error, where it is not installed.
    pub fn s3() -> Option<Self> {
        Self::start("s3", "lib")
    }

    /// Azure's blobs as Azurite serves them; none, said on standard error, where it or Node.js is not installed.
    pub fn azure() -> Option<Self> {
        Self::start("azure", "node/node_modules/azurite")
    }

    fn start(kind: &str, needs: &str) -> Option<Self> {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let stores = root.join(".venv-stores");
        if !stores.join(needs).exists() {
            let missing = stores.join(needs);
            eprintln!("skipped: {} is missing; scripts/fixtures/setup-stores makes it", missing.display());
            return None;
        }
        let mut command = Command::new(stores.join("bin/python"));
        command.arg(root.join("scripts/fixtures/store_server.py")).arg(kind);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the store server starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped"))
            .read_line(&mut line)
            .expect("a line of text");
        let told =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("no {kind} server ({error}): {line}"));
        let stdin = child.stdin.take();
        Some(Self { child, stdin, told })
    }

    pub fn address(&self) -> SocketAddr {
        self.told["address"].as_str().and_then(|text| text.parse().ok()).expect("an address")
    }

    /// The store's name, for example `s3://foil/some/prefix`.
    pub fn url(&self) -> &str {
        self.told["url"].as_str().expect("a URL")
    }

    /// What Foil's environment must hold, where it speaks to the server at `address`.
    pub fn environment(&self, address: SocketAddr) -> Vec<(String, String)> {
        let own = self.address().to_string();
        let variables = self.told["env"].as_object().expect("an object").iter();
        let text = |value: &Value| value.as_str().expect("a text").replace(&own, &address.to_string());
        variables.map(|(name, value)| (name.clone(), text(value))).collect()
    }
}

impl Drop for StoreServer {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

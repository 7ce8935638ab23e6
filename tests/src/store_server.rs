//! Object store servers for tests, each on a free port of this machine.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::Value;

/// A server with an empty store, stopped on drop.
pub struct StoreServer {
    child: Child,
    /// The server stops when this is closed.
    stdin: Option<ChildStdin>,
    told: Value,
}

impl StoreServer {
    /// S3, served by moto; `None`, with a message on standard error, if it is not installed.
    pub fn s3() -> Option<Self> {
        Self::start("s3", "lib")
    }

    /// Azure Blob Storage, served by Azurite; `None`, with a message on standard error, if it or Node.js is
    /// not installed.
    pub fn azure() -> Option<Self> {
        Self::start("azure", "node/node_modules/azurite")
    }

    fn start(kind: &str, needs: &str) -> Option<Self> {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let stores = root.join(".venv-stores");
        if !stores.join(needs).exists() {
            let missing = stores.join(needs);
            eprintln!("skipped: {} is missing; scripts/fixtures/setup-stores installs it", missing.display());
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

    /// The environment of Foil's processes that use the server at `address`.
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

//! An HTTP proxy that injects faults into requests to an object store, for scripts: `foil-fault-proxy
//! HOST:PORT [SEED]`.
//!
//! Prints its own address. Each line on standard input sets the faults that apply afterwards, for example
//! `refuse=30 reset=5 lose_reply=5 delay_ms=200`; an empty line clears them. Each line is answered with the
//! number of requests and of injected faults so far. Exits at the end of its input.

use std::io::Write;

use anyhow::{Context, anyhow};
use foil_tests::{FaultProxy, Faults};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let to = arguments.next().context("usage: foil-fault-proxy HOST:PORT [SEED]")?;
    let to = to.parse().with_context(|| format!("{to} is not of the form 127.0.0.1:9000"))?;
    let seed = arguments.next().map_or(Ok(0), |seed| seed.parse()).context("the seed is not a number")?;
    let proxy = FaultProxy::start(to, seed).context("no port is free")?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", proxy.address())?;
    for line in std::io::stdin().lines() {
        let faults = Faults::parse(&line?).map_err(|word| {
            anyhow!("`{word}` is none of refuse, reset, lose_reply (percent), delay_ms, forget_conditions")
        })?;
        proxy.set(faults);
        writeln!(out, "requests={} struck={}", proxy.requests(), proxy.failed())?;
    }
    Ok(())
}

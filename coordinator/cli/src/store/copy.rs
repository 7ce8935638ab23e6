//! `foil store copy`: backups of a store.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use foil_common::plural;
use foil_common::storage::{self, Copied, Store};
use foil_coordinator::collector::PREFIXES;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::output::{self, OutputArgs};
use crate::{size, stdout};

const SPIN: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// Store to copy: a directory, or a URL as for `foil serve --store`.
    #[arg(value_name = "FROM")]
    from: String,
    /// Destination: a directory or URL that holds no log yet. An interrupted copy resumes.
    #[arg(value_name = "TO")]
    to: String,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn copy(args: &CopyArgs) -> Result<()> {
    ensure!(args.from != args.to, "FROM and TO are the same place; a copy must be somewhere else");
    if !args.from.contains("://") {
        // Opening a directory would create it.
        let found = tokio::fs::metadata(&args.from).await;
        found.with_context(|| format!("there is no store {}", args.from))?;
    }
    let (from, to) = (Store::open(&args.from)?, Store::open(&args.to)?);
    let bar = bar();
    let (objects, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let copied = storage::copy(&from, &to, &PREFIXES, |size| {
        let bytes = bytes.fetch_add(size, Ordering::Relaxed) + size;
        let objects = objects.fetch_add(1, Ordering::Relaxed) + 1;
        bar.set_message(format!("{}, {}", plural::counted(objects, "object"), size::text(bytes)));
    });
    let copied = copied.await;
    bar.finish_and_clear();
    show(args, &copied?)
}

/// A spinner: how much there is to copy is not known before it is listed. Hidden unless standard error is a
/// terminal.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    // The template is a constant.
    if let Ok(style) = ProgressStyle::with_template("{spinner} copied {msg}  {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(SPIN);
    bar
}

fn show(args: &CopyArgs, copied: &Copied) -> Result<()> {
    let &Copied { objects, bytes, present, records, last_record } = copied;
    let value = json!({
        "objects": objects, "bytes": bytes, "present": present, "records": records, "last_record": last_record,
    });
    if !output::structured(args.output.format, || Ok(value), || [])? {
        return Ok(());
    }
    let before = match present {
        0 => String::new(),
        present => format!(" ({present} of them were there)"),
    };
    stdout::line(&format!("{}{before}, {}", plural::counted(objects, "object"), size::text(bytes)))?;
    if let Some(last) = last_record {
        stdout::line(&format!("the log up to record {last}; it reads without a fault"))?;
    }
    Ok(())
}

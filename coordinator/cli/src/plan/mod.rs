//! `foil plan`: the phases of a job, and the memory of a rank in them.

mod memory;
mod phases;
mod show;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result};
use foil_common::spec;

use self::memory::Memory;
use self::phases::Phases;
use super::args::PlanArgs;
use super::progress::Progress;
use super::{output, remote, stdout, submit};

/// The plan, with notes for the user.
struct Planned {
    job: spec::Job,
    phases: Phases,
    memory: Memory,
    notes: Vec<String>,
}

pub(crate) async fn plan(args: &PlanArgs) -> Result<()> {
    let mut job = submit::load(&args.job.file, &args.job.settings)?;
    let _downloads = remote::fetch(&mut job, &Progress::new(true)).await?;
    let reading = tokio::task::spawn_blocking(move || describe(job));
    let planned = reading.await.context("reading the inputs was aborted")??;
    let value = || Ok(show::json(&planned, args.device_memory));
    let names = || planned.phases.list.iter().map(|phase| phase.id.to_string());
    if !output::structured(args.output.format, value, names)? {
        return Ok(());
    }
    for note in &planned.notes {
        stdout::note(&format!("warning: {note}"));
    }
    Ok(stdout::line(&show::text(&planned, args.device_memory))?)
}

fn describe(job: spec::Job) -> Result<Planned> {
    // The models first: their config.json must exist.
    let (policy, reward) = memory::shapes(&job)?;
    let phases = Phases::of(&job)?;
    let memory = Memory::of(&job, &phases.list, policy, reward);
    let notes = phases.unknown.clone().into_iter().chain(job.warnings()).collect();
    Ok(Planned { job, phases, memory, notes })
}

//! The device thread: owns every tensor of this process and runs one task after another.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use foil_common::failure::class_name;
use foil_common::spec;
use foil_proto::v1;
use foil_proto::v1::rank_message::Message;
use tokio::sync::oneshot;

use super::RankOptions;
use crate::agent::DeviceKind;
use crate::memory::MemoryLimit;
use crate::phase::{Failure, PhaseError, RankContext, TaskContext};
use crate::task::{ChunkTask, GangTask, Phase, Rendezvous};
use crate::task_io::artifact_cache::{ArtifactCache, ObjectStore};
use crate::task_io::progress::Reporter;

/// A command to the device thread.
#[derive(Debug)]
pub(super) enum DeviceCommand {
    Chunk(Box<ChunkTask>),
    Gang(Box<GangTask>),
}

impl DeviceCommand {
    fn phase(&self) -> &Phase {
        match self {
            Self::Chunk(task) => &task.phase,
            Self::Gang(task) => &task.phase,
        }
    }

    fn chunk(&self) -> Option<u32> {
        match self {
            Self::Chunk(task) => Some(task.chunk),
            Self::Gang(_) => None,
        }
    }
}

/// Why the thread ended; it always reports one of these to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeviceEnd {
    /// No more commands can arrive.
    Idle,
    /// A task panicked, or the device could not be set up; the failure was reported.
    Broken,
    /// The coordinator no longer accepts writes of this attempt.
    Stale,
    /// The process was asked to stop, and training has written its checkpoint.
    Stopped,
}

/// A handle to the device thread for the session.
pub(super) struct DeviceThread {
    /// Dropping it ends the thread after its current task.
    pub(super) commands: mpsc::Sender<DeviceCommand>,
    pub(super) rendezvous: mpsc::Sender<Rendezvous>,
    pub(super) end: oneshot::Receiver<DeviceEnd>,
}

/// Starts the thread for one job.
pub(super) fn start(
    options: &RankOptions,
    job: spec::Job,
    objects: Box<dyn ObjectStore>,
    reports: Reporter,
) -> io::Result<DeviceThread> {
    let (commands, received) = mpsc::channel();
    let (rendezvous, rendezvous_received) = mpsc::channel();
    let (ended, end) = oneshot::channel();
    let options = options.clone();
    // Lets the thread's log lines carry the job, the attempt and the rank.
    let span = tracing::Span::current();
    thread::Builder::new().name("device".to_owned()).spawn(move || {
        let _entered = span.enter();
        let run = || run(&options, job, objects, reports, &received, rendezvous_received);
        let end = catch_unwind(AssertUnwindSafe(run)).unwrap_or(DeviceEnd::Broken);
        // The receiver has been dropped if the process is exiting anyway.
        let _ = ended.send(end);
    })?;
    Ok(DeviceThread { commands, rendezvous, end })
}

fn run(
    options: &RankOptions,
    job: spec::Job,
    objects: Box<dyn ObjectStore>,
    reports: Reporter,
    commands: &mpsc::Receiver<DeviceCommand>,
    rendezvous: mpsc::Receiver<Rendezvous>,
) -> DeviceEnd {
    foil_torch::runtime::keep_freed_memory();
    tch::set_num_threads(i32::try_from(options.threads.max(1)).unwrap_or(1));
    if options.device == DeviceKind::Cuda
        && let Err(error) = prepare_cuda(&job)
    {
        report(&reports, "", None, Failure::of_panic(&error.to_string()));
        return DeviceEnd::Broken;
    }
    let rank = RankContext {
        device: match options.device {
            DeviceKind::Cpu => tch::Device::Cpu,
            DeviceKind::Cuda => tch::Device::Cuda(0),
        },
        address: options.advertise_address.clone(),
        ports: options.rendezvous_ports,
        memory: device_memory(options),
        attempt: options.attempt,
        rendezvous,
        stop: options.stop.clone(),
    };
    let cache = match ArtifactCache::open(&options.work_dir, objects) {
        Ok(cache) => match options.work_dir.parent() {
            Some(agent) => cache.shared_in(agent),
            None => cache,
        },
        Err(error) => {
            report(&reports, "", None, PhaseError::from(error).failure());
            return DeviceEnd::Broken;
        }
    };
    let mut context = TaskContext::new(job, rank, cache, reports);
    for command in commands {
        if let Some(end) = handle(&mut context, &command) {
            return end;
        }
    }
    DeviceEnd::Idle
}

/// Configures libtorch for this process's GPU. Must be called before a process group is created.
fn prepare_cuda(job: &spec::Job) -> foil_torch::Result<()> {
    foil_torch::runtime::disable_cudnn_attention();
    foil_torch::runtime::set_deterministic(job.resources.deterministic)
}

/// Bytes of memory that this rank has for tensors; 0 if unknown.
fn device_memory(options: &RankOptions) -> u64 {
    if options.device == DeviceKind::Cpu {
        // Assumes that all ranks are on this machine.
        return MemoryLimit::read().map_or(0, |limit| limit.bytes / u64::from(options.world.max(1)));
    }
    // The first tensor creates the allocator.
    drop(tch::Tensor::zeros([1], (tch::Kind::Float, tch::Device::Cuda(0))));
    foil_torch::device_memory::total().unwrap_or_else(|error| {
        tracing::warn!(%error, "the size of the GPU's memory is unknown");
        0
    })
}

/// Runs one task; returns an end if the thread cannot continue after it.
fn handle(context: &mut TaskContext, command: &DeviceCommand) -> Option<DeviceEnd> {
    let Phase { name, round } = command.phase();
    let span = tracing::info_span!("phase", phase = name, round, chunk = command.chunk());
    let _entered = span.enter();
    let run = || match command {
        DeviceCommand::Chunk(task) => context.run_chunk(task),
        DeviceCommand::Gang(task) => context.run_gang(task),
    };
    let (failure, end) = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return None,
        Ok(Err(error)) if error.is_stopped() => {
            tracing::info!("{error}");
            // The process may be killed before its exit code is known.
            report(context.reports(), name, command.chunk(), error.failure());
            return Some(DeviceEnd::Stopped);
        }
        Ok(Err(error)) => (error.failure(), end_after(&error)),
        Err(panic) => (Failure::of_panic(&panic_message(panic.as_ref())), Some(DeviceEnd::Broken)),
    };
    log(&failure);
    report(context.reports(), name, command.chunk(), failure);
    end
}

/// The reason why the thread must end after an error, if any.
fn end_after(error: &PhaseError) -> Option<DeviceEnd> {
    if error.is_stale() {
        Some(DeviceEnd::Stale)
    } else {
        error.leaves_device_broken().then_some(DeviceEnd::Broken)
    }
}

pub(super) fn log(failure: &Failure) {
    tracing::error!(
        class = class_name(failure.class),
        advice = failure.advice,
        rows = failure.rows.len(),
        "{}",
        failure.message
    );
}

/// Reports a failure of a task, or of the thread's start if `phase` is empty.
pub(super) fn report(reports: &Reporter, phase: &str, chunk: Option<u32>, failure: Failure) {
    let Failure { class, message, advice, step, rows, memory } = failure;
    reports.send(Message::Failure(v1::TaskFailure {
        phase: phase.to_owned(),
        chunk,
        class: class.into(),
        message,
        advice,
        step,
        rows,
        memory,
    }));
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".to_owned())
}

//! The thread that owns every tensor of this process.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use foil_common::spec;
use foil_proto::v1;
use foil_proto::v1::rank_message::Message;
use tokio::sync::oneshot;

use super::RankOptions;
use crate::agent::DeviceKind;
use crate::phase::{Failure, PhaseError, RankContext, TaskContext};
use crate::task_io::artifact_cache::{Cache, Objects};
use crate::task_io::progress::Reporter;

/// What the device thread is told.
#[derive(Debug)]
pub(super) enum Order {
    Chunk(Box<v1::RunChunk>),
    Gang(Box<v1::RunGang>),
}

impl Order {
    fn phase(&self) -> (&str, u32) {
        let task = match self {
            Self::Chunk(lease) => lease.task.as_ref(),
            Self::Gang(command) => command.task.as_ref(),
        };
        task.map_or(("", 0), |task| (task.phase.as_str(), task.round))
    }

    fn chunk(&self) -> Option<u32> {
        match self {
            Self::Chunk(lease) => Some(lease.chunk),
            Self::Gang(_) => None,
        }
    }
}

/// How the thread ended; its parent always hears one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeviceEnd {
    /// No more orders.
    Idle,
    /// A task panicked, or none could be begun; the failure was reported.
    Broken,
    /// The coordinator no longer takes what this attempt writes.
    Stale,
    /// The process was asked to end, and what training has come to is kept.
    Stopped,
}

/// The session's end of the thread.
pub(super) struct DeviceThread {
    /// Dropping it ends the thread after its present task.
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) rendezvous: mpsc::Sender<v1::Rendezvous>,
    pub(super) end: oneshot::Receiver<DeviceEnd>,
}

/// Starts the thread for one job.
pub(super) fn start(
    options: &RankOptions,
    job: spec::Job,
    objects: Box<dyn Objects>,
    reports: Reporter,
) -> io::Result<DeviceThread> {
    let (orders, received) = mpsc::channel();
    let (rendezvous, meetings) = mpsc::channel();
    let (told, end) = oneshot::channel();
    let options = options.clone();
    // So that this thread's log lines name the job, the attempt and the rank too.
    let span = tracing::Span::current();
    thread::Builder::new().name("device".to_owned()).spawn(move || {
        let _entered = span.enter();
        let work = || work(&options, job, objects, reports, &received, meetings);
        let ended = catch_unwind(AssertUnwindSafe(work)).unwrap_or(DeviceEnd::Broken);
        // Nobody waits where the process is ending anyway.
        let _ = told.send(ended);
    })?;
    Ok(DeviceThread { orders, rendezvous, end })
}

fn work(
    options: &RankOptions,
    job: spec::Job,
    objects: Box<dyn Objects>,
    reports: Reporter,
    orders: &mpsc::Receiver<Order>,
    meetings: mpsc::Receiver<v1::Rendezvous>,
) -> DeviceEnd {
    foil_torch::runtime::keep_freed_memory();
    tch::set_num_threads(i32::try_from(options.threads.max(1)).unwrap_or(1));
    if options.device == DeviceKind::Cuda
        && let Err(error) = prepare_cuda(&job)
    {
        report(&reports, None, Failure::of_panic(&error.to_string()));
        return DeviceEnd::Broken;
    }
    let rank = RankContext {
        device: match options.device {
            DeviceKind::Cpu => tch::Device::Cpu,
            DeviceKind::Cuda => tch::Device::Cuda(0),
        },
        address: options.advertise_address.clone(),
        attempt: options.attempt,
        meetings,
        stopping: options.stopping.clone(),
    };
    let cache = match Cache::open(&options.work_dir, objects) {
        Ok(cache) => cache,
        Err(error) => {
            report(&reports, None, PhaseError::from(error).failure());
            return DeviceEnd::Broken;
        }
    };
    let mut context = TaskContext::new(job, rank, cache, reports);
    for order in orders {
        if let Some(end) = obey(&mut context, &order) {
            return end;
        }
    }
    DeviceEnd::Idle
}

/// Chooses libtorch's kernels for this process's GPU. To be called before a process group is made.
fn prepare_cuda(job: &spec::Job) -> foil_torch::Result<()> {
    foil_torch::runtime::disable_cudnn_attention();
    foil_torch::runtime::set_deterministic(job.resources.deterministic)
}

/// Runs one task; gives an end where the thread cannot go on after it.
fn obey(context: &mut TaskContext, order: &Order) -> Option<DeviceEnd> {
    let (phase, round) = order.phase();
    let span = tracing::info_span!("phase", phase, round, chunk = order.chunk());
    let _entered = span.enter();
    let run = || match order {
        Order::Chunk(lease) => context.run_chunk(lease),
        Order::Gang(command) => context.run_gang(command),
    };
    let (failure, end) = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return None,
        Ok(Err(error)) if error.is_stopped() => {
            tracing::info!("{error}");
            // The process may be gone before its own exit code is known.
            report(context.reports(), Some(order), error.failure());
            return Some(DeviceEnd::Stopped);
        }
        Ok(Err(error)) => (error.failure(), end_after(&error)),
        Err(panic) => (Failure::of_panic(&panic_text(panic.as_ref())), Some(DeviceEnd::Broken)),
    };
    tracing::error!(
        class = failure.class,
        advice = failure.advice,
        rows = failure.rows.len(),
        "{}",
        failure.message
    );
    report(context.reports(), Some(order), failure);
    end
}

/// How the thread ends after an error that another task could not go on from.
fn end_after(error: &PhaseError) -> Option<DeviceEnd> {
    if error.is_stale() {
        Some(DeviceEnd::Stale)
    } else {
        error.leaves_device_broken().then_some(DeviceEnd::Broken)
    }
}

fn report(reports: &Reporter, order: Option<&Order>, failure: Failure) {
    let Failure { class, message, advice, step, rows, memory } = failure;
    reports.send(Message::Failure(v1::TaskFailure {
        phase: order.map_or_else(String::new, |order| order.phase().0.to_owned()),
        chunk: order.and_then(Order::chunk),
        class: class.to_owned(),
        message,
        advice,
        step,
        rows,
        memory,
    }));
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

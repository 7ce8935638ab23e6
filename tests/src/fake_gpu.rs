//! The stand-in device of `tests/fake_gpu`: a `libtorch_cuda.so` that computes in host memory, rejects what a
//! GPU would reject, and traces its calls.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::binaries;

/// The compiled stand-in, or the reason why there is none.
static BUILT: LazyLock<Result<PathBuf, String>> = LazyLock::new(build);

/// Compiles files that are not up to date. This takes about half a minute the first time.
fn build() -> Result<PathBuf, String> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let site = repository.join(".venv/site-packages");
    if !site.join("torch/lib/libtorch_cuda.so").is_file() {
        return Err("libtorch has no CUDA".to_owned());
    }
    let out = binaries::directory().join("fake_gpu");
    let built = Command::new(repository.join("tests/fake_gpu/build")).arg(&out).output();
    let built = built.map_err(|error| error.to_string())?;
    // A source that does not compile is a failure rather than a reason to skip.
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Ok(out)
}

/// The stand-in and a folder for the traces of processes that use it.
pub struct FakeGpu {
    out: PathBuf,
    traces: tempfile::TempDir,
}

impl FakeGpu {
    /// `None` if there is nothing to compile it against. Prints which test is skipped.
    pub fn new(test: &str) -> Option<Self> {
        match &*BUILT {
            Ok(out) => {
                let traces = tempfile::tempdir().expect("a temporary directory");
                Some(Self { out: out.clone(), traces })
            }
            Err(reason) => {
                eprintln!("skipped: {test}: {reason}");
                None
            }
        }
    }

    /// The environment variables of a process on the stand-in.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        let path = std::env::var("PATH").unwrap_or_default();
        [
            ("LD_LIBRARY_PATH", self.out.join("lib").display().to_string()),
            ("PATH", format!("{}:{path}", self.out.join("bin").display())),
            ("FAKE_GPU_TRACE", self.traces.path().display().to_string()),
            ("OMP_NUM_THREADS", "1".to_owned()),
        ]
    }

    /// The traces of all processes that have used the device so far.
    pub fn traces(&self) -> Vec<Trace> {
        let files = std::fs::read_dir(self.traces.path()).expect("the folder of the traces");
        let paths = files.flatten().map(|file| file.path());
        let traces = paths.map(|path| Trace::read(&path)).filter(|trace| !trace.events.is_empty());
        traces.collect()
    }

    /// The trace of the process `pid`.
    pub fn trace_of(&self, pid: u32) -> Trace {
        Trace::read(&self.traces.path().join(format!("trace.{pid}")))
    }

    /// Asserts that no process did anything that a GPU would reject, and that some process used the device.
    #[track_caller]
    pub fn assert_no_trouble(&self) {
        let traces = self.traces();
        let kernels: usize = traces.iter().map(|trace| trace.count("kernel")).sum();
        assert!(kernels > 0, "no process used the device");
        for trace in &traces {
            let trouble: Vec<_> = trace.events.iter().filter(|event| event.kind == "trouble").collect();
            assert!(trouble.is_empty(), "{trouble:?}");
        }
    }
}

/// A line of a trace; `tests/fake_gpu/trace.h` lists the kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: String,
    pub text: String,
}

/// Memory of tensors in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    pub live: u64,
    pub peak: u64,
}

/// One process's device calls, in order.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub events: Vec<Event>,
}

impl Trace {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let events = text.lines().filter_map(|line| line.split_once('\t'));
        let events = events.map(|(kind, text)| Event { kind: kind.to_owned(), text: text.to_owned() });
        Self { events: events.collect() }
    }

    /// Number of events of a kind.
    pub fn count(&self, kind: &str) -> usize {
        self.events.iter().filter(|event| event.kind == kind).count()
    }

    /// Number of kernels whose operation begins with `name`.
    pub fn kernels(&self, name: &str) -> usize {
        self.events.iter().filter(|event| event.kind == "kernel" && event.text.starts_with(name)).count()
    }

    /// The number of copies from the host, and how many of them the host waits for.
    pub fn uploads(&self) -> (usize, usize) {
        let waits = self.events.iter().filter(|event| event.kind == "h2d" && event.text.starts_with("sync"));
        (self.count("h2d"), waits.count())
    }

    /// The number of times that the host waits for the device: explicitly, for pageable copies, and for
    /// scalars.
    pub fn syncs(&self) -> usize {
        let copies = self.events.iter().filter(|event| event.kind == "d2h" && event.text.starts_with("sync"));
        self.count("wait") + copies.count() + self.count("item") + self.uploads().1
    }

    /// The part of the trace between two marks, which are copies of these sizes to the host.
    pub fn between(&self, from: usize, to: usize) -> Self {
        Self { events: self.events[self.mark(from) + 1..self.mark(to)].to_vec() }
    }

    /// Memory at a mark. Its peak is the maximum since the last copy to the host.
    pub fn memory_at(&self, mark: usize) -> DeviceMemory {
        let event = &self.events[self.mark(mark) + 1];
        let numbers = event.text.split_once(' ').filter(|_| event.kind == "memory");
        let numbers = numbers.and_then(|(live, peak)| Some((live.parse().ok()?, peak.parse().ok()?)));
        let (live, peak) = numbers.unwrap_or_else(|| panic!("{event:?} tells no memory"));
        DeviceMemory { live, peak }
    }

    fn mark(&self, bytes: usize) -> usize {
        let text = format!("sync {bytes} ");
        let found = self.events.iter().position(|event| event.kind == "d2h" && event.text.starts_with(&text));
        found.unwrap_or_else(|| panic!("no mark {bytes} in a trace of {} events", self.events.len()))
    }
}

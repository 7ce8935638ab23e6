//! The one binary a user types.

use std::process::ExitCode;
use std::time::Duration;

use foil_common::telemetry::{self, LogFormat};

/// For work on threads of its own to end with the process, which does not wait for what has no end.
const PARTING: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            telemetry::last_words(LogFormat::Human, "foil", &format!("cannot start its threads: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(foil_coordinator::cli::main());
    runtime.shutdown_timeout(PARTING);
    code
}

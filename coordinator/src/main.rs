//! The one binary a user types.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    foil_coordinator::cli::main().await
}

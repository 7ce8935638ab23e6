//! The warning that a job waits for workers with enough devices.

use foil_common::plural::counted;
use foil_common::spec;
use tonic::Status;

use super::status::stopped;
use crate::driver::UserHandle;

/// Prefix of the warning.
const DEVICE_WARNING_PREFIX: &str = "resources.ranks: ";

/// The warning, if the connected workers have fewer devices than the job has ranks.
pub(super) async fn device_warning(driver: &UserHandle, job: &spec::Job) -> Result<Option<String>, Status> {
    let kind = job.resources.device.name();
    let connected = driver.devices(kind).await.map_err(stopped)?;
    Ok(device_shortage(job.resources.ranks, kind, connected))
}

/// Warning that the connected workers have fewer devices than the job has ranks.
fn device_shortage(ranks: u32, kind: &str, connected: usize) -> Option<String> {
    (connected < ranks as usize).then(|| {
        let (ranks, devices) = (counted(ranks, "rank"), counted(connected, "such device"));
        format!(
            "{DEVICE_WARNING_PREFIX}the job wants {ranks} on {kind}, and the workers connected now have {devices}; it waits until \
             there are more"
        )
    })
}

/// True for a warning about the connected workers rather than the job.
pub fn is_device_warning(warning: &str) -> bool {
    warning.starts_with(DEVICE_WARNING_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_of_devices_is_a_warning() {
        assert_eq!(device_shortage(2, "cpu", 2), None);
        let warning = device_shortage(80, "cuda", 8).unwrap();
        assert!(
            warning.contains("wants 80 ranks on cuda") && warning.contains("have 8 such devices"),
            "{warning}"
        );
        assert!(is_device_warning(&warning));
    }
}

//! The result table, printed line by line, so that earlier results stay visible if a group hangs.

use foil_proto::v1;

use super::rank::Report;

pub(crate) fn heading(devices: &[v1::Device]) -> String {
    let name = |device: &v1::Device| format!("{} {}", device.name, device.id);
    let devices: Vec<String> = devices.iter().map(name).collect();
    let columns = cells(["RANKS", "CHECKED", "SUMS", "SIZE", "ALL-REDUCE", "BUS"].map(str::to_owned));
    format!("{}\n{columns}", devices.join("\n"))
}

pub(crate) fn row(world: usize, report: &Report) -> String {
    let bus = match world {
        1 => "-".to_owned(),
        _ => format!("{:.2} GB/s", bus_bytes(world, report) / report.seconds / 1e9),
    };
    cells([
        world.to_string(),
        report.checked.to_string(),
        "exact".to_owned(),
        format!("{} MiB", report.bytes >> 20),
        format!("{:.3} ms", 1e3 * report.seconds),
        bus,
    ])
}

/// Bytes that each rank's link must carry in an all-reduce with any algorithm: 2 (n − 1) / n of the tensor,
/// as in nccl-tests.
pub(crate) fn bus_bytes(world: usize, report: &Report) -> f64 {
    2.0 * (world - 1) as f64 / world as f64 * report.bytes as f64
}

fn cells([ranks, checked, sums, size, time, bus]: [String; 6]) -> String {
    format!("{ranks:<7}{checked:<9}{sums:<8}{size:<10}{time:<14}{bus}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_bytes_are_those_of_a_ring() {
        let report = Report { checked: 48, difference: None, bytes: 64 << 20, seconds: 0.002 };
        assert_eq!(bus_bytes(2, &report), f64::from(64 << 20));
        assert_eq!(bus_bytes(8, &report), 1.75 * f64::from(64 << 20));
        assert_eq!(row(1, &report), "1      48       exact   64 MiB    2.000 ms      -");
        assert!(row(2, &report).ends_with("33.55 GB/s"));
    }
}

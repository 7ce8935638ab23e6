//! A short seeded run of `scripts/chaos`.

use std::process::Command;

use foil_tests::{StoreServer, foil};

#[test]
fn a_short_fault_schedule_changes_no_weights() {
    let store = if StoreServer::s3().is_some() { "s3" } else { "directory" };
    // It is built along with the other programs.
    let chaos = foil().with_file_name("foil-chaos");
    let output = Command::new(chaos).args(["--kills", "6", "--seed", "3", "--store", store]).output();
    let output = output.expect("foil-chaos starts");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    eprintln!("{told}");
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("faults survived                 6 "), "{told}");
    for held in ["final hash equal", "commits lost                    0 of ", "executed twice  0 of "] {
        assert!(told.contains(held), "{told}");
    }
}

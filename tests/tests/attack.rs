//! A short run of `scripts/attack`.

use std::process::Command;

use foil_tests::foil;

#[test]
fn attacks_disturb_neither_a_list_nor_a_job() {
    // It is built along with the other programs.
    let attack = foil().with_file_name("foil-attack");
    let output = Command::new(attack).args(["--seconds", "3"]).output().expect("foil-attack starts");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    eprintln!("{told}");
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("all jobs ended with the weights of the baseline"), "{told}");
}

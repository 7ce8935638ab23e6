//! Opens a page if there is a display.

use std::env;
use std::io::IsTerminal;
use std::process::{Command, Stdio};

use crate::stdout;

/// Opens a page with the program that the desktop, or BROWSER, names. Without a display, or if a program
/// reads the output, nothing is opened; the URL was printed.
pub(crate) fn open(url: &str) {
    if !std::io::stdout().is_terminal() {
        return;
    }
    let Some(program) = program(|name| env::var(name).ok(), cfg!(target_os = "macos")) else { return };
    let started = Command::new(&program)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    if let Err(error) = started {
        stdout::note(&format!("no browser was opened: {program} does not start: {error}"));
    }
}

/// The program that opens pages, according to the environment.
fn program(variable: impl Fn(&str) -> Option<String>, is_mac: bool) -> Option<String> {
    let given = |name: &str| variable(name).filter(|value| !value.is_empty());
    if let Some(browser) = given("BROWSER") {
        // A list; the first one is tried.
        return browser.split(':').next().map(str::to_owned);
    }
    if is_mac {
        return Some("open".to_owned());
    }
    // Over SSH, the display is elsewhere.
    let has_screen = given("DISPLAY").or_else(|| given("WAYLAND_DISPLAY")).is_some();
    has_screen.then(|| "xdg-open".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_opened_where_there_is_a_screen() {
        let of = |variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            program(variable, false)
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("DISPLAY", "")]), None);
        assert_eq!(of(&[("DISPLAY", ":0")]).as_deref(), Some("xdg-open"));
        assert_eq!(of(&[("WAYLAND_DISPLAY", "wayland-0")]).as_deref(), Some("xdg-open"));
        assert_eq!(of(&[("BROWSER", "firefox:lynx")]).as_deref(), Some("firefox"));
        assert_eq!(program(|_| None, true).as_deref(), Some("open"));
    }
}

//! `foil completion`: shell completion scripts for commands and options.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::generate;

use super::args::{Cli, CompletionArgs, Shell};
use super::stdout;

pub(crate) fn completion(args: &CompletionArgs) -> Result<()> {
    Ok(stdout::line(script(args.shell)?.trim_end())?)
}

fn script(shell: Shell) -> Result<String> {
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    generate(generator, &mut Cli::command(), "foil", &mut script);
    Ok(String::from_utf8(script)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_names_every_command_and_option() {
        let command = Cli::command();
        let visible: Vec<_> = command.get_subcommands().filter(|command| !command.is_hide_set()).collect();
        assert!(visible.len() > 10);
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell).unwrap();
            for command in &visible {
                assert!(script.contains(command.get_name()), "{shell:?}: {}", command.get_name());
                let options = command.get_arguments().filter(|argument| !argument.is_hide_set());
                for option in options.filter_map(clap::Arg::get_long) {
                    let named =
                        script.contains(&format!("--{option}")) || script.contains(&format!("-l {option}"));
                    assert!(named, "{shell:?}: {} --{option}", command.get_name());
                }
            }
        }
    }
}

//! `foil token`: new tokens for a coordinator's token file.

use std::time::SystemTime;

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};
use foil_coordinator::auth::token::Token;
use foil_coordinator::auth::{Role, check_name, entry_line, expiry};
use foil_coordinator::tenant::Tenant;

use super::stdout;

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Creates a token and prints it, once, with the line for the coordinator's --token-file. The holder
    /// keeps the token in a file of mode 600 (--token-file or FOIL_TOKEN_FILE); the coordinator has only its
    /// hash.
    Create(CreateArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Name of the user or agent that the token is for.
    #[arg(long, value_name = "NAME", value_parser = principal_name)]
    name: String,
    /// Tenant that it belongs to.
    #[arg(long, value_name = "TENANT", default_value = "default", value_parser = str::parse::<Tenant>)]
    tenant: Tenant,
    /// Role: viewer (read), submitter (and run jobs), operator (and act on all jobs of the
    /// tenant), admin (and on all tenants), or agent (foil-worker).
    #[arg(long, value_name = "ROLE", value_parser = str::parse::<Role>)]
    role: Role,
    /// When it expires: after a time, such as 90d or 12h, or on a date, such as 2027-01-31 (UTC).
    #[arg(long, value_name = "TIME", value_parser = expires)]
    expires: Option<SystemTime>,
}

/// Checks a name, which is one word of a line.
fn principal_name(text: &str) -> Result<String, String> {
    check_name(text)?;
    match text.contains(|letter: char| letter.is_whitespace() || letter == '#') {
        true => Err("a name in a token file has neither blanks nor '#'".to_owned()),
        false => Ok(text.to_owned()),
    }
}

fn expires(text: &str) -> Result<SystemTime, String> {
    let now = SystemTime::now();
    let at = match humantime::parse_duration(text) {
        Ok(after) => now.checked_add(after).ok_or_else(|| format!("{text} is too long"))?,
        Err(_) => expiry(text).map_err(|_| {
            format!(
                "{text:?} is neither a time, as 90d or 12h, nor a date, as 2027-01-31 or 2027-01-31T12:00:00Z"
            )
        })?,
    };
    if at <= now { Err(format!("{text} is in the past")) } else { Ok(at) }
}

pub(crate) fn token(args: &TokenArgs) -> Result<()> {
    let TokenCommand::Create(create) = &args.command;
    let CreateArgs { name, tenant, role, expires } = create;
    let mut random = rand::rngs::OsRng;
    let token = Token::generate(&mut random).map_err(|error| anyhow!("no random numbers: {error}"))?;
    let line = entry_line(name, tenant, *role, &token, *expires);
    stdout::line(&format!(
        "token, for {name} alone; it is shown once:\n{}\n\nline for the coordinator's --token-file:\n{line}",
        token.reveal()
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_expires_after_a_time_or_at_a_date_to_come() {
        let in_a_day = expires("1d").unwrap().duration_since(SystemTime::now()).unwrap().as_secs();
        assert!((86_000..=86_400).contains(&in_a_day), "{in_a_day}");
        expires("2999-01-31").unwrap();
        for wrong in ["2001-01-31", "0s", "soon", "99999999999999999y"] {
            assert!(expires(wrong).is_err(), "{wrong}");
        }
        principal_name("ada@example.com").unwrap();
        for wrong in ["", "ada lovelace", "ada#1"] {
            assert!(principal_name(wrong).is_err(), "{wrong}");
        }
    }
}

//! The claims of a token (RFC 7519), and the principal that they name.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::JwtConfig;
use crate::auth::principal::{Principal, Role, Source, check_name};
use crate::tenant::Tenant;

/// Tolerated clock difference between the issuer and this machine.
pub(super) const LEEWAY: Duration = Duration::from_secs(30);

/// The principal named by verified claims, or the reason why they name none.
pub(super) fn principal(
    claims: &Map<String, Value>,
    config: &JwtConfig,
    now: SystemTime,
) -> Result<Principal, String> {
    if claims.get("iss").and_then(Value::as_str) != Some(&config.issuer) {
        return Err("it is of another issuer (iss)".to_owned());
    }
    let is_meant = match claims.get("aud") {
        Some(Value::String(audience)) => *audience == config.audience,
        Some(Value::Array(audiences)) => {
            audiences.iter().any(|audience| audience.as_str() == Some(&config.audience))
        }
        _ => false,
    };
    if !is_meant {
        return Err("it is meant for others than this coordinator (aud)".to_owned());
    }
    let expires = time(claims, "exp")?.ok_or("it has no time of expiry (exp)")?;
    if now >= expires + LEEWAY {
        return Err("it has expired (exp)".to_owned());
    }
    if time(claims, "nbf")?.is_some_and(|from| now + LEEWAY < from) {
        return Err("it is not valid yet (nbf)".to_owned());
    }
    let name = text(claims, &config.name_claim)?;
    check_name(name)?;
    let tenant: Tenant = text(claims, &config.tenant_claim)?.parse()?;
    let role = role(claims, &config.role_claim)?;
    Ok(Principal { name: name.to_owned(), tenant, role, source: Source::Jwt, expires: Some(expires) })
}

/// A time in seconds since 1970, possibly fractional.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<SystemTime>, String> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let seconds = value.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let at = seconds.and_then(|since| UNIX_EPOCH.checked_add(since));
    // Room for the leeway.
    let at = at.filter(|at| at.checked_add(LEEWAY).is_some());
    at.map(Some).ok_or_else(|| format!("its claim {name} is no time"))
}

/// A claim by its name, or by a path such as `realm_access.roles`.
fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    claims.get(name).or_else(|| {
        let (outer, inner) = name.split_once('.')?;
        find(claims.get(outer)?.as_object()?, inner)
    })
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<&'a str, String> {
    find(claims, name).and_then(Value::as_str).ok_or_else(|| format!("it has no text in the claim {name}"))
}

/// The role: the claim itself, or the only role in a list of groups.
fn role(claims: &Map<String, Value>, name: &str) -> Result<Role, String> {
    let named = |value: &Value| value.as_str().and_then(|text| text.parse::<Role>().ok());
    let mut roles = match find(claims, name) {
        Some(Value::Array(groups)) => groups.iter().filter_map(named).collect::<Vec<_>>(),
        Some(value) => named(value).into_iter().collect(),
        None => return Err(format!("it has no claim {name}")),
    };
    match (roles.pop(), roles.pop()) {
        (Some(role), None) => Ok(role),
        (None, _) => {
            Err(format!("its claim {name} has no role; expected viewer, submitter, operator, admin or agent"))
        }
        (Some(_), Some(_)) => Err(format!("its claim {name} has several roles; expected one")),
    }
}

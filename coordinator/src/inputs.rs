//! Keys of uploads. Each tenant has its own, so that no tenant can use a hash to learn what another has
//! uploaded.

use foil_common::rpc::artifacts::input_key;

use crate::tenant::Tenant;

/// Prefix of all uploads.
pub const INPUTS: &str = "inputs";

/// Key in the store of a tenant's upload with this hash. The default tenant's keys have no tenant component,
/// as in stores that predate tenants; a tenant's name is shorter than a hash, so the other tenants' keys
/// cannot collide with them.
pub fn stored_key(tenant: &Tenant, blake3: &str) -> String {
    match *tenant == Tenant::default() {
        true => input_key(blake3),
        false => input_key(&format!("{tenant}/{blake3}")),
    }
}

/// Tenant and hash of a key below `inputs/`, either as clients write it (`inputs/{blake3}`, for their own
/// tenant) or as stored (`inputs/{tenant}/{blake3}`).
pub fn parse_key(key: &str, own: &Tenant) -> Option<(Tenant, String)> {
    let rest = key.strip_prefix("inputs/")?;
    match rest.split_once('/') {
        None => Some((own.clone(), rest.to_owned())),
        Some((tenant, blake3)) => Some((tenant.parse().ok()?, blake3.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenant_has_keys_of_its_own() {
        let (default, vision): (Tenant, Tenant) = (Tenant::default(), "vision".parse().unwrap());
        let hash = "ab".repeat(32);
        assert_eq!(stored_key(&default, &hash), format!("inputs/{hash}"));
        assert_eq!(stored_key(&vision, &hash), format!("inputs/vision/{hash}"));
        for (key, expected) in [
            (format!("inputs/{hash}"), Some((vision.clone(), hash.clone()))),
            (format!("inputs/default/{hash}"), Some((default.clone(), hash.clone()))),
            (format!("inputs/Vision/{hash}"), None),
            (format!("jobs/{hash}"), None),
        ] {
            assert_eq!(parse_key(&key, &vision), expected, "{key}");
        }
        for tenant in [&default, &vision] {
            let round = parse_key(&stored_key(tenant, &hash), &default).unwrap();
            assert_eq!(round, (tenant.clone(), hash.clone()));
        }
    }
}

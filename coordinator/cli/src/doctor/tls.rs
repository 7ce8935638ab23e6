//! Checks of TLS files: readable, a matching pair, private, and not about to expire.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use foil_common::tls::{PemFile, TlsError};
use tokio_rustls::rustls::crypto::ring::sign::any_supported_type;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::finding::Finding;

/// Remaining validity below which a certificate causes a warning.
const SOON: Duration = Duration::from_secs(30 * 86_400);

/// Checks a CA file, a certificate chain and its key, as far as they are named.
pub(super) fn check(check: &'static str, files: &[Option<PathBuf>; 3], now: SystemTime) -> Vec<Finding> {
    let [ca, certificate, key] = files;
    let mut findings = Vec::new();
    for path in [ca, certificate].into_iter().flatten() {
        findings.push(certificates(path).map_or_else(
            |error| Finding::error(check, error),
            |found| judge_expiry(check, path, &found, now),
        ));
    }
    if let (Some(certificate), Some(key)) = (certificate, key) {
        findings.push(
            pair(certificate, key)
                .map_or_else(|error| Finding::error(check, error), |()| judge_privacy(check, key)),
        );
    }
    findings
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    PemFile::read(path)?.certificates()
}

/// Subject and the times between which a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Validity {
    subject: String,
    from: i64,
    until: i64,
}

fn validity(certificate: &CertificateDer<'_>) -> Option<Validity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let validity = parsed.validity();
    Some(Validity {
        subject: parsed.subject().to_string(),
        from: validity.not_before.timestamp(),
        until: validity.not_after.timestamp(),
    })
}

/// Judges a file by the certificate in it that expires first.
fn judge_expiry(
    check: &'static str,
    path: &Path,
    certificates: &[CertificateDer<'_>],
    now: SystemTime,
) -> Finding {
    let found: Option<Vec<Validity>> = certificates.iter().map(validity).collect();
    let Some(first) = found.and_then(|found| found.into_iter().min_by_key(|validity| validity.until)) else {
        let message = format!("{} holds a certificate that cannot be read", path.display());
        return Finding::fail(check, message, "create it again, in PEM format");
    };
    let seconds =
        i64::try_from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(i64::MAX);
    let days = (first.until - seconds) / 86_400;
    let named = format!("{} ({})", path.display(), first.subject);
    if first.until <= seconds {
        let message = format!("{named} expired {} days ago", -days);
        return Finding::fail(check, message, "renew it; programs that run read the new file by themselves");
    }
    if first.from > seconds {
        let message = format!("{named} is not valid yet");
        return Finding::fail(check, message, "check this machine's clock, and the certificate's times");
    }
    let message = format!("{named} is valid for {days} days");
    match first.until - seconds < SOON.as_secs().cast_signed() {
        true => Finding::warn(check, message, "renew it; programs that run read the new file by themselves"),
        false => Finding::ok(check, message),
    }
}

fn pair(certificate: &Path, key: &Path) -> Result<(), TlsError> {
    let chain = certificates(certificate)?;
    let private: PrivateKeyDer<'static> = PemFile::read(key)?.key()?;
    let signer = any_supported_type(&private).map_err(|error| TlsError::invalid(key, &error))?;
    CertifiedKey::new(chain, signer)
        .keys_match()
        .map_err(|_| TlsError::invalid(key, &format!("it is not the key of {}", certificate.display())))
}

fn judge_privacy(check: &'static str, key: &Path) -> Finding {
    let mode = key.metadata().map_or(0, |found| found.permissions().mode() & 0o777);
    match mode & 0o077 {
        0 => Finding::ok(check, format!("{} is the certificate's key, and its owner's alone", key.display())),
        _ => {
            let message = format!("the key {} can be read by other users (mode {mode:o})", key.display());
            Finding::warn(check, message, format!("chmod 600 {}", key.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::super::finding::Level;
    use super::*;

    /// A certificate that is valid in the years `from..until`, and its key.
    fn make(dir: &Path, name: &str, from: i32, until: i32) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec!["host".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
        let key = KeyPair::generate().unwrap();
        let files = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        fs::write(&files.0, params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(&files.1, key.serialize_pem()).unwrap();
        fs::set_permissions(&files.1, fs::Permissions::from_mode(0o600)).unwrap();
        files
    }

    /// 2026-01-01.
    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    #[test]
    fn a_pair_that_is_valid_and_private_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let (crt, key) = make(dir.path(), "good", 2020, 2030);
        let findings = check("tls", &[Some(crt.clone()), Some(crt), Some(key.clone())], now());
        assert!(findings.len() == 3 && findings.iter().all(|found| found.level == Level::Ok), "{findings:?}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let (other, _) = make(dir.path(), "other", 2020, 2030);
        let open = judge_privacy("tls", &key);
        assert!(open.level == Level::Warn && open.message.contains("mode 644"), "{open:?}");
        let mixed = check("tls", &[None, Some(other), Some(key)], now());
        assert!(mixed[1].level == Level::Fail && mixed[1].message.contains("not the key of"), "{mixed:?}");
        assert_eq!(check("tls", &[None, None, None], now()), []);
    }

    #[test]
    fn certificates_are_judged_by_their_times() {
        let dir = tempfile::tempdir().unwrap();
        for (from, until, level, told) in [
            (2020, 2025, Level::Fail, "expired 365 days ago"),
            (2027, 2030, Level::Fail, "not valid yet"),
            (2020, 2030, Level::Ok, "valid for 1461 days"),
        ] {
            let (crt, _) = make(dir.path(), "c", from, until);
            let found = check("tls", &[Some(crt), None, None], now());
            assert!(found[0].level == level && found[0].message.contains(told), "{found:?}");
        }
        let (crt, _) = make(dir.path(), "c", 2020, 2026);
        let nearly = now() - Duration::from_secs(5 * 86_400);
        let found = check("tls", &[Some(crt), None, None], nearly);
        assert!(found[0].level == Level::Warn && found[0].message.contains("valid for 5 days"), "{found:?}");
    }

    #[test]
    fn files_that_hold_nothing_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        fs::write(&empty, "").unwrap();
        for path in [empty, dir.path().join("absent.pem")] {
            let found = check("tls", &[Some(path.clone()), None, None], now());
            assert!(found[0].level == Level::Fail, "{found:?}");
            assert!(found[0].message.contains(path.to_str().unwrap()), "{found:?}");
        }
    }
}

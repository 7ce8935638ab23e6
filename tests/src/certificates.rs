//! Certificates for tests of TLS.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

/// A CA that signs certificates for this machine and writes them to a directory.
pub struct Ca {
    directory: PathBuf,
    name: String,
    issuer: Issuer<'static, KeyPair>,
}

/// The files of a certificate and its key.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
    serial: SerialNumber,
}

impl Ca {
    pub fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a CA certificate");
        fs::write(directory.join(format!("{name}.pem")), certificate.pem()).expect("a file");
        Self { directory: directory.to_owned(), name: name.to_owned(), issuer: Issuer::new(params, key) }
    }

    /// The file of the CA's own certificate.
    pub fn path(&self) -> PathBuf {
        self.directory.join(format!("{}.pem", self.name))
    }

    /// Creates a valid certificate for `host`, in files with the name `file`.
    pub fn sign(&self, file: &str, host: &str) -> Certificate {
        self.sign_until(file, host, 2999)
    }

    /// Creates a certificate that is valid until the year `last`.
    pub fn sign_until(&self, file: &str, host: &str, last: i32) -> Certificate {
        self.write(file, params(host, last))
    }

    /// Creates a certificate that names a principal: its name, tenant and role.
    pub fn sign_as(&self, file: &str, [name, tenant, role]: [&str; 3]) -> Certificate {
        let mut params = params(name, 2999);
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, tenant);
        params.distinguished_name.push(DnType::OrganizationalUnitName, role);
        self.write(file, params)
    }

    /// Writes a revocation list with these certificates and returns its file.
    pub fn revoke(&self, certificates: &[&Certificate]) -> PathBuf {
        let (from, until) = (date_time_ymd(2001, 1, 1), date_time_ymd(2999, 1, 1));
        let revoked = |certificate: &&Certificate| RevokedCertParams {
            serial_number: certificate.serial.clone(),
            revocation_time: from,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: from,
            next_update: until,
            crl_number: SerialNumber::from(certificates.len() as u64 + 1),
            issuing_distribution_point: None,
            revoked_certs: certificates.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.directory.join(format!("{}.crl", self.name));
        let pem = list.signed_by(&self.issuer).expect("a list").pem().expect("a list in PEM");
        fs::write(&path, pem).expect("a file");
        path
    }

    fn write(&self, file: &str, mut params: CertificateParams) -> Certificate {
        // File names of a CA are unique, so they can serve as serial numbers.
        let serial = SerialNumber::from(file.as_bytes().to_vec());
        params.serial_number = Some(serial.clone());
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let files = Certificate {
            certificate: self.directory.join(format!("{file}.crt")),
            key: self.directory.join(format!("{file}.key")),
            serial,
        };
        fs::write(&files.key, key.serialize_pem()).expect("a file");
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).expect("a mode");
        fs::write(&files.certificate, certificate.pem()).expect("a file");
        files
    }
}

fn params(host: &str, last: i32) -> CertificateParams {
    let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a host");
    (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(last, 1, 1));
    params
}

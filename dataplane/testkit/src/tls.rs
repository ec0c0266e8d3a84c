//! Certificates, and the folder that they are in as Kubernetes mounts a Secret. Needs the `openssl` command.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// One that vouches for others.
#[derive(Debug)]
pub struct Authority {
    folder: TempDir,
    pub certificate: String,
}

/// PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Result<Authority> {
        let folder = TempDir::new()?;
        let made = make(&folder, &["-subj", "/CN=authority", "-addext", "basicConstraints=critical,CA:TRUE"])?;
        fs::write(folder.path().join("authority.crt"), &made.certificate)?;
        fs::write(folder.path().join("authority.key"), &made.key)?;
        Ok(Authority { folder, certificate: made.certificate })
    }

    /// A certificate for the names, as openssl writes them: `DNS:localhost,IP:127.0.0.1`.
    pub fn issue(&self, names: &str) -> Result<Issued> {
        let names = format!("subjectAltName={names}");
        let issuer = ["-CA", "authority.crt", "-CAkey", "authority.key"];
        let usual = ["-subj", "/CN=node", "-addext", "basicConstraints=critical,CA:FALSE", "-addext", &names];
        make(&self.folder, &[&issuer[..], &usual].concat())
    }
}

fn make(folder: &TempDir, arguments: &[&str]) -> Result<Issued> {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-keyout", "made.key", "-out", "made.crt"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .context("run openssl")?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |name| fs::read_to_string(folder.path().join(name));
    Ok(Issued { certificate: read("made.crt")?, key: read("made.key")? })
}

/// Files that change all at once: their names lead through one link to those that count at present.
#[derive(Debug)]
pub struct Mount {
    folder: TempDir,
    puts: u32,
}

impl Mount {
    pub fn new(files: &[(&str, &str)]) -> Result<Mount> {
        let mut mount = Mount { folder: TempDir::new()?, puts: 0 };
        for (name, _) in files {
            std::os::unix::fs::symlink(format!("..data/{name}"), mount.file(name))?;
        }
        mount.put(files)?;
        Ok(mount)
    }

    /// Replaces all files.
    pub fn put(&mut self, files: &[(&str, &str)]) -> Result<()> {
        self.puts += 1;
        let (next, link) = (format!("..{}", self.puts), self.file("..data_tmp"));
        fs::create_dir(self.file(&next))?;
        for (name, text) in files {
            fs::write(self.file(&next).join(name), text)?;
        }
        std::os::unix::fs::symlink(next, &link)?;
        Ok(fs::rename(link, self.file("..data"))?)
    }

    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

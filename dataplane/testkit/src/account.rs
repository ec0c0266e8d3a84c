//! The unprivileged account for programs that refuse to run as root.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The account used when this process is root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    gid: u32,
}

impl User {
    /// `None` when this process is not root and can run such programs itself.
    pub(crate) fn unprivileged() -> Result<Option<User>> {
        let own = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
        let effective =
            own.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|line| line.split_whitespace().nth(1));
        if effective != Some("0") {
            return Ok(None);
        }
        let accounts = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
        for name in ["postgres", "nobody"] {
            for line in accounts.lines() {
                let fields: Vec<_> = line.split(':').collect();
                if let [account, _, uid, gid, ..] = fields[..]
                    && account == name
                {
                    return Ok(Some(User { uid: uid.parse()?, gid: gid.parse()? }));
                }
            }
        }
        bail!("running as root and there is neither a user postgres nor nobody to run PostgreSQL as")
    }

    /// The command will run as this user.
    pub(crate) fn run(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Gives it a file or folder.
    pub(crate) fn own(self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("give {} to another user", path.display()))
    }
}

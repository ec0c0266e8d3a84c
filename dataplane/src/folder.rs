//! The folder that the replica is in: made if it is missing. And the folders of former generations beside it, `/data/v1` beside
//! `/data/v2`, which are removed if that is asked for.
//!
//! A replica that this release cannot use is moved aside.
//!
//! Invariant: a folder is removed only if it holds a replica of this application that nobody uses, and nothing else; no file is
//! ever removed that is not such a replica or a part of one.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use replica::Identity;
use tracing::{debug, info, warn};

use crate::node::Node;

/// A replica holds all that its users may see.
const MODE: u32 = 0o700;
/// What SQLite, copies and restorations keep beside a replica; the replica itself has none of them.
const SUFFIXES: [&str; 3] = ["", ".copying", ".restoring"];
const PARTS: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// What belongs to a replica, the original server's too; the file first.
const REPLICA_PARTS: [&str; 5] = ["", "-wal", "-wal2", "-shm", "-journal"];

/// Makes the folder of a replica.
pub fn make(file: &Path) -> Result<()> {
    let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(()) };
    let made = DirBuilder::new().recursive(true).mode(MODE).create(folder);
    made.with_context(|| format!("make the folder {} of ZERO_REPLICA_FILE", folder.display()))
}

/// Moves a replica aside that is of no use here: the original server's, or another release's. Nothing is lost, and nothing else is
/// ever moved. Unless the replica may be made anew, that is for a person to do.
pub fn clear(file: &Path, may_replace: bool) -> Result<()> {
    let Some(former) = replica::former(file)? else { return Ok(()) };
    let shown = file.display();
    if !may_replace {
        bail!(
            "{shown} is {former}, and ZERO_AUTO_RESET is false: move it away, choose another ZERO_REPLICA_FILE, or set ZERO_AUTO_RESET, and everything is copied from upstream anew"
        );
    }
    let aside = |number: u32, part: &str| with_suffix(file, &format!(".before-{number}{part}"));
    let is_free = |number: &u32| REPLICA_PARTS.iter().all(|part| !aside(*number, part).exists());
    let number = (1..).find(is_free).context("no name is left to move the former replica to")?;
    // The file itself goes last, so that an attempt that was cut off is repeated.
    for part in REPLICA_PARTS.iter().rev() {
        let from = with_suffix(file, part);
        match fs::rename(&from, aside(number, part)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("move {} aside", from.display()));
            }
            _ => {}
        }
    }
    warn!(
        file = %shown,
        moved_to = %aside(number, "").display(),
        "the file is {former}: it is moved aside, and everything is copied anew; remove it when it is not needed any more"
    );
    Ok(())
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes, in the background, what former generations left, if this node is to.
pub fn tidy(node: &Node<'_>) {
    if node.config.replica.removes_siblings {
        let (file, identity) = (node.config.replica.file.clone(), node.identity());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = remove_siblings(&file, &identity) {
                warn!(error = format!("{error:#}"), "cannot look for replicas of former generations");
            }
        });
    }
}

fn remove_siblings(file: &Path, identity: &Identity) -> Result<()> {
    let file = file.canonicalize().context("find the replica")?;
    let (Some(name), Some(folder)) = (file.file_name(), file.parent()) else { return Ok(()) };
    let Some(above) = folder.parent() else { return Ok(()) };
    for entry in fs::read_dir(above).with_context(|| format!("read {}", above.display()))? {
        let entry = entry.with_context(|| format!("read {}", above.display()))?;
        let sibling = entry.path();
        // Links are not followed: they may lead anywhere.
        if sibling == folder || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match remove(&sibling, name, identity) {
            Ok(()) => info!(folder = %sibling.display(), "removed the replica of a former generation"),
            Err(reason) => debug!(folder = %sibling.display(), reason = format!("{reason:#}"), "left a folder alone"),
        }
    }
    Ok(())
}

/// Removes a folder with a replica called `name`, or says why not.
fn remove(folder: &Path, name: &OsStr, identity: &Identity) -> Result<()> {
    let parts_of = |suffix: &'static str| {
        PARTS.iter().map(move |part| [name, suffix.as_ref(), part.as_ref()].into_iter().collect())
    };
    let own: Vec<OsString> = SUFFIXES.into_iter().flat_map(parts_of).collect();
    let mut parts: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let other = entry.file_name();
        ensure!(own.contains(&other), "{} is no part of a replica", other.display());
        ensure!(entry.file_type()?.is_file(), "{} is not a file", other.display());
        parts.push(entry.path());
    }
    let file = folder.join(name);
    if !parts.contains(&file) {
        bail!("there is no replica");
    }
    replica::retire(&file, identity)?;
    for part in parts.iter().filter(|part| part.exists()) {
        fs::remove_file(part)?;
    }
    // Whatever came meanwhile keeps the folder.
    fs::remove_dir(folder)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicU32, Ordering};

    use replica::{Description, Loader, Opened, Replica};
    use rows::Version;

    use super::*;

    /// Removed with everything in it.
    struct Data(PathBuf);

    impl Data {
        fn new() -> Data {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let folder = std::env::temp_dir().join(format!("zero-folder-{}-{number}", std::process::id()));
            fs::create_dir(&folder).unwrap();
            Data(folder)
        }

        fn file(&self, generation: &str) -> PathBuf {
            self.0.join(generation).join("replica.db")
        }

        fn replica(&self, generation: &str, app: &str) -> PathBuf {
            let path = self.file(generation);
            make(&path).unwrap();
            let description = Description {
                identity: identity(app),
                replica_id: generation.to_owned(),
                slot: "slot".to_owned(),
                initial_version: Version::ZERO,
            };
            Loader::create(&path, description, Vec::new()).unwrap().finish(Version::new(1)).unwrap();
            path
        }

        fn put(&self, path: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "precious").unwrap();
        }

        /// Every path, relative.
        fn paths(&self) -> BTreeSet<String> {
            let (mut folders, mut paths) = (vec![self.0.clone()], BTreeSet::new());
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                    paths.insert(entry.path().strip_prefix(&self.0).unwrap().to_str().unwrap().to_owned());
                    if entry.file_type().unwrap().is_dir() {
                        folders.push(entry.path());
                    }
                }
            }
            paths
        }
    }

    impl Drop for Data {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn identity(app: &str) -> Identity {
        Identity { app: app.to_owned(), shard: 0 }
    }

    #[test]
    fn the_folder_is_made_for_its_owner_alone() {
        let data = Data::new();
        make(&data.file("a/b")).unwrap();
        assert_eq!(fs::metadata(data.0.join("a/b")).unwrap().permissions().mode() & 0o777, 0o700);
        make(&data.file("a/b")).unwrap();
        make(Path::new("replica.db")).unwrap();
        data.put("file");
        let error = make(&data.file("file")).unwrap_err().to_string();
        assert!(error.contains("ZERO_REPLICA_FILE") && error.contains("/file"), "{error}");
    }

    #[test]
    fn a_replica_of_the_original_makes_way_and_nothing_else_does() {
        let data = Data::new();
        let file = data.file("v1");
        make(&file).unwrap();
        clear(&file, true).unwrap();
        let mut original = b"SQLite format 3\0".to_vec();
        original.resize(3 << 20, 7);
        // Across two reads.
        let at = (1 << 20) - 5;
        let table = b"CREATE TABLE \"_zero.replicationConfig\" (";
        original[at..at + table.len()].copy_from_slice(table);
        fs::write(&file, &original).unwrap();
        data.put("v1/replica.db-wal2");
        let refusal = clear(&file, false).unwrap_err().to_string();
        assert!(refusal.contains("original zero-cache") && refusal.contains("ZERO_AUTO_RESET"), "{refusal}");
        for number in 1..3 {
            fs::write(&file, &original).unwrap();
            clear(&file, true).unwrap();
            assert_eq!(fs::read(data.0.join(format!("v1/replica.db.before-{number}"))).unwrap(), original);
        }
        let left = ["v1", "v1/replica.db.before-1", "v1/replica.db.before-1-wal2", "v1/replica.db.before-2"];
        assert_eq!(data.paths(), BTreeSet::from(left.map(str::to_owned)));

        // Another program's database, no database, and our own replica stay where they are.
        let foreign = [b"SQLite format 3\0".to_vec(), vec![0; 4096]].concat();
        for contents in [foreign, b"precious".to_vec()] {
            fs::write(&file, &contents).unwrap();
            clear(&file, true).unwrap();
            assert_eq!(fs::read(&file).unwrap(), contents);
            fs::remove_file(&file).unwrap();
        }
        let ours = data.replica("v2", "app");
        clear(&ours, true).unwrap();
        assert!(ours.exists());
        // Unless another release wrote it: the format is a number in the header.
        let mut bytes = fs::read(&ours).unwrap();
        bytes[60..64].copy_from_slice(&99_i32.to_be_bytes());
        fs::write(&ours, bytes).unwrap();
        assert!(clear(&ours, false).unwrap_err().to_string().contains("format 99"));
        clear(&ours, true).unwrap();
        assert!(!ours.exists());
    }

    #[test]
    fn former_generations_go() {
        let data = Data::new();
        let new = data.replica("v3", "app");
        for old in ["v1", "v2"] {
            data.replica(old, "app");
        }
        // As a process leaves it that was killed in the middle of a copy.
        data.put("v2/replica.db.copying");
        data.put("v2/replica.db.restoring-journal");
        remove_siblings(&new, &identity("app")).unwrap();
        assert_eq!(data.paths(), BTreeSet::from(["v3", "v3/replica.db"].map(str::to_owned)));
    }

    #[test]
    fn nothing_else_is_ever_removed() {
        let data = Data::new();
        let new = data.replica("v2", "app");
        data.replica("other-app", "other");
        data.replica("with-notes", "app");
        data.put("with-notes/notes.txt");
        data.replica("with-folder", "app");
        data.put("with-folder/replica.db-wal/inner");
        data.put("foreign/replica.db");
        data.put("no-replica/replica.db-wal");
        data.put("file-beside");
        data.put("plain/a/b");
        fs::create_dir(data.0.join("empty")).unwrap();
        fs::create_dir(data.0.join("v10")).unwrap();
        data.put("v10/replica.db.bak");
        let outside = Data::new();
        outside.replica("kept", "app");
        symlink(outside.0.join("kept"), data.0.join("link")).unwrap();
        fs::create_dir(data.0.join("linked-file")).unwrap();
        symlink(outside.file("kept"), data.file("linked-file")).unwrap();
        let in_use = data.replica("in-use", "app");
        let Ok(Opened::Usable(replica)) = Replica::open(&in_use, &identity("app")) else { panic!("no replica") };
        let writer = replica.writer().unwrap();
        let before = data.paths();
        remove_siblings(&new, &identity("app")).unwrap();
        assert_eq!(data.paths(), before);
        assert!(outside.file("kept").exists());
        assert!(matches!(Replica::open(&in_use, &identity("app")), Ok(Opened::Usable(_))));
        drop(writer);
        remove_siblings(&new, &identity("app")).unwrap();
        assert!(!data.0.join("in-use").exists(), "nobody uses it any more");
    }
}

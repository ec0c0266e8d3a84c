//! A backup in a local directory, laid out as Litestream lays out its `file://` replicas.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt as _;

use super::{Body, Note, Store};
use crate::error::Error;
use crate::name::Name;
use crate::plan::File;
use crate::stream::Part;

#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    pub fn new(root: PathBuf) -> Directory {
        Directory { root }
    }

    fn level(&self, level: u8) -> PathBuf {
        self.root.join("ltx").join(level.to_string())
    }

    fn path(&self, name: Name) -> PathBuf {
        let key = name.key();
        self.level(name.level).join(key.split_once('/').map_or(&*key, |(_, file)| file))
    }

    fn failed(&self, name: Name, action: &'static str, error: &io::Error) -> Error {
        let at = self.location(Some(name));
        match error.kind() {
            io::ErrorKind::NotFound => Error::Missing { name: at },
            io::ErrorKind::PermissionDenied => Error::Denied { at, reason: format!("{action}: {error}") },
            _ => Error::Unavailable { at, action, cause: error.to_string() },
        }
    }

    async fn write(&self, path: &Path, body: Body) -> io::Result<Option<u64>> {
        let mut file = tokio::fs::File::create(path).await?;
        let mut size = 0;
        match body {
            Body::Whole(bytes) => {
                file.write_all(&bytes).await?;
                size += bytes.len() as u64;
            }
            Body::Parts(mut parts) => loop {
                match parts.recv().await {
                    Some(Part::Bytes(bytes)) => {
                        file.write_all(&bytes).await?;
                        size += bytes.len() as u64;
                    }
                    Some(Part::End) => break,
                    None => return Ok(None),
                }
            },
        }
        file.sync_all().await?;
        Ok(Some(size))
    }
}

impl Store for Directory {
    fn list(&self, level: u8, name: Option<Name>) -> BoxFuture<'_, Result<Vec<File>, Error>> {
        Box::pin(async move {
            let directory = self.level(level);
            let failed = |e: io::Error| Error::Unavailable {
                at: directory.display().to_string(),
                action: "list",
                cause: e.to_string(),
            };
            let mut entries = match tokio::fs::read_dir(&directory).await {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(e) => return Err(failed(e)),
            };
            let mut files = Vec::new();
            while let Some(entry) = entries.next_entry().await.map_err(failed)? {
                let key = format!("{level:04x}/{}", entry.file_name().to_string_lossy());
                let Some(found) = Name::parse(&key).filter(|found| name.is_none_or(|name| name == *found)) else {
                    continue;
                };
                match entry.metadata().await {
                    Ok(metadata) => {
                        let modified = metadata.modified().map_err(failed)?;
                        files.push(File { name: found, size: metadata.len(), modified });
                    }
                    // Deleted meanwhile.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(failed(e)),
                }
            }
            files.sort_by_key(|f| f.name);
            Ok(files)
        })
    }

    fn get(&self, name: Name, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
        Box::pin(async move {
            let path = self.path(name);
            let read = tokio::task::spawn_blocking(move || {
                let file = std::fs::File::open(path)?;
                let size = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
                let mut bytes = vec![0; size];
                file.read_exact_at(&mut bytes, range.start)?;
                Ok(Bytes::from(bytes))
            });
            read.await.map_err(io::Error::other).flatten().map_err(|e| self.failed(name, "read", &e))
        })
    }

    fn put(&self, name: Name, body: Body, _note: Note) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(async move {
            let path = self.path(name);
            let temporary = path.with_extension("ltx.tmp");
            let result = async {
                tokio::fs::create_dir_all(self.level(name.level)).await?;
                let size = self.write(&temporary, body).await?;
                if size.is_some() {
                    tokio::fs::rename(&temporary, &path).await?;
                }
                io::Result::Ok(size)
            };
            let result = result.await;
            if !matches!(result, Ok(Some(_))) {
                // Best effort: a leftover is no file of a backup by its name.
                let _ = tokio::fs::remove_file(&temporary).await;
            }
            result.map_err(|e| self.failed(name, "write", &e))?.ok_or(Error::Cancelled)
        })
    }

    fn delete(&self, name: Name) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            match tokio::fs::remove_file(self.path(name)).await {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed(name, "delete", &e)),
                _ => Ok(()),
            }
        })
    }

    fn note(&self, _name: Name) -> BoxFuture<'_, Result<Option<Note>, Error>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn location(&self, name: Option<Name>) -> String {
        name.map_or_else(|| self.root.clone(), |name| self.path(name)).display().to_string()
    }
}

//! Where the files of a backup are kept: an S3 bucket or a directory. Four operations and one question; everything else is above.

mod directory;
mod s3;

pub use s3::{Bucket, Object};

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use crate::Options;
use crate::error::Error;
use crate::name::Name;
use crate::plan::File;
use crate::stream::Part;

/// What is uploaded.
#[derive(Debug)]
pub enum Body {
    Whole(Bytes),
    /// Parts of [`Options::multipart_size`], made while they are sent.
    Parts(mpsc::Receiver<Part>),
}

/// What is noted beside a file, where the store can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    pub timestamp_ms: u64,
    /// Which copy of which database it is, see [`crate::Lineage`].
    pub lineage: Option<String>,
}

pub trait Store: Send + Sync + std::fmt::Debug {
    /// All files of a level, or the one file called `name`, if it is there.
    fn list(&self, level: u8, name: Option<Name>) -> BoxFuture<'_, Result<Vec<File>, Error>>;

    /// A part of a file, which must have it.
    fn get(&self, name: Name, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>>;

    /// Writes a file, all of it or nothing, and returns its size.
    fn put(&self, name: Name, body: Body, note: Note) -> BoxFuture<'_, Result<u64, Error>>;

    /// Deletes a file; nothing happens if it does not exist.
    fn delete(&self, name: Name) -> BoxFuture<'_, Result<(), Error>>;

    /// The note beside a file; `None` where none is kept.
    fn note(&self, name: Name) -> BoxFuture<'_, Result<Option<Note>, Error>>;

    /// The location of a file or of the whole backup, for messages.
    fn location(&self, name: Option<Name>) -> String;
}

/// Finds the store that `options` describe, without asking it anything.
pub async fn find(options: &Options) -> Result<Arc<dyn Store>, Error> {
    let refused = |reason: String| Error::Refused { at: printable(&options.url), reason };
    let url = url::Url::parse(&options.url).map_err(|e| refused(format!("it is not a URL: {e}")))?;
    let store: Arc<dyn Store> = match url.scheme() {
        "s3" => Arc::new(s3::Bucket::new(&url, options).await?),
        "file" => {
            let path = url.to_file_path().map_err(|()| refused("it names no local directory".to_owned()))?;
            Arc::new(directory::Directory::new(path))
        }
        scheme => return Err(refused(format!("'{scheme}' is not supported; use s3://bucket/path"))),
    };
    Ok(store)
}

/// The URL without what might be a secret.
pub fn printable(url: &str) -> String {
    let url = url.split_once('?').map_or(url, |(plain, _)| plain);
    match (url.split_once("://"), url.rfind('@')) {
        (Some((scheme, _)), Some(at)) => format!("{scheme}://{}", &url[at + 1..]),
        _ => url.to_owned(),
    }
}

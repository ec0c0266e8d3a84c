//! Deletes a backup that nobody needs any more, whole.
//!
//! Invariants:
//! * Only objects below the given prefix are touched, and the prefix ends with a slash: `v1/` never means `v10/`.
//! * Nothing is deleted while anything below it is newer than the caller expects, for then somebody still writes there.
//!
//! What is begun can be repeated: a second run deletes what the first left.

use std::time::SystemTime;

use tracing::info;

use crate::error::Error;
use crate::store::{Bucket, Object, printable};
use crate::target::Options;

/// Deletes every object below `options.url`, backup or not, unless one was written after `limit`. Returns how many there were.
pub async fn delete(options: &Options, limit: SystemTime) -> Result<u64, Error> {
    let refused = |reason: &str| Error::Refused { at: printable(&options.url), reason: reason.to_owned() };
    let url = url::Url::parse(&options.url).map_err(|e| refused(&format!("it is not a URL: {e}")))?;
    if url.scheme() != "s3" {
        return Err(refused("only what is in a bucket is deleted; use s3://bucket/path/"));
    }
    if !url.path().ends_with('/') {
        return Err(refused("it must end with a slash, so that v1 does not mean v10 as well"));
    }
    if url.path().split('/').all(str::is_empty) {
        return Err(refused("it names a whole bucket; add the path of the backup"));
    }
    let bucket = Bucket::new(&url, options).await?;
    // Everything is looked at before anything is deleted.
    let mut next = None;
    loop {
        let (objects, following) = bucket.page(next).await?;
        check(&bucket, &objects, limit)?;
        next = following;
        if next.is_none() {
            break;
        }
    }
    let mut deleted = 0;
    loop {
        // The first page, again and again: what was on it is gone.
        let (objects, _) = bucket.page(None).await?;
        if objects.is_empty() {
            return Ok(deleted);
        }
        check(&bucket, &objects, limit)?;
        let count = objects.len() as u64;
        bucket.delete_all(objects.into_iter().map(|object| object.key).collect()).await?;
        deleted += count;
        info!(deleted, location = bucket.address(""), "deleting a backup");
    }
}

fn check(bucket: &Bucket, objects: &[Object], limit: SystemTime) -> Result<(), Error> {
    match objects.iter().find(|object| object.modified.is_none_or(|modified| modified > limit)) {
        None => Ok(()),
        Some(object) => {
            Err(Error::InUse { at: bucket.address(""), key: object.key.clone(), modified: object.modified })
        }
    }
}

//! Writes files to the store and makes sure that they are there.

use bytes::Bytes;

use crate::download;
use crate::error::Error;
use crate::ltx::{self, Decoder};
use crate::name::{Name, Txid};
use crate::plan::File;
use crate::store::{Body, Note};
use crate::stream::PartWriter;
use crate::target::Target;
use crate::view::View;

/// Parts that wait for their upload to begin.
const PARTS_QUEUED: usize = 1;

/// Uploads a file that is in memory.
pub async fn whole(target: &Target, name: Name, bytes: Bytes, note: Note) -> Result<File, Error> {
    let size = target.store.put(name, Body::Whole(bytes), note).await?;
    target.confirm(name, size).await
}

/// Uploads all pages of a view as they are read.
pub async fn snapshot(target: &Target, view: View, max: Txid, note: Note) -> Result<File, Error> {
    made(target, Name::snapshot(max), note, move |out| view.dump(max, out)).await
}

/// Merges files that follow each other into one of `level`.
pub async fn merged(target: &Target, level: u8, sources: &[File], note: Note) -> Result<File, Error> {
    let (Some(first), Some(last)) = (sources.first(), sources.last()) else { return Err(Error::Cancelled) };
    let name = Name { level, min: first.name.min, max: last.name.max };
    let inputs: Vec<_> =
        sources.iter().map(|file| (target.store.location(Some(file.name)), download::one(target, file))).collect();
    made(target, name, note, move |out| {
        let decoders = inputs.into_iter().map(|(file, input)| Decoder::new(input, &file));
        Ok(ltx::merge(decoders.collect::<Result<_, _>>()?, out)?.0)
    })
    .await
}

/// Uploads what `make` writes on a thread of its own.
async fn made(
    target: &Target,
    name: Name,
    note: Note,
    make: impl FnOnce(PartWriter) -> Result<PartWriter, Error> + Send + 'static,
) -> Result<File, Error> {
    let (out, parts) = PartWriter::new(target.options.multipart_size, PARTS_QUEUED);
    let making = tokio::task::spawn_blocking(move || make(out)?.finish());
    let (size, made) = tokio::join!(target.store.put(name, Body::Parts(parts), note), making);
    match made.map_err(|_| Error::Cancelled).flatten() {
        // Each gives up when the other fails; the one that failed says why.
        Err(Error::Cancelled) | Ok(()) => target.confirm(name, size?).await,
        Err(error) => Err(error),
    }
}
